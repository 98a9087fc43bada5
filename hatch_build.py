"""Compiles what is in C while a wheel is built, where there is a C compiler; without one, the wheel is pure Python.

Such a wheel is for this kind of system only (``py3-none-linux_x86_64``), whatever the Python: the library is loaded by
ctypes. ``HATCH_BUILD_NO_HOOKS=true`` leaves the compiler out, for a wheel for any system. `CC` names another compiler.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SOURCE = "service/prismcache_service/pipeline/bucket/md5_lanes.c"
_FLAGS = ("-O3", "-shared", "-fPIC")


class CompileHook(BuildHookInterface):
    """Adds the library to wheels; an editable install finds it beside its source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - the hook's signature
        source = Path(self.root, _SOURCE)
        library = source.with_suffix(".so")
        try:
            _compile(source, library)
        except (OSError, subprocess.SubprocessError) as error:
            reason = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
            self.app.display_warning(f"{source.name} is not compiled, OpenSSL's MD5 takes its place: {reason}")
            library.unlink(missing_ok=True)
            return
        build_data["artifacts"].append(f"/{library.relative_to(self.root).as_posix()}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def _compile(source: Path, library: Path) -> None:
    """The library appears as a whole, and only if the compiler is content: another build may run beside this one."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder, library.name)
        command = [*compiler, *_FLAGS, "-o", str(made), str(source)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)  # noqa: S603 - the user's own compiler
        made.replace(library)
