"""Make system calls on a cache folder fail or take long: a library in C, loaded with LD_PRELOAD; see ``shim.c``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

SHIM = Path(__file__).with_name("shim.c")
_SIZE = 512
_FIRST, _TIMES, _ERROR, _CALLS, _FAILED, _DELAY, _WAITED, _ON_LOOP, _TEXT = range(9)  # as in shim.c


class DiskFaults:
    """The plan of one process and its workers.

    Parameters
    ----------
    plan
        The file that the library reads; default: the one that this process's environment names.
    """

    def __init__(self, plan: str | None = None) -> None:
        self._plan = np.memmap(plan or os.environ["FAULT_PLAN"], np.int32, "r+", shape=(_SIZE // 4,))

    def fail(self, first: int, times: int, error: int) -> None:
        """Let the calls number `first` to `first + times - 1` from now on fail with an errno."""
        self._plan[:] = 0
        self._plan[_TIMES], self._plan[_ERROR] = times, error
        self._plan[_FIRST] = first

    def stop(self) -> tuple[int, int, str]:
        """Let all calls pass; return how many were made, how many failed, and what the first of these was."""
        self._plan[_FIRST] = 0
        return int(self._plan[_CALLS]), int(self._plan[_FAILED]), self._text

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Let each call of the block take `seconds` longer; calls that still wait at its end go on at once."""
        self._plan[:] = 0
        self._plan[_DELAY] = int(1000 * seconds)
        try:
            yield
        finally:
            self._plan[_DELAY] = 0

    @property
    def delayed(self) -> int:
        """How many calls were delayed since `slow`."""
        return int(self._plan[_WAITED])

    @property
    def on_loop(self) -> str:
        """The first delayed call of the process's main thread, which runs the event loop; empty if there was none."""
        return self._text if self._plan[_ON_LOOP] else ""

    @property
    def _text(self) -> str:
        text = self._plan[_TEXT:].tobytes()
        return text[: text.index(b"\0")].decode()


def faulty_environment(folder: Path, root: Path, role: str) -> Mapping[str, str]:
    """Return the environment of a program whose calls, or whose workers' calls, shall fail below `root`.

    `role` is ``worker`` or ``caller``; `folder` is for the library and the plan. Skips the test where there is no gcc.
    """
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("the library that makes calls fail needs gcc on Linux")
    library, plan = folder / "shim.so", folder / f"{role}.plan"
    command = ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"]
    subprocess.run(command, check=True)
    plan.write_bytes(bytes(_SIZE))
    return {"LD_PRELOAD": str(library), "FAULT_PLAN": str(plan), "FAULT_ROOT": str(root), "FAULT_ROLE": role}
