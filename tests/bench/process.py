"""Running a command as a whole process and accounting for what it and its children used."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_S = 0.1  # peaks are kept by the system; more often would take from the cores that are measured


@dataclass(frozen=True)
class Usage:
    """Wall and CPU time in seconds (user and system, children included), peak resident memory in bytes.

    `peak_process` is the largest single process, `peak_sum` the sum over processes of each one's own peak.
    """

    wall: float
    cpu: float
    peak_process: int
    peak_sum: int
    output: str


def measure(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Usage:
    """Run `command` to its end.

    Raises
    ------
    subprocess.CalledProcessError
        If it fails; carries its output.
    """
    peaks: dict[int, int] = {}
    begin, before = time.perf_counter(), os.times()
    pipe = subprocess.PIPE
    variables = dict(os.environ) | dict(environment or {})
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=variables) as process:
        ended = threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, peaks, ended))
        sampler.start()
        output, errors = process.communicate()
        ended.set()
        sampler.join()
    wall, after = time.perf_counter() - begin, os.times()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output, errors)
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Usage(wall, cpu, max(peaks.values(), default=0), sum(peaks.values()), output)


def cpu_of_family() -> float:
    """CPU seconds, user and system, of this process and those that it has started, whether they run or have ended."""
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    return total + sum(map(cpu_of, _family(os.getpid())[1:]))


def cpu_of(pid: int) -> float:
    """CPU seconds, user and system, of one running process, without those that it has started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _sample(root: int, peaks: dict[int, int], ended: threading.Event) -> None:
    while not ended.wait(_SAMPLE_S):
        for pid in _family(root):
            peaks[pid] = max(peaks.get(pid, 0), _peak_bytes(pid))


def _family(root: int) -> list[int]:
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):  # it may end meanwhile
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found.extend(int(child) for child in children.read_text().split())
    return found


def _peak_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024
