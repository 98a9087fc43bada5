"""`PrismDataset` on crops whose labels tell where each voxel lies, so that a patch can be checked against a slice."""

from __future__ import annotations

import os
import pickle
import random
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from prismcache import Crop, MemoryLimitError, NoSpaceError, RequestError, UnknownChannelError, UnknownCropError
from prismcache._testing_files import CropArrays, write_crop
from prismcache.schema import Split
from prismcache.torch import PrismDataset

pytestmark = pytest.mark.torch

SHAPE = (12, 40, 36)
PATCH = (5, 16, 16)
CHANNELS = {("instance", 0): 3, ("instance", 5): 2, ("semantic", 0): 2, ("semantic", 1): 2}


def arrays(split: str, crop: int) -> CropArrays:
    """Raw noise; instance labels are 2**40 and more, by each voxel's number; semantic ones 3 and 10, or 10 and 11."""
    noise = np.random.default_rng([crop, len(split)])
    raw = noise.integers(0, 256, (CHANNELS[split, crop], *SHAPE), np.uint8)
    places = np.arange(raw[0].size, dtype=np.uint64).reshape(SHAPE)
    if split == "instance":
        return CropArrays(raw, places + np.uint64(2**40 + crop))
    return CropArrays(raw, np.array([10, 11] if crop else [3, 10], np.uint64)[places % np.uint64(2)])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    for split, crop in CHANNELS:
        write_crop(folder, Split(split), crop, arrays(split, crop))
    return folder


@pytest.fixture
def path(root: Path) -> str:
    return str(root / "instance" / "crop_0.h5")


@pytest.fixture
def paths(root: Path) -> list[str]:
    return [str(root / "instance" / f"crop_{crop}.h5") for crop in (0, 5)]


@pytest.fixture
def semantic(root: Path) -> list[str]:
    return [str(root / "semantic" / f"crop_{crop}.h5") for crop in (0, 1)]


def box_of(first_label: int) -> tuple[slice, ...]:
    start = np.unravel_index(first_label, SHAPE)
    return tuple(slice(int(a), int(a) + size) for a, size in zip(start, PATCH, strict=True))


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("cache", ["none", "ram", "mmap"])
@pytest.mark.parametrize("label_values", ["consecutive", "original"])
def test_a_patch_is_a_box_of_the_crop(path, cache, label_values, tmp_path) -> None:
    whole = arrays("instance", 0)
    dataset = PrismDataset(
        path, patch_shape=PATCH, channels=[2, 0], cache=cache, cache_folder=tmp_path, label_values=label_values,
        generator=seed(2),
    )  # fmt: skip
    starts = set()
    for raw, labels in (dataset[index] for index in range(len(dataset))):
        assert (raw.dtype, raw.shape) == (torch.float32, (2, *PATCH))
        assert (labels.dtype, labels.shape) == (torch.int64, (1, *PATCH))
        first = int(labels[0, 0, 0, 0]) - (2**40 if label_values == "original" else 1)
        box = box_of(first)
        offset = 0 if label_values == "original" else 2**40 - 1
        assert np.array_equal(labels[0].numpy() + offset, whole.labels[box].astype(np.int64))
        assert np.array_equal(raw.numpy(), whole.raw[[2, 0]][(slice(None), *box)])
        starts.add(first)
    assert len(starts) == len(dataset) == 14  # 12·40·36 voxels in patches of 5·16·16, rounded up


def test_every_place_can_be_drawn_the_last_one_too(path) -> None:
    shape = (11, 40, 36)
    dataset = PrismDataset(path, patch_shape=shape, n_samples=40, generator=seed(0))
    assert {int(labels.min()) for _, labels in (dataset[index] for index in range(40))} == {1, 40 * 36 + 1}


