"""`PrismDataset` over a client: training begins on the crops that are there, the others join when they are ready."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from prismcache import Crop, PrismClient, RequestError, SourceDeniedError, UnknownChannelError, UnknownCropError
from prismcache.torch import PrismDataset
from tests.support.faults import FaultProxy, Stall, Status

pytestmark = pytest.mark.torch

PATCH = (6, 24, 24)
LATE = re.compile(r"instance/crop_5\.zarr/raw/\d")  # chunks: the catalog reads metadata


@pytest.fixture
def client(fault_proxy: FaultProxy, tmp_path: Path) -> Iterator[PrismClient]:
    with PrismClient(tmp_path / "root", s3_endpoint_url=fault_proxy.endpoint, decoded=tmp_path / "decoded") as client:
        yield client


@pytest.fixture
def held(fault_proxy: FaultProxy) -> Iterator[Stall]:
    """Raw of crop 5 does not come before it is released."""
    stall = Stall()
    fault_proxy.add(stall, LATE)
    yield stall
    stall.release()


def crops_seen(batch: list[torch.Tensor], wholes: dict[int, torch.Tensor]) -> set[int]:
    """Which crops the patches of a batch are boxes of; each must be of one."""
    found = set()
    for raw in batch[0][:, 0]:
        inside = {crop for crop, whole in wholes.items() if place_of(raw, whole) is not None}
        assert len(inside) == 1
        found |= inside
    return found


def place_of(patch: torch.Tensor, whole: torch.Tensor) -> tuple[int, int, int] | None:
    """Where a patch begins in a whole channel; None if the channel does not hold the patch."""
    z, y, x = patch.shape
    boxes = whole.unfold(0, z, 1).unfold(1, y, 1).unfold(2, x, 1)
    starts = (boxes[..., 0, :2, :4] == patch[0, :2, :4]).flatten(3).all(3).nonzero().tolist()
    return next(((z, y, x) for z, y, x in starts if torch.equal(boxes[z, y, x], patch)), None)


@pytest.mark.parametrize(("context", "cache"), [("fork", "none"), ("spawn", "ram")])
def test_a_crop_joins_workers_that_run_already(client, held, context, cache) -> None:
    client.ensure("instance", 0, channels=0, progress=False)
    dataset = PrismDataset(client, crops=[0, 5], patch_shape=PATCH, n_samples=8, cache=cache, dtype=torch.uint8)
    assert (dataset.crops, dataset.ready_crops, dataset.channels) == ((0, 5), [0], (0,))
    loader = DataLoader(dataset, 4, num_workers=2, multiprocessing_context=context, persistent_workers=True)
    early = list(loader)
    held.release()
    assert dataset.wait().ready_crops == [0, 5]
    late = list(loader)
    wholes = {}
    for crop, path in zip((0, 5), client.ensure("instance", [0, 5], channels=0, timeout=0), strict=True):
        with Crop(path) as opened:
            wholes[crop] = torch.from_numpy(opened.read(channels=0)[0])
    assert set.union(*(crops_seen(batch, wholes) for batch in early)) == {0}
    assert set.union(*(crops_seen(batch, wholes) for batch in late)) == {0, 5}
    del loader


@pytest.mark.parametrize("cache", ["none", "ram", "mmap"])
def test_a_client_fetches_the_context_that_raw_patches_need(client, fault_proxy, cache) -> None:
    client.ensure("instance", 0, channels=0, context=(3, 3, 4), progress=False)
    client.ensure("instance", 5, channels=0, progress=False)  # of no use to patches with context
    stall = Stall()
    fault_proxy.add(stall, LATE)
    dataset = PrismDataset(
        client, crops=[0, 5], patch_shape=PATCH, context=(2, 3, 4), n_samples=6, cache=cache, dtype=torch.uint8
    )
    early = list(dataset)
    assert dataset.ready_crops == [0]
    stall.release()
    late = list(dataset.wait())
    paths = client.ensure("instance", [0, 5], channels=0, context=(2, 3, 4), timeout=0)
    assert [Path(path).name for path in paths] == ["crop_0.ch00.ctx3-3-4.h5", "crop_5.ch00.ctx2-3-4.h5"]
    seen = []
    for raw, labels in early + late:
        assert raw.shape == (1, 10, 30, 32)
        for path in paths:
            with Crop(path) as crop:
                place = place_of(raw[0], torch.from_numpy(crop.raw[0]))
                if place is not None:
                    seen.append(crop.crop_id)
                    first = [at + c - before for at, c, before in zip(place, (2, 3, 4), crop.context[0], strict=True)]
                    box = tuple(slice(at, at + size) for at, size in zip(first, PATCH, strict=True))
                    assert torch.equal(labels[0], torch.from_numpy(crop.labels[box].astype("i8")))
    assert (seen[:6], set(seen[6:])) == ([0] * 6, {0, 5})


def test_the_first_crop_is_waited_for_where_none_is_there_but_not_in_silence(client, held, monkeypatch, caplog) -> None:
    monkeypatch.setattr("prismcache.progress.reporter.SILENCE_SECONDS", 0.001)
    dataset = PrismDataset(client, crops=[5, 0], patch_shape=PATCH, cache="mmap", progress=False)
    assert dataset.ready_crops == [0]
    assert "waiting for the first crop: 0 s so far" in caplog.text
    copy = pickle.loads(pickle.dumps(dataset))
    held.release()
    for each in (dataset, copy):
        assert each.wait().ready_crops == [5, 0]
    assert torch.equal(dataset[0][0], copy[0][0])


def test_a_crop_that_cannot_be_had_ends_training_with_its_error(client, fault_proxy) -> None:
    client.ensure("instance", 0, channels=0, progress=False)
    fault_proxy.add(Status(403), LATE)
    dataset = PrismDataset(client, crops=[0, 5], patch_shape=PATCH, n_samples=4)
    loader = DataLoader(dataset, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(SourceDeniedError, match="crop_5"):
        dataset.wait()
    with pytest.raises(SourceDeniedError, match="crop_5"):
        list(loader)


def test_start_all_and_a_grid_wait_for_everything(client) -> None:
    waited = PrismDataset(client, crops=[5, 12], patch_shape=PATCH, start="all", channels="common", progress=False)
    assert (waited.ready_crops, waited.channels) == ([5, 12], tuple(range(10)))
    grid = PrismDataset(client, crops=[5, 12], patch_shape=PATCH, sampling="grid", progress=False)
    assert grid.ready_crops == [5, 12]
    again = PrismDataset(client, crops=[5, 12], patch_shape=PATCH, channels=[9, 3])
    assert (again.ready_crops, again[0][0].shape[0]) == ([5, 12], 2)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"channels": "all"}, UnknownChannelError, "instance crop 0 18, instance crop 5 12"),
        ({"channels": 12}, UnknownChannelError, "no channel 12 in instance crop 5"),
        ({"crops": [0, 77]}, UnknownCropError, "77"),
        ({"patch_shape": (19, 24, 24)}, RequestError, r"larger than instance crop 0 \(18, 58, 64\)"),
    ],
)
def test_what_cannot_be_met_is_said_before_anything_is_fetched(options, kind, words, client, fault_proxy) -> None:
    with pytest.raises(kind, match=words):
        PrismDataset(client, **({"crops": [0, 5], "patch_shape": PATCH, "progress": False} | options))
    assert not [key for key in fault_proxy.gets() if "/raw/0." in key]
