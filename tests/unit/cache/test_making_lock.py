"""Who is making a crop: leases that save work, are taken over from the dead, and never come back from them."""

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
from unittest.mock import patch

import pytest

from prismcache.errors import StorageUnwritableError
from prismcache_service.cache import making_lock as leasing
from prismcache_service.cache.making_lock import LIFE_S, RENEW_S, Holder, Leases, Watch, acquire

NAME = "instance-crop_0.h5"


@pytest.fixture
def leases(tmp_path: Path) -> Leases:
    return Leases(tmp_path)


def take(leases: Leases, name: str = NAME) -> str:
    token = leases.try_acquire(name)
    assert token is not None
    return token


def holder_of(leases: Leases) -> Holder:
    holder = leases.holder(NAME)
    assert holder is not None
    return holder


def put(folder: Path, holder: Holder) -> None:
    (folder / NAME).write_text(json.dumps(dataclasses.asdict(holder)))


ACQUIRE = """
import sys
from pathlib import Path
from prismcache_service.cache.making_lock import Leases
print(Leases(Path(sys.argv[1])).try_acquire(sys.argv[2]), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_process(tmp_path: Path):
    """A process that holds the lease; it ends when its input is closed."""
    command = [sys.executable, "-c", ACQUIRE, str(tmp_path), NAME]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert len(process.stdout.readline().strip()) == 32
        yield process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def test_a_lease_is_held_by_one_until_it_is_released(leases: Leases) -> None:
    token = take(leases)
    assert leases.try_acquire(NAME) is None
    assert leases.try_acquire("instance-crop_1.h5") is not None
    leases.release(NAME, token)
    assert take(leases) != token


def test_a_lease_says_who_holds_it(leases: Leases) -> None:
    token = take(leases)
    holder = holder_of(leases)
    assert (holder.token, holder.pid, holder.renewals) == (token, os.getpid(), 0)
    assert not holder.is_gone()


def test_only_its_own_token_releases_a_lease(leases: Leases) -> None:
    token = take(leases)
    leases.release(NAME, "f" * 32)
    leases.release("instance-crop_1.h5", token)
    assert holder_of(leases).token == token


def test_renewing_shows_life_and_leaves_nothing_else(leases: Leases, tmp_path: Path) -> None:
    token = take(leases)
    leases.renew(NAME, token, 7)
    assert holder_of(leases).renewals == 7
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_renewing_does_not_bring_back_a_lease_that_was_dropped(leases: Leases, tmp_path: Path) -> None:
    token = take(leases)
    leases.discard(NAME, holder_of(leases))
    leases.renew(NAME, token, 1)
    assert list(tmp_path.iterdir()) == []


def test_neither_renewing_nor_releasing_touches_a_lease_that_another_took_over(leases: Leases) -> None:
    old = take(leases)
    leases.discard(NAME, holder_of(leases))
    new = take(leases)
    leases.renew(NAME, old, 9)
    leases.release(NAME, old)
    assert (holder_of(leases).token, holder_of(leases).renewals) == (new, 0)


def test_a_lease_that_changed_since_it_was_seen_is_not_dropped(leases: Leases) -> None:
    token = take(leases)
    seen = holder_of(leases)
    leases.renew(NAME, token, 1)
    leases.discard(NAME, seen)
    assert holder_of(leases).token == token


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", '{"token": "a"}', '{"surprise": 1}', "\0\0"])
def test_a_lease_that_cannot_be_read_is_held_by_nobody_known(leases: Leases, tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    assert leases.holder(NAME) is None
    assert leases.try_acquire(NAME) is None
    leases.release(NAME, "a")
    assert (tmp_path / NAME).exists()
    leases.discard(NAME, None)
    assert take(leases)


def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(StorageUnwritableError, match=NAME):
        Leases(tmp_path / "no-such-folder").try_acquire(NAME)


def test_a_renewal_that_fails_is_harmless(leases: Leases) -> None:
    token = take(leases)
    with patch.object(Path, "write_text", side_effect=OSError(errno.ENOSPC, "full")):
        leases.renew(NAME, token, 1)
    assert holder_of(leases).token == token


# Whether the holder still lives


def test_a_process_that_runs_is_not_gone_and_one_that_ended_is(leases: Leases, other_process) -> None:
    holder = holder_of(leases)
    assert holder.pid == other_process.pid
    assert not holder.is_gone()
    end(other_process)
    assert holder.is_gone()


def test_a_later_process_with_the_same_id_is_another(leases: Leases) -> None:
    take(leases)
    assert dataclasses.replace(holder_of(leases), started="1").is_gone()


def test_a_process_of_another_machine_cannot_be_told_to_be_gone(leases: Leases, other_process) -> None:
    holder = dataclasses.replace(holder_of(leases), machine="elsewhere/boot/ns")
    end(other_process)
    assert not holder.is_gone()


def test_the_name_of_a_process_does_not_confuse_its_start(tmp_path: Path) -> None:
    """Field 22 of /proc/<pid>/stat comes after a name that may hold spaces and brackets."""
    program = tmp_path / "a b) R 1 ("
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        started = leasing._process_start(process.pid)
        assert started is not None
        assert started.isdigit()
        assert int(started) >= int(leasing._process_start(os.getpid()) or 0)
        process.kill()


# Watching


HOLDER = Holder("a" * 32, "elsewhere", 1, "2", 0)


def test_a_lease_is_abandoned_when_nobody_renewed_it_for_its_life() -> None:
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


def test_an_unreadable_lease_is_abandoned_after_its_life_too() -> None:
    watch = Watch()
    assert not watch.is_abandoned(None, 5.0)
    assert watch.is_abandoned(None, 5.0 + LIFE_S + 0.1)


def test_a_holder_whose_process_is_gone_is_abandoned_at_once(leases: Leases, other_process) -> None:
    watch, holder = Watch(), holder_of(leases)
    assert not watch.is_abandoned(holder, 0.0)
    end(other_process)
    assert watch.is_abandoned(holder, 0.0)


def test_a_lease_is_renewed_several_times_in_its_life() -> None:
    assert LIFE_S / RENEW_S >= 6


# Acquiring


async def get(leases: Leases, tries: int) -> str | None:
    watch = Watch()
    for _ in range(tries):
        token = await acquire(leases, NAME, watch)
        if token is not None:
            return token
    return None


def test_a_free_lease_is_got_at_once(leases: Leases) -> None:
    assert asyncio.run(get(leases, 1)) == holder_of(leases).token


def test_a_held_lease_is_not_got(leases: Leases) -> None:
    token = take(leases)
    with patch.object(leasing, "POLL_S", 0.0):
        assert asyncio.run(get(leases, 50)) is None
    assert holder_of(leases).token == token


def test_the_lease_of_a_process_that_ended_is_taken_over_at_once(leases: Leases, other_process) -> None:
    end(other_process)
    assert asyncio.run(get(leases, 2)) == holder_of(leases).token
    assert holder_of(leases).pid == os.getpid()


def test_a_silent_lease_of_another_machine_is_taken_over_after_its_life(leases: Leases, tmp_path: Path) -> None:
    put(tmp_path, HOLDER)
    clock = SimpleNamespace(monotonic=iter([0.0, LIFE_S, LIFE_S + 1]).__next__)
    with patch.object(leasing, "POLL_S", 0.0), patch.object(leasing, "time", clock):
        assert asyncio.run(get(leases, 4)) == holder_of(leases).token
    assert holder_of(leases).pid == os.getpid()


def test_of_many_that_find_a_lease_abandoned_one_gets_it(leases: Leases, other_process) -> None:
    end(other_process)

    async def main() -> list[str | None]:
        return await asyncio.gather(*(get(leases, 3) for _ in range(20)))

    with patch.object(leasing, "POLL_S", 0.0):
        won = [token for token in asyncio.run(main()) if token is not None]
    assert won == [holder_of(leases).token]


def test_a_held_lease_is_renewed_while_the_work_goes_on_and_released_after_it(leases: Leases) -> None:
    async def main() -> None:
        token = take(leases)
        async with leases.held(NAME, token):
            while holder_of(leases).renewals < 3:  # noqa: ASYNC110 - a file on the disk, which sets no event
                await asyncio.sleep(0)

    with patch.object(leasing, "RENEW_S", 0.0):
        asyncio.run(main())
    assert leases.holder(NAME) is None


def test_a_renewal_that_is_late_does_not_bring_a_released_lease_back(tmp_path: Path) -> None:
    """The disk takes its time between the renewal's look at the lease and its writing."""
    writing, may_write = threading.Event(), threading.Event()

    class SlowLeases(Leases):
        def _path(self, name: str) -> Path:
            if name.startswith("."):
                writing.set()
                may_write.wait(0.2)  # a release that waits for the renewal, as it should, waits no longer
            return super()._path(name)

    leases = SlowLeases(tmp_path)

    async def main() -> None:
        async with leases.held(NAME, take(leases)):
            await asyncio.to_thread(writing.wait)
        may_write.set()

    with patch.object(leasing, "RENEW_S", 0.0):
        asyncio.run(main())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