def test_a_grid_has_every_voxel(paths) -> None:
    dataset = PrismDataset(paths, patch_shape=PATCH, sampling="grid")
    assert len(dataset) == 2 * 3 * 3 * 3
    seen = np.zeros((2, *SHAPE), int)
    for index, (raw, labels) in enumerate(dataset):
        crop = index // 27
        box = box_of(int(labels[0, 0, 0, 0]) - 1)
        assert np.array_equal(raw[0].numpy(), arrays("instance", (0, 5)[crop]).raw[0][box])
        seen[crop][box] += 1
    assert seen.min() == 1
    with pytest.raises(RequestError, match="sampler and n_samples need sampling='random'"):
        PrismDataset(paths, patch_shape=PATCH, sampling="grid", n_samples=3)


def test_semantic_labels_are_the_original_class_ids(semantic) -> None:
    def found(**options: object) -> list[set[int]]:
        dataset = PrismDataset(semantic, patch_shape=PATCH, sampling="grid", **options)
        return [set(dataset[index][1].unique().tolist()) for index in (0, len(dataset) - 1)]

    assert found() == [{3, 10}, {10, 11}]
    assert found(label_values="consecutive") == [{1, 2}, {1, 2}]
    assert found(label_dtype=torch.uint8, cache="ram") == [{3, 10}, {10, 11}]


def test_labels_that_a_dtype_would_round_are_refused(path, paths) -> None:
    with pytest.raises(
        RequestError, match=rf"label {2**40 + 12 * 40 * 36 - 1} of instance crop 0 .* torch.float32"
    ) as e:
        PrismDataset(path, patch_shape=PATCH, label_values="original", label_dtype=torch.float32)
    assert "label_values='consecutive'" in e.value.remedy
    with pytest.raises(RequestError, match=r"torch.uint8, which is exact up to 255"):
        PrismDataset(path, patch_shape=PATCH, label_dtype=torch.uint8)
    foreground = PrismDataset(path, patch_shape=PATCH, label_dtype=torch.bfloat16, label_transform=np.bool_)
    assert foreground[0][1].dtype is torch.bfloat16


def test_channels_are_taken_by_number_and_missing_ones_named(paths) -> None:
    assert PrismDataset(paths, patch_shape=PATCH, channels="common").channels == (0, 1)
    assert PrismDataset(paths[0], patch_shape=PATCH, channels="all")[0][0].shape[0] == 3
    for wanted, words in (
        ("all", "differ in number: instance crop 0 3, instance crop 5 2"),
        (2, "no channel 2 in instance crop 5"),
        ([0, 9], "no channel 9 in instance crop 0, instance crop 5"),
    ):
        with pytest.raises(UnknownChannelError, match=words) as caught:
            PrismDataset(paths, patch_shape=PATCH, channels=wanted)
        assert "channels 0, 1;" in caught.value.remedy
    with pytest.raises(RequestError, match="'all' or 'common', not 'every'"):
        PrismDataset(paths, patch_shape=PATCH, channels="every")


def test_callables_see_what_torch_em_shows_them(path) -> None:
    seen: list[tuple[str, tuple[int, ...], str]] = []

    def note(what: str):
        def call(array):
            seen.append((what, tuple(array.shape), str(array.dtype)))
            return array

        return call

    def both(raw, labels):
        note("both")(raw)
        return torch.from_numpy(raw[None, None].astype(np.float32)), torch.from_numpy(
            labels[None, None].astype(np.int64)
        )

    def check(raw, labels):
        note("sampler")(raw)
        return True

    dataset = PrismDataset(
        path, patch_shape=PATCH, raw_transform=note("raw"), label_transform=note("label"), transform=both,
        sampler=check, label_transform2=note("label2"), label_dtype=torch.float32,
    )  # fmt: skip
    raw, labels = dataset[0]
    assert (raw.shape, labels.shape, labels.dtype) == ((1, *PATCH), (1, *PATCH), torch.float32)
    names = [("sampler", "uint8"), ("raw", "uint8"), ("label", "uint32"), ("both", "uint8"), ("label2", "uint32")]
    assert seen == [(name, PATCH, dtype) for name, dtype in names]

    seen.clear()
    several = PrismDataset(path, patch_shape=PATCH, channels=[0], raw_transform=note("raw"), label_values="original")
    assert several[0][1].dtype is torch.int64
    assert seen == [("raw", (1, *PATCH), "uint8")]
    affinities = PrismDataset(path, patch_shape=PATCH, label_transform=lambda labels: np.stack([labels] * 3))
    assert affinities[0][1].shape == (3, *PATCH)
    with pytest.raises(RequestError, match="labels of shape"):
        _ = PrismDataset(path, patch_shape=PATCH, label_transform=np.sum)[0]


