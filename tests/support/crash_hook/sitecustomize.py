"""Put on PYTHONPATH: kills the process just before a chosen change of the cache folder.

Python calls audit hooks before it opens, renames or removes a file, so every step of a publication can be the last one.
See `tests.support.processes.crash_environment`.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "os.link"}
_folder, _root = os.environ["CRASH_FOLDER"], os.environ["CRASH_ROOT"] + os.sep
_at, _count = "", 0


def _is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    if event not in _CHANGES or not isinstance(arguments[0], str | bytes | os.PathLike):
        return False
    if event == "open" and not arguments[2] & _WRITING:
        return False
    return (os.fsdecode(arguments[0]) + os.sep).startswith(_root)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    global _at, _count  # noqa: PLW0603 - a hook cannot be taken away, nor given state
    if not _is_change(event, arguments):
        return
    line = f"{event} {os.fsdecode(arguments[0]).removeprefix(_root)}"
    _append("log", line + "\n")
    wanted = _read("at")
    if wanted != _at:
        _at, _count = wanted, 0
    _count += 1
    if not wanted.isdigit():
        is_now = line.startswith(wanted)
    else:
        is_now = _count == int(wanted) and not os.path.exists(_place(f"crashed-{wanted}"))  # noqa: PTH110 - as below
    if is_now:
        _append(f"crashed-{_at}" if wanted.isdigit() else "crashed", "")
        os.kill(os.getpid(), signal.SIGKILL)


def _place(name: str) -> str:
    return os.path.join(_folder, name)  # noqa: PTH118 - pathlib may be what is hooked


def _read(name: str) -> str:
    file = os.open(_place(name), os.O_RDONLY)
    try:
        return os.read(file, 1000).decode()
    finally:
        os.close(file)


def _append(name: str, text: str) -> None:
    file = os.open(_place(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


if ("prismcache_service.engine" in sys.orig_argv) == (os.environ["CRASH_ROLE"] == "worker"):
    sys.addaudithook(_hook)
