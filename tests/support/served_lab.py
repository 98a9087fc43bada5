"""``python -m tests.support.served_lab FOLDER``: a service and its bucket with one small crop, for another Python.

Prints the service's URL and the token of a requester, and goes on until standard input ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.cache_root import tiny_spec
from tests.support.labs import running_lab
from tests.support.service import Service, service_config


def main(folder: Path) -> None:
    """Serve instance/0."""
    with running_lab(folder, [tiny_spec(0)]) as lab:
        service = Service(service_config(lab.settings(workers=1), folder / "state", min_free_bytes=0))
        token = service.create_token("ada", "requester")
        with service:
            sys.stdout.write(f"{service.url} {token}\n")
            sys.stdout.flush()
            sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