def test_a_sampler_chooses_and_may_not_refuse_for_ever(path) -> None:
    dataset = PrismDataset(path, patch_shape=PATCH, sampler=lambda raw, labels: labels.min() > 6 * 40 * 36)
    assert min(int(dataset[index][1].min()) for index in range(10)) > 6 * 40 * 36
    with pytest.raises(RequestError, match="refused 500 patches of instance crop 0"):
        _ = PrismDataset(path, patch_shape=PATCH, sampler=lambda raw, labels: False)[0]


class Noise:
    """Draws from every generator that augmentations draw from."""

    def __call__(self, raw, labels):
        return raw + np.random.rand() + random.random() + torch.rand(1).item(), labels  # noqa: NPY002 - as augmentations do


def batches(dataset: PrismDataset, workers: int = 0, context: str | None = None, size: int = 3) -> list[torch.Tensor]:
    loader = DataLoader(dataset, size, num_workers=workers, multiprocessing_context=context)
    return [torch.cat([part.double().flatten() for part in batch]) for batch in loader]


def global_states() -> tuple[object, object]:
    return np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002 - as augmentations do


@pytest.mark.parametrize(
    ("context", "cache"), [("fork", "none"), ("fork", "mmap"), ("spawn", "ram"), ("forkserver", "ram")]
)
def test_workers_give_the_batches_of_one_process(paths, context, cache, tmp_path) -> None:
    options = {"patch_shape": PATCH, "transform": Noise(), "cache": cache, "cache_folder": tmp_path, "n_samples": 14}
    here = PrismDataset(paths, generator=seed(3), **options)
    ahead = PrismDataset(paths, generator=seed(3), prefetch=4, **options)
    there = PrismDataset(paths, generator=seed(3), **options)
    for _ in range(2 if context == "fork" else 1):
        state = global_states()
        expected = batches(here)
        assert state == global_states()
        for found in (batches(ahead), batches(there, 2, context)):
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    other = batches(PrismDataset(paths, generator=seed(4), **options))
    assert not torch.equal(expected[0], other[0])


def test_each_epoch_has_other_patches_and_can_be_had_again(path) -> None:
    dataset = PrismDataset(path, patch_shape=PATCH, generator=seed(5))
    first, second = batches(dataset), batches(dataset, 2, "fork")
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    dataset.set_epoch(1)
    assert all(torch.equal(a, b) for a, b in zip(second, batches(dataset), strict=True))
    torch.manual_seed(8)
    again = [PrismDataset(path, patch_shape=PATCH).seed]
    torch.manual_seed(8)
    assert again == [PrismDataset(path, patch_shape=PATCH).seed]


@pytest.mark.parametrize("cache", ["none", "ram", "mmap"])
def test_a_pickled_dataset_goes_on_where_it_was(path, cache, tmp_path) -> None:
    dataset = PrismDataset(path, patch_shape=PATCH, cache=cache, cache_folder=tmp_path)
    batches(dataset)
    copy = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(a, b) for a, b in zip(batches(dataset), batches(copy), strict=True))
    dataset.close()
    assert torch.equal(copy[0][1], dataset[0][1])


def test_a_patch_stays_what_it_is_while_anything_shows_it(path) -> None:
    dataset = PrismDataset(path, patch_shape=PATCH)
    kept = [(raw[0, 1:], raw[0, 1:].clone()) for raw, _ in (dataset[index] for index in range(12))]
    through_numpy = [(raw.numpy()[0], raw.numpy()[0].copy()) for raw, _ in (dataset[index] for index in range(12))]
    _ = [dataset[index] for index in range(12)]
    assert all(torch.equal(shown, copy) for shown, copy in kept)
    assert all(np.array_equal(shown, copy) for shown, copy in through_numpy)


