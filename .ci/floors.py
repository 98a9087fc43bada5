"""Print the lowest versions that pyproject.toml allows, as constraints for pip: ``python .ci/floors.py [EXTRA ...]``.

They are those of the light client and of the extras named. Packages that come with these packages are left to pip.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

FLOOR = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,-]+\])?\s*>=\s*(?P<version>[\w.]+)")


def floors(extras: list[str]) -> list[str]:
    """Return one line ``name==version`` for each requirement that has a lowest version."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    found = {match["name"]: match["version"] for match in map(FLOOR.match, wanted) if match}
    return [f"{name}=={version}" for name, version in found.items()]


if __name__ == "__main__":
    sys.stdout.write("\n".join(floors(sys.argv[1:])) + "\n")
