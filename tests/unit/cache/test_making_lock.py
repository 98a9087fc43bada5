"""Who is making a crop: locks that save work, are taken over from the dead, and never come back from them."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from prismcache.disk import write_atomically
from prismcache.errors import StorageUnwritableError
from prismcache_service.cache import making_lock
from prismcache_service.cache.making_lock import LIFE_S, RENEW_S, Holder, MakingLocks, Watch

NAME = "instance-crop_0.h5"


@pytest.fixture
def locks(tmp_path: Path) -> MakingLocks:
    return MakingLocks(tmp_path)


def take(locks: MakingLocks, name: str = NAME) -> str:
    token = locks.try_acquire(name)
    assert token is not None
    return token


def holder_of(locks: MakingLocks) -> Holder:
    holder = locks.holder(NAME)
    assert holder is not None
    return holder


def put(folder: Path, holder: Holder) -> None:
    (folder / NAME).write_text(json.dumps(dataclasses.asdict(holder)))


ACQUIRE = """
import sys
from pathlib import Path
from prismcache_service.cache import MakingLocks
print(MakingLocks(Path(sys.argv[1])).try_acquire(sys.argv[2]), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_process(tmp_path: Path):
    """A process that holds the lock; it ends when its input is closed."""
    command = [sys.executable, "-c", ACQUIRE, str(tmp_path), NAME]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert len(process.stdout.readline().strip()) == 32
        yield process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(20)


def test_a_lock_is_held_by_one_until_it_is_released(locks: MakingLocks) -> None:
    token = take(locks)
    assert locks.try_acquire(NAME) is None
    assert locks.try_acquire("instance-crop_1.h5") is not None
    locks.release(NAME, token)
    assert take(locks) != token


def test_a_lock_says_who_holds_it(locks: MakingLocks) -> None:
    token = take(locks)
    holder = holder_of(locks)
    assert (holder.token, holder.pid, holder.renewals) == (token, os.getpid(), 0)
    assert not holder.is_gone()


def test_only_its_own_token_releases_a_lock(locks: MakingLocks) -> None:
    token = take(locks)
    locks.release(NAME, "f" * 32)
    locks.release("instance-crop_1.h5", token)
    assert holder_of(locks).token == token


def test_renewing_shows_life_and_leaves_nothing_else(locks: MakingLocks, tmp_path: Path) -> None:
    token = take(locks)
    locks.renew(NAME, token, 7)
    assert holder_of(locks).renewals == 7
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_renewing_does_not_bring_back_a_lock_that_was_dropped(locks: MakingLocks, tmp_path: Path) -> None:
    token = take(locks)
    locks.discard(NAME, holder_of(locks))
    locks.renew(NAME, token, 1)
    assert list(tmp_path.iterdir()) == []


def test_neither_renewing_nor_releasing_touches_a_lock_that_another_took_over(locks: MakingLocks) -> None:
    old = take(locks)
    locks.discard(NAME, holder_of(locks))
    new = take(locks)
    locks.renew(NAME, old, 9)
    locks.release(NAME, old)
    assert (holder_of(locks).token, holder_of(locks).renewals) == (new, 0)


def test_a_lock_that_changed_since_it_was_seen_is_not_dropped(locks: MakingLocks) -> None:
    token = take(locks)
    seen = holder_of(locks)
    locks.renew(NAME, token, 1)
    locks.discard(NAME, seen)
    assert holder_of(locks).token == token


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", '{"token": "a"}', '{"surprise": 1}', "\0\0"])
def test_a_lock_that_cannot_be_read_is_held_by_nobody_known(locks: MakingLocks, tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    assert locks.holder(NAME) is None
    assert locks.try_acquire(NAME) is None
    locks.release(NAME, "a")
    assert (tmp_path / NAME).exists()
    locks.discard(NAME, None)
    assert take(locks)


def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(StorageUnwritableError, match=NAME):
        MakingLocks(tmp_path / "no-such-folder").try_acquire(NAME)


def test_a_renewal_that_fails_is_harmless(locks: MakingLocks) -> None:
    token = take(locks)
    with patch.object(Path, "write_bytes", side_effect=OSError(errno.ENOSPC, "full")):
        locks.renew(NAME, token, 1)
    assert holder_of(locks).token == token


# Whether the holder still lives


def test_a_process_that_runs_is_not_gone_and_one_that_ended_is(locks: MakingLocks, other_process) -> None:
    holder = holder_of(locks)
    assert holder.pid == other_process.pid
    assert not holder.is_gone()
    end(other_process)
    assert holder.is_gone()


def test_a_later_process_with_the_same_id_is_another(locks: MakingLocks) -> None:
    take(locks)
    assert dataclasses.replace(holder_of(locks), started="1").is_gone()


def test_a_process_of_another_machine_cannot_be_told_to_be_gone(locks: MakingLocks, other_process) -> None:
    holder = dataclasses.replace(holder_of(locks), machine="elsewhere/boot/ns")
    end(other_process)
    assert not holder.is_gone()


def test_the_name_of_a_process_does_not_confuse_its_start(tmp_path: Path) -> None:
    """Field 22 of /proc/<pid>/stat comes after a name that may hold spaces and brackets."""
    program = tmp_path / "a b) R 1 ("
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        started = making_lock._process_start(process.pid)
        assert started is not None
        assert started.isdigit()
        assert int(started) >= int(making_lock._process_start(os.getpid()) or 0)
        process.kill()


def test_a_lock_whose_release_failed_does_not_hold_up_the_process_that_held_it(locks: MakingLocks) -> None:
    token = take(locks)
    with patch.object(Path, "unlink", side_effect=OSError(errno.EIO, "broken")):
        locks.release(NAME, token)
    assert holder_of(locks).token == token
    assert asyncio.run(get(locks, 2)) == holder_of(locks).token != token


# Watching


HOLDER = Holder("a" * 32, "elsewhere", 1, "2", 0)


def test_a_lock_is_abandoned_when_nobody_renewed_it_for_its_life() -> None:
    watch = Watch()
    assert not watch.is_abandoned(HOLDER, 1000.0)
    assert not watch.is_abandoned(HOLDER, 1000.0 + LIFE_S)
    assert watch.is_abandoned(HOLDER, 1000.0 + LIFE_S + 0.1)


def test_each_renewal_begins_a_new_life() -> None:
    watch = Watch()
    for count in range(20):
        renewed = dataclasses.replace(HOLDER, renewals=count)
        assert not watch.is_abandoned(renewed, count * LIFE_S * 0.9)
    assert watch.is_abandoned(renewed, 20 * LIFE_S)


def test_another_holder_begins_a_new_life() -> None:
    watch = Watch()
    assert not watch.is_abandoned(HOLDER, 0.0)
    assert not watch.is_abandoned(dataclasses.replace(HOLDER, token="b" * 32), LIFE_S + 1)


def test_an_unreadable_lock_is_abandoned_after_its_life_too() -> None:
    watch = Watch()
    assert not watch.is_abandoned(None, 5.0)
    assert watch.is_abandoned(None, 5.0 + LIFE_S + 0.1)


def test_a_lock_is_renewed_several_times_in_its_life() -> None:
    assert LIFE_S / RENEW_S >= 6


# Acquiring


async def get(locks: MakingLocks, tries: int) -> str | None:
    watch = Watch()
    for _ in range(tries):
        token = await locks.acquire(NAME, watch)
        if token is not None:
            return token
    return None


def test_a_free_lock_is_got_at_once(locks: MakingLocks) -> None:
    assert asyncio.run(get(locks, 1)) == holder_of(locks).token


def test_a_held_lock_is_not_got(locks: MakingLocks) -> None:
    token = take(locks)
    with patch.object(making_lock, "POLL_S", 0.0):
        assert asyncio.run(get(locks, 50)) is None
    assert holder_of(locks).token == token


def test_the_lock_of_a_process_that_ended_is_taken_over_at_once(locks: MakingLocks, other_process) -> None:
    end(other_process)
    assert asyncio.run(get(locks, 2)) == holder_of(locks).token
    assert holder_of(locks).pid == os.getpid()


def test_a_silent_lock_of_another_machine_is_taken_over_after_its_life(locks: MakingLocks, tmp_path: Path) -> None:
    put(tmp_path, HOLDER)
    clock = SimpleNamespace(monotonic=iter([0.0, LIFE_S, LIFE_S + 1]).__next__)
    with patch.object(making_lock, "POLL_S", 0.0), patch.object(making_lock, "time", clock):
        assert asyncio.run(get(locks, 4)) == holder_of(locks).token
    assert holder_of(locks).pid == os.getpid()


def test_of_many_that_find_a_lock_abandoned_one_gets_it(locks: MakingLocks, other_process) -> None:
    end(other_process)

    async def main() -> list[str | None]:
        return await asyncio.gather(*(get(locks, 3) for _ in range(20)))

    with patch.object(making_lock, "POLL_S", 0.0):
        won = [token for token in asyncio.run(main()) if token is not None]
    assert won == [holder_of(locks).token]


def test_the_slower_of_two_that_find_a_lock_abandoned_leaves_the_lock_of_the_quicker(
    locks: MakingLocks, tmp_path: Path
) -> None:
    put(tmp_path, HOLDER)
    quicker = dataclasses.replace(HOLDER, token="b" * 32)

    def look(name: str) -> Holder | None:
        put(tmp_path, quicker)  # just after the slower one has looked
        return HOLDER

    with patch.object(locks, "holder", look):
        locks.discard(NAME, HOLDER)
    assert holder_of(locks) == quicker
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_held_lock_is_renewed_while_the_work_goes_on_and_released_after_it(locks: MakingLocks) -> None:
    async def main() -> None:
        token = take(locks)
        async with locks.held(NAME, token):
            while holder_of(locks).renewals < 3:  # noqa: ASYNC110 - a file on the disk, which sets no event
                await asyncio.sleep(0)

    with patch.object(making_lock, "RENEW_S", 0.0):
        asyncio.run(main())
    assert locks.holder(NAME) is None


def test_a_renewal_that_is_late_does_not_bring_a_released_lock_back(tmp_path: Path) -> None:
    """The disk takes its time between the renewal's look at the lock and its writing."""
    writing, may_write = threading.Event(), threading.Event()

    def write_slowly(path: Path, *arguments: Any, **options: Any) -> None:
        writing.set()
        may_write.wait(0.2)  # a release that waits for the renewal, as it should, waits no longer
        write_atomically(path, *arguments, **options)

    locks = MakingLocks(tmp_path)

    async def main() -> None:
        async with locks.held(NAME, take(locks)):
            await asyncio.to_thread(writing.wait, 5)
        may_write.set()

    with patch.object(making_lock, "RENEW_S", 0.0), patch.object(making_lock, "write_atomically", write_slowly):
        asyncio.run(main())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
def test_a_held_lock_is_released_when_the_work_fails(locks: MakingLocks, error: type[BaseException]) -> None:
    async def main() -> None:
        async with locks.held(NAME, take(locks)):
            raise error

    with pytest.raises(error):
        asyncio.run(main())
    assert locks.holder(NAME) is None


def test_work_that_lost_its_lock_does_not_release_the_new_holders(locks: MakingLocks) -> None:
    async def main() -> str:
        async with locks.held(NAME, take(locks)):
            locks.discard(NAME, holder_of(locks))
            return take(locks)

    assert asyncio.run(main()) == holder_of(locks).token


# Sweeping


def test_a_sweep_drops_the_locks_of_the_dead_and_names_the_living(locks: MakingLocks, other_process) -> None:
    mine = take(locks, "instance-crop_1.h5")
    other = holder_of(locks).token
    assert locks.sweep() == {mine, other}
    end(other_process)
    assert locks.sweep() == {mine}
    assert locks.holder(NAME) is None


def test_a_later_sweep_drops_a_lock_elsewhere_that_nobody_renewed(locks: MakingLocks, tmp_path: Path) -> None:
    put(tmp_path, HOLDER)
    clock = SimpleNamespace(monotonic=iter([0.0, LIFE_S, LIFE_S + 1]).__next__)
    with patch.object(making_lock, "time", clock):
        assert [locks.sweep() for _ in range(3)] == [{HOLDER.token}, {HOLDER.token}, set()]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_from_before_a_reboot_is_dropped_at_once(locks: MakingLocks, tmp_path: Path) -> None:
    host_process = "pid:[4026531836]"
    with patch.object(making_lock, "_machine", lambda: f"lab1/this-boot/{host_process}"):
        put(tmp_path, dataclasses.replace(HOLDER, machine="lab1/this-boot/pid:[4026532000]"))
        assert locks.sweep() == {HOLDER.token}
        put(tmp_path, dataclasses.replace(HOLDER, machine=f"lab2/other-boot/{host_process}"))
        assert locks.sweep() == {HOLDER.token}
        put(tmp_path, dataclasses.replace(HOLDER, machine=f"lab1/other-boot/{host_process}"))
        assert locks.sweep() == set()


def test_the_lock_of_a_zombie_is_abandoned(locks: MakingLocks, other_process) -> None:
    holder = holder_of(locks)
    other_process.kill()
    os.waitid(os.P_PID, other_process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet reaped
    assert holder.is_gone()


def test_a_sweep_leaves_what_it_cannot_read(locks: MakingLocks, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("")
    (tmp_path / f".{NAME}.0a.tmp").write_text("")
    assert locks.sweep() == set()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_sweep_of_a_folder_that_is_not_there_finds_nothing(tmp_path: Path) -> None:
    assert MakingLocks(tmp_path / "no-such-folder").sweep() == set()
