"""Write constraints.txt: exact versions of everything the development install brings, on every Python we test.

``python .ci/constraints.py PYTHON [PYTHON ...]`` installs ``.[dev]`` into a fresh environment for each interpreter,
with no constraints, and merges what pip lists there. A version that differs between them gets an environment marker.
Names and versions only: neither addresses nor hashes, so any index or mirror will do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "constraints.txt"
UNPINNED = {"pip", "setuptools", "prismcache"}  # the first two come with the environment itself
HEADER = """\
# Exact versions of the test environment on Python {pythons}; written by `make constraints`.
"""

Minor = tuple[int, int]


def resolve(python: str) -> tuple[Minor, dict[str, str]]:
    """The interpreter's minor version, and name → version of what ``.[dev]`` installs there."""
    with tempfile.TemporaryDirectory(prefix="prismcache-constraints-") as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        inner = next(path for path in (Path(folder, "bin/python"), Path(folder, "Scripts/python.exe")) if path.exists())
        pip = [str(inner), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-qq", f"{ROOT}[dev]"], check=True)
        listed = subprocess.run([*pip, "list", "--format=json"], check=True, stdout=subprocess.PIPE, text=True)
        version = subprocess.run(
            [inner, "-c", "import sys; print(*sys.version_info[:2])"], check=True, stdout=subprocess.PIPE, text=True
        )
    major, minor = map(int, version.stdout.split())
    return (major, minor), {row["name"].lower().replace("_", "-"): row["version"] for row in json.loads(listed.stdout)}


def marker(first: Minor, last: Minor, minors: list[Minor]) -> str:
    """The environment marker for ``first`` to ``last`` out of the ascending ``minors``; empty for all of them.

    The lowest and the highest stay open to their side, so that an interpreter we do not test gets its neighbour's pin.
    """
    bounds = []
    if first != minors[0]:
        bounds.append(f'python_version >= "{first[0]}.{first[1]}"')
    if last != minors[-1]:
        after = minors[minors.index(last) + 1]
        bounds.append(f'python_version < "{after[0]}.{after[1]}"')
    return " and ".join(bounds)


def merge(resolved: dict[Minor, dict[str, str]]) -> list[str]:
    """One line per package, or per run of Python versions that agree on its version."""
    minors = sorted(resolved)
    lines = []
    for name in sorted({name for versions in resolved.values() for name in versions} - UNPINNED):
        holders = [minor for minor in minors if name in resolved[minor]]
        for version, run in groupby(holders, key=lambda minor: resolved[minor][name]):
            run_of = list(run)
            # A package that only some versions need still gets a plain pin if they agree: it binds nobody else.
            where = marker(run_of[0], run_of[-1], minors) if len({resolved[m][name] for m in holders}) > 1 else ""
            lines.append(f"{name}=={version}" + (f" ; {where}" if where else ""))
    return lines


def main(pythons: list[str]) -> None:
    """Resolve on each of ``pythons`` and write the file."""
    if not pythons:
        sys.exit("usage: python .ci/constraints.py PYTHON [PYTHON ...]")
    resolved = dict(map(resolve, pythons))
    header = HEADER.format(pythons=", ".join(f"{major}.{minor}" for major, minor in sorted(resolved)))
    TARGET.write_text(header + "\n".join(merge(resolved)) + "\n")
    sys.stdout.write(f"wrote {TARGET.name}: {len(merge(resolved))} pins for {len(resolved)} Python versions\n")


if __name__ == "__main__":
    main(sys.argv[1:])
