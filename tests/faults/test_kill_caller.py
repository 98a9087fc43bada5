"""The program that asked is ended at many moments: what it leaves is not cached, and the next call completes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from prismcache import PrismClient, Verdict
from tests.support.cache_root import Lab, many_objects_spec, tiny_spec, unfinished
from tests.support.faults import Before, PassOn
from tests.support.labs import running_lab
from tests.support.oracle import assert_crop_file_equals_oracle
from tests.support.processes import Command, Crash, command, eventually

OBJECTS = 108  # that one crop takes, metadata included
POINTS = {signal.SIGKILL: (0, 4, 20, 50, 90), signal.SIGINT: (1, 35, 80)}
"""Later ones may come after the end; the publication has its own test."""
CASES = [(number, point) for number, points in POINTS.items() for point in points]
CHANGES = 20  # no more than that are expected of a caller
SPECS = [many_objects_spec(crop) for crop in range(len(CASES) + 1)]
SPECS += [tiny_spec(crop) for crop in range(len(SPECS), len(SPECS) + CHANGES)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("kill"), SPECS) as lab:
        yield lab


@pytest.fixture(scope="module")
def client(lab: Lab) -> Iterator[PrismClient]:
    with PrismClient(settings=lab.settings()) as client:
        yield client


def _absent_or_verified(lab: Lab, client: PrismClient, crop: int) -> None:
    """Whatever lies at the crop's place is complete, or else not counted as cached."""
    cached = any(info.crop == crop and info.files for info in client.catalog("instance"))
    if cached:
        assert [result.verdict for result in client.verify("instance", crop)] == [Verdict.OK]
        assert_crop_file_equals_oracle(lab.cached(SPECS[crop]), lab.source(SPECS[crop]))


def _completes(lab: Lab, client: PrismClient, crop: int) -> None:
    assert client.ensure("instance", crop, progress=False) == [str(lab.cached(SPECS[crop]))]
    assert_crop_file_equals_oracle(lab.cached(SPECS[crop]), lab.source(SPECS[crop]))


def _is_not_cached(client: PrismClient, crop: int) -> None:
    """However often the test has run before."""
    client.remove("instance", crop)


def test_the_points_spread_over_the_whole_crop(lab: Lab, client: PrismClient) -> None:
    _is_not_cached(client, len(CASES))
    lab.proxy.clear()
    _completes(lab, client, len(CASES))
    assert len(lab.fetched(SPECS[len(CASES)])) == OBJECTS  # each counted once, also one that had to be asked for again
    assert 0.8 * OBJECTS < max(point for _, point in CASES) < OBJECTS


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{s.name}-at-{point}" for s, point in CASES])
def test_ended_while_fetching(lab: Lab, client: PrismClient, case: int) -> None:
    number, point = CASES[case]
    _is_not_cached(client, case)
    lab.proxy.clear()
    started: list[Command] = []
    prefix = SPECS[case].prefix + "/"
    lab.proxy.add(Before(lambda: started[0].send(number), PassOn()), key=prefix, skip=point, times=1)
    with command(lab.settings(s3_concurrency=4), "ensure", "instance", str(case)) as ensuring:
        started.append(ensuring)
        done = ensuring.wait()
        ensuring.wait_for_workers()
    # The object is sent after the signal, so that nothing can be finished by then.
    if number is signal.SIGINT:
        assert (done.code, done.stdout) == (130, "")
        assert "interrupted" in done.stderr
        assert "Traceback" not in done.stderr
        assert unfinished(lab.root) == []
    else:
        assert done.code == -signal.SIGKILL
    assert not lab.cached(SPECS[case]).exists()
    _absent_or_verified(lab, client, case)
    _completes(lab, client, case)
    assert unfinished(lab.root) == []


def test_ctrl_c_before_anything_was_fetched(lab: Lab, client: PrismClient) -> None:
    """While the listing is awaited."""
    _is_not_cached(client, 0)
    lab.proxy.clear()
    started: list[Command] = []
    lab.proxy.add(Before(lambda: started[0].send(signal.SIGINT)), listing=True, times=1)
    with command(lab.settings(), "ensure", "instance", "0") as ensuring:
        started.append(ensuring)
        assert ensuring.wait().code == 130
        ensuring.wait_for_workers()
    assert unfinished(lab.root) == []


def test_killed_at_every_change_that_the_caller_makes(lab: Lab, client: PrismClient, tmp_path: Path) -> None:
    """Folders, lease, sweeping: each step in turn is the last one of the process, until it takes no more steps."""
    crash = Crash(tmp_path / "crash", lab.root, "caller")
    crops = range(len(CASES) + 1, len(SPECS))
    lab.proxy.clear()
    for at, crop in enumerate(crops, start=1):
        _is_not_cached(client, crop)
        crash.before(at)
        with command(lab.settings(), "ensure", "instance", str(crop), env=crash.environment) as ensuring:
            _note_workers(ensuring)
            code = ensuring.wait().code
            ensuring.wait_for_workers()
        assert code == (-signal.SIGKILL if crash.happened(at) else 0)
        _absent_or_verified(lab, client, crop)
        _completes(lab, client, crop)
        if code == 0:
            break
    assert code == 0
    assert at > 3  # preparing the folder, and the two ends of the making lock
    _is_not_cached(client, crops[0])
    _completes(lab, client, crops[0])  # a hit does not sweep, this does
    assert unfinished(lab.root) == []


def _note_workers(ensuring: Command) -> None:
    eventually(lambda: bool(ensuring.workers()) or not ensuring.is_running, "a worker starts, or the caller is killed")
