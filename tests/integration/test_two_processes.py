"""Several processes at once on one cache folder: the work is done once, and everybody gets the same file."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from prismcache import PrismClient, Verdict
from tests.support.cache_root import Lab, many_objects_spec, published, quarantined, tiny_spec, unfinished
from tests.support.oracle import assert_crop_file_equals_oracle
from tests.support.processes import Finished, command

ONE = many_objects_spec(0)
TWENTY = [tiny_spec(crop) for crop in range(1, 21)]
SPECS = [ONE, *TWENTY]


def _at_once(lab: Lab, *calls: tuple[str, ...]) -> list[Finished]:
    with ExitStack() as stack:
        started = [stack.enter_context(command(lab.settings(), *arguments)) for arguments in calls]
        return [each.wait(60) for each in started]


def test_one_crop_is_fetched_once(lab: Lab) -> None:
    lab.proxy.latency = 0.02  # so that each is still at it when the other comes
    try:
        done = _at_once(lab, *[("ensure", "instance", "0")] * 3)
    finally:
        lab.proxy.latency = 0
    assert [each.code for each in done] == [0, 0, 0], [each.stderr for each in done]
    assert [each.paths for each in done] == [[str(lab.cached(ONE))]] * 3
    assert sum("instance/0: 0%, waits for process " in each.stderr for each in done) == 2
    assert set(lab.fetched(ONE).values()) == {1}
    assert_crop_file_equals_oracle(lab.cached(ONE), lab.source(ONE))
    assert unfinished(lab.root) == quarantined(lab.root) == []


def test_twenty_crops_in_opposite_orders(lab: Lab) -> None:
    crops = [str(spec.crop) for spec in TWENTY]
    done = _at_once(lab, ("ensure", "instance", *crops), ("ensure", "instance", *reversed(crops)))
    assert [each.code for each in done] == [0, 0], [each.stderr for each in done]
    assert done[0].paths == done[1].paths[::-1] == [str(lab.cached(spec)) for spec in TWENTY]
    assert max(lab.proxy.gets().values()) == 1
    with PrismClient(settings=lab.settings()) as client:
        assert [result.verdict for result in client.verify()] == [Verdict.OK] * 20
    for spec in TWENTY:
        assert_crop_file_equals_oracle(lab.cached(spec), lab.source(spec))
    assert len(published(lab.root)) == 20
    assert unfinished(lab.root) == quarantined(lab.root) == []


def test_subsets_and_the_full_file_at_once(lab: Lab) -> None:
    done = _at_once(
        lab,
        ("ensure", "instance", "0", "--channels", "0-2", "--json"),
        ("ensure", "instance", "0", "--json"),
    )
    assert [each.code for each in done] == [0, 0], [each.stderr for each in done]
    assert json.loads(done[1].stdout)["files"][0]["channels"] == list(range(6))
    for name in published(lab.root):
        channels = [0, 1, 2] if ".ch" in name else None
        assert_crop_file_equals_oracle(lab.root / name, lab.source(ONE), channels)
    assert unfinished(lab.root) == []


def test_many_threads_with_one_client(lab: Lab) -> None:
    with PrismClient(settings=lab.settings()) as client, ThreadPoolExecutor(16) as threads:
        calls = [threads.submit(client.ensure, "instance", [spec.crop], progress=False) for spec in TWENTY[:4] * 8]
        paths = {call.result()[0] for call in calls}
    assert paths == {str(lab.cached(spec)) for spec in TWENTY[:4]}
    assert max(lab.proxy.gets().values()) == 1
    assert unfinished(lab.root) == []


def test_two_clients_in_one_process(lab: Lab) -> None:
    with (
        PrismClient(settings=lab.settings()) as first,
        PrismClient(settings=lab.settings()) as second,
        ThreadPoolExecutor(2) as threads,
    ):
        calls = [threads.submit(client.ensure, "instance", 0, progress=False) for client in (first, second)]
        assert [call.result() for call in calls] == [[str(lab.cached(ONE))]] * 2
    assert set(lab.fetched(ONE).values()) == {1}


def test_verify_and_rm_while_another_process_makes_crops(lab: Lab) -> None:
    crops = [str(spec.crop) for spec in TWENTY[:8]]
    with (
        command(lab.settings(), "ensure", "instance", *crops) as ensuring,
        PrismClient(settings=lab.settings()) as client,
    ):
        while ensuring.is_running:
            assert {result.verdict for result in client.verify()} <= {Verdict.OK}
            for info in client.catalog():
                assert all(Path(file.path).is_file() for file in info.files)
        done = ensuring.wait()
    assert done.code == 0, done.stderr
    assert len(published(lab.root)) == 8
    assert unfinished(lab.root) == quarantined(lab.root) == []
