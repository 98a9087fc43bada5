"""What only the C library can be asked for."""

from __future__ import annotations

import ctypes
from typing import Any


def call_if_there(name: str, *arguments: Any) -> None:
    """Call a function of the C library; nothing happens where it has none of that name."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
