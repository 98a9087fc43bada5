"""Programs that read one cached file in a process of their own, because a damaged file can crash HDF5.

A program writes its result to standard output; with exit status `FAILED` it writes a `Problem` instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from typing import NoReturn

from prismcache.errors import PrismError, WorkerError, error_from_problem
from prismcache.schema import Problem

FAILED = 3
"""Exit status that goes with a problem. (1 and 2 are Python's own.)"""
_LAST_WORDS = 200  # characters of a crash that an error may quote


async def run_program(what: str, *command: str, seconds: float | None = None) -> bytes:
    """Run a program and return its result; `what` begins the messages, and `seconds` is the program's deadline.

    Raises
    ------
    PrismError
        The program's own problem.
    WorkerError
        If the program crashes, or takes too long.
    """
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, start_new_session=True)
    try:
        async with asyncio.timeout(seconds):
            output, words = await process.communicate()
    except TimeoutError:
        raise WorkerError(f"{what} took longer than {seconds:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode == FAILED:
        raise error_from_problem(Problem.model_validate_json(output))
    if process.returncode != 0:
        text = words.decode(errors="replace").strip()[-_LAST_WORDS:]
        raise WorkerError(f"{what} ended with exit code {process.returncode}: {text}")
    return output


def end_program(work: Callable[[], bytes]) -> NoReturn:
    """Write what `work` returns, or the problem of the error that it raises, and end the process."""
    try:
        content, status = work(), 0
    except PrismError as error:
        content, status = error.to_problem().model_dump_json().encode(), FAILED
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()
    raise SystemExit(status)
