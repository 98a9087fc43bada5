"""Small file systems of the tests' own; they need root on Linux, and are skipped without."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: int, *options: str) -> Iterator[Path]:
    """`folder` as a file system of `size` bytes, gone after the block."""
    folder.mkdir()
    choices = ",".join([f"size={size}", *options])
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", choices, "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("no mount command")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, *options: str) -> None:
    """Change a mounted file system's options, as ``ro`` or ``size=…``."""
    subprocess.run(["mount", "-o", ",".join(["remount", *options]), str(folder)], check=True)


def free_bytes(folder: Path) -> int:
    """Space that is left for anybody."""
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize


def fill(file: Path, leave: int) -> None:
    """Let `file` take all space of its file system but for `leave` bytes (to the page)."""
    page = os.sysconf("SC_PAGE_SIZE")
    with file.open("ab") as stream:
        while (room := free_bytes(file.parent) - leave) >= page:
            stream.write(bytes(min(room // page * page, 1 << 20)))
            stream.flush()
