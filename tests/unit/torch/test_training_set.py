"""The crops of a training: from files or a client, some of them later, in this process and in workers."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from prismcache import PrismError, RequestError, SourceUnreachableError, UnknownChannelError, UnknownCropError
from prismcache._testing_files import crop_arrays
from prismcache.schema import Split
from prismcache.testing import InMemoryService
from prismcache.torch.memory import Arrival, Board, Visits
from prismcache.torch.training_set import Cache, Demands, TrainingSet

PATCH = (2, 8, 8)
WHOLE = (slice(0, 8), slice(0, 24), slice(0, 24))


@pytest.fixture
def service() -> Iterator[InMemoryService]:
    with InMemoryService() as running:
        yield running


def demands(channels=0, label_values=None, exact_to=None) -> Demands:
    return Demands(PATCH, channels, label_values, exact_to, "int")


def training(source, crops=None, *, split=None, mode="none", folder: Path = Path("unused"), start="first", wants=None):
    cache = Cache(mode, None, folder)
    return TrainingSet(source, split, crops, wants or demands(), cache, start=start, progress=False)


def check(found: TrainingSet, slot: int) -> None:
    whole = crop_arrays(found.split, found.crops[slot], None)
    for channel in found.channels:
        out = np.empty(WHOLE[0].stop * 24 * 24, np.uint8).reshape(8, 24, 24)
        found.reader(slot, 1).read(f"raw/ch_{channel:02d}", WHOLE, out)
        assert np.array_equal(out, whole.raw[channel])


@pytest.mark.parametrize("mode", ["none", "ram", "mmap"])
def test_crops_of_files_are_read_from_wherever_they_are_decoded(mode, service, tmp_path) -> None:
    paths = [service.cache("instance", crop) for crop in (0, 2)]
    found = training(paths, mode=mode, folder=tmp_path, wants=demands("all"))
    assert (found.split, found.crops, found.channels, found.ready()) == (Split.INSTANCE, (0, 2), (0, 1, 2), [0, 1])
    for each in (found, pickle.loads(pickle.dumps(found))):
        for slot in each.ready():
            check(each, slot)
        each.close()
        check(each, 0)
    found.wait()
    assert training(paths, [2]).crops == (2,)


@pytest.mark.parametrize("mode", ["none", "ram", "mmap"])
@pytest.mark.parametrize("start", ["first", "all"])
def test_a_clients_crops_all_come(mode, start, service, tmp_path) -> None:
    service.cache("instance", 1)
    with service.client() as client:
        found = training(client, mode=mode, folder=tmp_path, start=start, wants=demands("common"))
        assert found.crops == (0, 1, 2)
        assert 1 in found.ready() if start == "first" else found.ready() == [0, 1, 2]
        found.wait()
        assert found.ready() == [0, 1, 2]
        for slot in found.ready():
            check(found, slot)
        assert found.shape(2) == (8, 24, 24)


def test_a_crop_that_joins_is_seen_by_a_process_that_was_forked_before(service) -> None:
    board, context = Board(2), get_context("fork")
    path = str(service.cache("semantic", 1))
    queue, told = context.SimpleQueue(), context.Event()

    def child() -> None:
        before = board.look(1)
        queue.put("ready")
        told.wait(60)
        queue.put((before, board.look(1), board.look(0)))

    process = context.Process(target=child)
    process.start()
    assert queue.get() == "ready"
    board.post(1, Arrival(path))
    told.set()
    assert queue.get() == (None, Arrival(path), None)
    process.join()


def test_a_long_problem_still_fits_on_the_board() -> None:
    board = Board(1)
    problem = SourceUnreachableError("x" * 50_000).to_problem()
    board.post(0, Arrival(problem=problem))
    found = board.look(0)
    assert found is not None
    assert found.problem == problem.model_copy(update={"detail": "x" * 2000})


def test_a_failed_crop_is_the_error_of_the_next_look(service) -> None:
    service.cache("instance", 0)
    service.fail("instance", 1, SourceUnreachableError("the bucket is away"))
    with service.client() as client:
        found = training(client, [0, 1])
        with pytest.raises(SourceUnreachableError, match="away"):
            found.wait()
        with pytest.raises(SourceUnreachableError, match="away"):
            training(client, [1]).ready()


def test_a_client_that_is_closed_too_early_ends_the_waiting(service) -> None:
    client = service.client()
    found = training(client, [0, 1])
    client.close()
    try:
        found.wait()
    except PrismError as error:
        assert "wait()" in error.remedy  # noqa: PT017 - it may also have been quick enough
    else:
        assert found.ready() == [0, 1]


def test_counts_are_shared_with_forks_and_copied_elsewhere() -> None:
    visits = Visits([0] * 3)
    child = get_context("fork").Process(target=lambda: visits.next(1))
    child.start()
    child.join()
    copy = pickle.loads(pickle.dumps(visits))
    assert [visits.next(1), visits.next(1), copy.next(1), visits.peek(0)] == [1, 2, 1, 0]
    visits.set_all(7)
    assert [visits.peek(place) for place in range(3)] == [7, 7, 7]


def test_what_a_crop_lacks_is_named(service) -> None:
    path = service.cache("instance", 0)
    with service.client() as client:
        for crops, wants, kind, words in (
            ([0, 9], demands(), UnknownCropError, "9"),
            ([0, 1], demands(7), UnknownChannelError, "no channel 7"),
            ([], demands(), RequestError, "no crop"),
        ):
            with pytest.raises(kind, match=words):
                training(client, crops, wants=wants)
    with pytest.raises(RequestError, match="does not fit into int, which is exact up to 2"):
        training(path, wants=demands(exact_to=2))
    with pytest.raises(RequestError, match="from a PrismClient or from paths, not from 7"):
        training(7)
    with pytest.raises(RequestError, match="no crop's path is given"):
        training([])