class KillsItsWorker:
    """Ends the process that it runs in, once."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __call__(self, raw):
        if not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return raw


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()} if Path("/dev/shm").is_dir() else set()


def test_after_a_killed_worker_training_can_go_on_and_nothing_is_left(path, tmp_path) -> None:
    before = shared_memory()
    dataset = PrismDataset(
        path, patch_shape=PATCH, cache="ram", raw_transform=KillsItsWorker(tmp_path / "mark"), generator=seed(1)
    )
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* (killed|exited)"):
        batches(dataset, 2, "fork")
    dataset.set_epoch(0)
    fresh = PrismDataset(path, patch_shape=PATCH, generator=seed(1))
    for found, expected in zip(batches(dataset, 2, "fork"), batches(fresh), strict=True):
        assert torch.equal(found, expected)
    assert not {name for name in shared_memory() - before if name.startswith("pym-")}


def test_what_cannot_be_met_is_named_with_its_remedy(paths, semantic, root) -> None:
    cases = [
        (
            {"patch_shape": (13, 16, 16)},
            RequestError,
            r"\(13, 16, 16\) is larger than instance crop 0",
            r"\(12, 40, 36\)",
        ),
        ({"patch_shape": (16, 16)}, RequestError, "three positive integers", ""),
        ({"patch_shape": PATCH, "crops": [5, 7]}, UnknownCropError, "instance crop 7", "crops 0, 5"),
        ({"patch_shape": PATCH, "split": "semantic"}, RequestError, "of the split 'instance'", ""),
        ({"patch_shape": PATCH, "cache": "disk"}, RequestError, "'none', 'ram' or 'mmap', not 'disk'", ""),
        ({"patch_shape": PATCH, "n_samples": 0}, RequestError, "must be positive, not 0", ""),
        ({"patch_shape": PATCH, "cache_limit": "much"}, RequestError, "such as '4GB', not 'much'", ""),
        (
            {"patch_shape": PATCH, "cache": "ram", "cache_limit": 1000},
            MemoryLimitError,
            "needs .* 1.0 kB",
            "cache_limit",
        ),
        ({"patch_shape": PATCH, "cache": "mmap", "cache_limit": "1kB"}, NoSpaceError, "needs .* 1.0 kB", "cache_limit"),
    ]
    for options, kind, words, remedy in cases:
        with pytest.raises(kind, match=words) as caught:
            PrismDataset(paths, cache_folder=root / "none", **options)
        assert remedy == "" or re.search(remedy, caught.value.remedy)
    with pytest.raises(RequestError, match="of the split 'semantic', not 'instance'"):
        PrismDataset([*paths, *semantic], patch_shape=PATCH)
    with pytest.raises(IndexError, match="no sample 2 in 2"):
        _ = PrismDataset(paths, patch_shape=PATCH, n_samples=2)[2]


def test_samples_are_shared_evenly_among_chosen_crops(paths) -> None:
    dataset = PrismDataset(paths, crops=[5], patch_shape=PATCH, n_samples=4)
    assert (dataset.crops, dataset.ready_crops, len(dataset), dataset.split) == ((5,), [5], 4, "instance")
    both = PrismDataset(paths, patch_shape=PATCH, n_samples=5, label_values="original", dtype=torch.uint8)
    with Crop(paths[0]) as first, Crop(paths[1]) as second:
        wholes = [first.read(channels=0)[0], second.read(channels=0)[0]]
    counts = [0, 0]
    for raw, labels in both:
        box = box_of(int(labels[0, 0, 0, 0]) - 2**40 - 5)
        counts[int(np.array_equal(raw[0].numpy(), wholes[1][box]))] += 1
    assert counts == [3, 2]