def test_a_held_lease_is_released_when_the_work_fails(leases: Leases, error: type[BaseException]) -> None:
    async def main() -> None:
        async with leases.held(NAME, take(leases)):
            raise error

    with pytest.raises(error):
        asyncio.run(main())
    assert leases.holder(NAME) is None


def test_work_that_lost_its_lease_does_not_release_the_new_holders(leases: Leases) -> None:
    async def main() -> str:
        async with leases.held(NAME, take(leases)):
            leases.discard(NAME, holder_of(leases))
            return take(leases)

    assert asyncio.run(main()) == holder_of(leases).token


# Sweeping


def test_a_sweep_drops_the_leases_of_the_dead_and_names_the_living(leases: Leases, other_process) -> None:
    mine = take(leases, "instance-crop_1.h5")
    other = holder_of(leases).token
    assert leases.sweep() == {mine, other}
    end(other_process)
    assert leases.sweep() == {mine}
    assert leases.holder(NAME) is None


def test_a_sweep_keeps_the_leases_of_other_machines(leases: Leases, tmp_path: Path) -> None:
    put(tmp_path, HOLDER)
    assert leases.sweep() == {HOLDER.token}
    assert holder_of(leases) == HOLDER


def test_a_sweep_leaves_what_it_cannot_read(leases: Leases, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("")
    (tmp_path / f".{NAME}.0a.tmp").write_text("")
    assert leases.sweep() == set()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_sweep_of_a_folder_that_is_not_there_finds_nothing(tmp_path: Path) -> None:
    assert Leases(tmp_path / "no-such-folder").sweep() == set()
