"""Programs run by other users of this machine; they need root on Linux, and tests are skipped without."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

GROUP = 4242
"""The group that all users of the tests are in."""

_NEEDED = (Path(sys.executable).resolve(), Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2])


@dataclass(frozen=True)
class User:
    """A user with a home below `folder`, and with a umask such as ``"022"``.

    The interpreter of the tests may lie in a folder that is closed to other users, as /root is. The user's programs
    therefore run in a mount namespace of their own, where that folder holds the interpreter alone.
    """

    number: int
    umask: str
    folder: Path

    def __post_init__(self) -> None:
        if os.getuid() != 0 or not all(map(shutil.which, ("setpriv", "unshare"))):
            pytest.skip("only root on Linux can become another user")
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
            pytest.skip("mount namespaces cannot be made here")
        self.home.mkdir(exist_ok=True)
        os.chown(self.home, self.number, self.number)

    @property
    def home(self) -> Path:
        """The user's own folder."""
        return self.folder / f"home-{self.number}"

    @property
    def environment(self) -> dict[str, str]:
        """Where programs keep what is the user's own."""
        folders = {f"XDG_{name}_HOME": str(self.home / name) for name in ("CACHE", "CONFIG", "DATA", "STATE")}
        return {"HOME": str(self.home)} | folders

    def command(self, *arguments: str) -> tuple[str, ...]:
        """Return a command that runs ``python ARGUMENTS`` as this user, in its own process."""
        ids = f"--reuid={self.number} --regid={self.number} --groups={GROUP}"
        program = shlex.join([sys.executable, *arguments])
        lines = [*self._uncovering(), f"umask {self.umask}", f"exec setpriv {ids} {program}"]
        return "unshare", "--mount", "--propagation", "private", "sh", "-ec", "\n".join(lines)

    def _uncovering(self) -> list[str]:
        """Return shell commands that let every user search the folders above the interpreter."""
        lines: list[str] = []
        closed = {next((p for p in reversed(path.parents) if not p.stat().st_mode & 1), None) for path in _NEEDED}
        for number, folder in enumerate(filter(None, closed)):
            cover = self.folder / f"cover-{number}"
            for path in (path for path in _NEEDED if path.is_relative_to(folder) and path.is_dir()):
                place = cover / path.relative_to(folder)
                place.mkdir(parents=True, exist_ok=True)
                lines.append(shlex.join(["mount", "--bind", str(path), str(place)]))
            lines.append(shlex.join(["mount", "--rbind", str(cover), str(folder)]))
        return lines
