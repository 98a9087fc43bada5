"""Put on PYTHONPATH: every operation below a folder takes `SLOW_SECONDS` longer while the file `SLOW_SWITCH` exists.

Python calls audit hooks before it opens, lists, renames or removes a file. The hook sleeps in the thread that asked, as
a slow network mount would.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

_OPERATIONS = {"open", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.scandir"}
_root, _switch, _seconds = os.environ["SLOW_ROOT"], os.environ["SLOW_SWITCH"], float(os.environ["SLOW_SECONDS"])


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _OPERATIONS or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    if os.fsdecode(arguments[0]).startswith(_root) and os.access(_switch, os.F_OK):
        time.sleep(_seconds)


sys.addaudithook(_hook)
