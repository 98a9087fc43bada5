"""How much memory is left, as the kernel tells it; and bytes that processes share."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path

import pytest

from prismcache import MemoryLimitError
from prismcache.torch.memory import MemoryFile, available_memory, check_memory

GB = 10**9


def test_memory_that_does_not_suffice_is_said_in_numbers() -> None:
    check_memory(10**6, None)
    assert available_memory() is None or available_memory() > 0
    with pytest.raises(MemoryLimitError, match=r"needs 2\.0 GB .* 1\.0 GB are allowed") as caught:
        check_memory(2 * GB, GB)
    assert 'cache="mmap"' in caught.value.remedy
    with pytest.raises(MemoryLimitError, match="are allowed"):
        check_memory(10**18, None)


@pytest.fixture
def kernel(tmp_path: Path) -> tuple[Path, Path]:
    """/proc of a machine with 8 GB to spare, and a folder of control groups without limits."""
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 9999 kB\nMemAvailable: {8 * GB // 1024} kB\n")
    (proc / "self" / "cgroup").write_text("4:cpu,memory:/\n0::/\n")
    return proc, groups


def limited(folder: Path, limit: str, used: int, stat: str, names: tuple[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip((*names, "memory.stat"), (limit, str(used), stat), strict=True):
        (folder / name).write_text(f"{text}\n")


def test_without_limits_the_system_decides(kernel: tuple[Path, Path], tmp_path: Path) -> None:
    assert available_memory(*kernel) == pytest.approx(8 * GB, abs=1024)
    assert available_memory(tmp_path / "no proc", kernel[1]) is None


@pytest.mark.parametrize("version", [1, 2])
def test_a_batch_job_has_what_its_group_and_those_around_it_leave(kernel: tuple[Path, Path], version: int) -> None:
    proc, groups = kernel
    (proc / "self" / "cgroup").write_text("4:cpu,memory:/job/step\n" if version == 1 else "0::/job/step\n")
    top = groups / "memory" if version == 1 else groups
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    prefix = "total_" if version == 1 else ""
    limited(top / "job" / "step", "max" if version == 2 else str(2**63 - 4096), GB, "", names)
    limited(top / "job", str(4 * GB), 3 * GB, f"anon 1\n{prefix}active_file {GB}\n{prefix}inactive_file {GB}", names)
    assert available_memory(proc, groups) == 3 * GB  # of 3 GB in use 2 are cached files, which give way
    limited(top, str(5 * GB), 4 * GB, f"{prefix}shmem {GB}", names)
    assert available_memory(proc, groups) == GB


def show(memory: MemoryFile) -> None:
    memory.map[1] = memory.map[0] + 1


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_processes_share_bytes_that_have_no_name(start: str) -> None:
    memory = MemoryFile(5000)
    memory.map[0] = 6
    child = get_context(start).Process(target=show, args=(memory,))
    child.start()
    child.join()
    assert (child.exitcode, memory.map[:3]) == (0, b"\x06\x07\x00")
    maps = Path("/proc/self/maps").read_text()
    assert "memfd:prismcache" in maps  # not a file in /dev/shm
