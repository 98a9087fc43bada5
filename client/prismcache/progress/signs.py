"""Lines for work that shows nothing else."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SILENCE_SECONDS = 3.0
"""How long a person waits before a program that shows nothing looks broken."""

_log = logging.getLogger("prismcache")


@contextmanager
def signs_of_life(text: str) -> Iterator[None]:
    """Log a warning with `text` and the seconds so far after 3 s, then after 6 s, 12 s and so on, until the block ends.

    Python shows warnings of a logger on stderr unless the program says otherwise. Quick work logs nothing.
    """
    ended, began = threading.Event(), time.monotonic()

    def say() -> None:
        pause = SILENCE_SECONDS
        while not ended.wait(pause):
            _log.warning("%s: %.0f s so far", text, time.monotonic() - began)
            pause = time.monotonic() - began

    threading.Thread(target=say, name="prismcache-signs", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
