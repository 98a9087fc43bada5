"""`PrismDataset` with raw patches that reach beyond the labels, as networks without padding need them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from prismcache import RequestError
from prismcache._testing_files import crop_arrays, write_crop
from prismcache.schema import Split
from prismcache.torch import PrismDataset
from tests.support.context_crops import write_context_crop

pytestmark = pytest.mark.torch

BEFORE = (2, 5, 4)
LABELS = (12, 24, 26)
RAW = (17, 33, 34)  # 3, 4 and 4 voxels after the labels
PATCH = (4, 8, 8)
NUMPY_MODE = {"zeros": "constant", "reflect": "reflect"}


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (2, *RAW), np.uint8)


@pytest.fixture(scope="module")
def path(raw: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A crop whose labels tell where each voxel lies."""
    places = np.arange(1, np.prod(LABELS) + 1, dtype=np.uint64).reshape(LABELS)
    return write_context_crop(tmp_path_factory.mktemp("root") / "crop_3.h5", raw, places, BEFORE)


def expected(raw: np.ndarray, labels: torch.Tensor, context: tuple[int, int, int], mode: str) -> np.ndarray:
    """The raw patch around a label patch, cut by numpy out of padded raw."""
    start = np.array(np.unravel_index(int(labels[0, 0, 0, 0]) - 1, LABELS)) + BEFORE
    padded = np.pad(raw, [(0, 0), *[(c, c) for c in context]], mode)
    return padded[(slice(None), *(slice(a, a + p + 2 * c) for a, p, c in zip(start, PATCH, context, strict=True)))]


@pytest.mark.parametrize("cache", ["none", "ram", "mmap"])
@pytest.mark.parametrize(
    ("context", "padding"), [((2, 4, 3), "none"), ((1, 9, 6), "zeros"), ((3, 6, 7), "reflect"), ((0, 0, 0), "none")]
)
def test_raw_lies_around_the_labels(cache, context, padding, path, raw, tmp_path) -> None:
    dataset = PrismDataset(
        path, patch_shape=PATCH, channels="0-1", context=context, context_padding=padding, cache=cache,
        cache_folder=tmp_path, n_samples=25,
    )  # fmt: skip
    assert dataset.raw_patch_shape == tuple(p + 2 * c for p, c in zip(PATCH, context, strict=True))
    seen = set()
    for found, labels in dataset:
        assert labels.shape == (1, *PATCH)
        wanted = expected(raw, labels, context, NUMPY_MODE.get(padding, "constant"))
        assert np.array_equal(found.numpy(), wanted)
        seen.add(int(labels[0, 0, 0, 0]))
    assert len(seen) > 10
    again = DataLoader(pickle.loads(pickle.dumps(dataset)), batch_size=None, num_workers=2)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(dataset, again, strict=True))


def test_without_padding_only_patches_with_all_of_their_context_are_drawn(path) -> None:
    dataset = PrismDataset(path, patch_shape=PATCH, context=(4, 7, 6), sampling="grid")
    starts = [np.unravel_index(int(labels[0, 0, 0, 0]) - 1, LABELS) for _, labels in dataset]
    low, high = np.min(starts, 0), np.max(starts, 0) + PATCH
    assert low.tolist() == [2, 2, 2]  # as much further in as the context exceeds what lies before the labels
    assert high.tolist() == [11, 21, 24]
    with pytest.raises(RequestError, match=r"larger than instance crop 3 \(5, 23, 24\)") as caught:
        PrismDataset(path, patch_shape=(6, 8, 8), context=(6, 5, 5))
    assert "context_padding='reflect'" in caught.value.remedy


@pytest.mark.parametrize("context", [-1, (1, 2), "all", 1.5])
def test_a_context_that_cannot_be_meant_is_refused(context, path) -> None:
    with pytest.raises(RequestError, match="context must be a number of voxels"):
        PrismDataset(path, patch_shape=PATCH, context=context)


class ValidUNet(torch.nn.Module):
    """A small 3-D U-Net without padding: its output is 6 voxels smaller on each side in Y and X, and 6 in Z."""

    def __init__(self) -> None:
        super().__init__()
        self.down = torch.nn.Conv3d(1, 4, 3)
        self.bottom = torch.nn.Sequential(torch.nn.Conv3d(4, 8, 3), torch.nn.ReLU(), torch.nn.Conv3d(8, 4, 3))
        self.out = torch.nn.Conv3d(8, 1, 3)

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        fine = torch.relu(self.down(raw))
        coarse = self.bottom(torch.nn.functional.max_pool3d(fine, 2))
        up = torch.nn.functional.interpolate(coarse, scale_factor=2.0)
        cut = [(a - b) // 2 for a, b in zip(fine.shape[2:], up.shape[2:], strict=True)]
        fine = fine[:, :, cut[0] : -cut[0], cut[1] : -cut[1], cut[2] : -cut[2]]
        return self.out(torch.cat([fine, up], 1))


def test_a_valid_u_net_trains_on_patches_with_context(tmp_path) -> None:
    torch.manual_seed(0)
    noise = np.random.default_rng(2)
    labels = (noise.random((8, 20, 20)) < 0.5).repeat(2, 0).repeat(2, 1).repeat(2, 2).astype(np.uint64)
    raw = np.pad(labels * 200, 6).astype(np.uint8)[None]
    crop = write_context_crop(tmp_path / "crop_3.h5", raw, labels, (6, 6, 6))
    dataset = PrismDataset(
        crop, patch_shape=(8, 16, 16), context=6, n_samples=48, label_transform=np.bool_, label_dtype=torch.float32,
        raw_transform=lambda raw: raw.astype(np.float32) / 255,
    )  # fmt: skip
    network = ValidUNet()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    losses = []
    for raw_batch, target in DataLoader(dataset, batch_size=2):
        output = network(raw_batch)
        assert output.shape == target.shape
        loss = torch.nn.functional.binary_cross_entropy_with_logits(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-6:]) < 0.5 * sum(losses[:6])


def test_a_cache_folder_is_a_source_and_says_what_it_holds(tmp_path) -> None:
    for split, crop in ((Split.INSTANCE, 0), (Split.INSTANCE, 2), (Split.SEMANTIC, 0), (Split.SEMANTIC, 1)):
        write_crop(tmp_path, split, crop, crop_arrays(split, crop, None))
    write_crop(tmp_path, Split.INSTANCE, 0, crop_arrays(Split.INSTANCE, 0, None), (0,))
    dataset = PrismDataset(tmp_path, patch_shape=PATCH, n_samples=4)
    assert repr(dataset) == "<PrismDataset instance crops 0, 2: 4 patches of 4 × 8 × 8 voxels, channels 0>"
    assert PrismDataset(tmp_path, "instance", 0, patch_shape=PATCH, channels="all").channels == (0, 1, 2)
    semantic = {crop: PrismDataset(tmp_path, "semantic", crop, patch_shape=PATCH) for crop in (0, 1)}
    assert [dataset.overlaps(semantic[0]), dataset.overlaps(semantic[1])] == [True, False]
    assert not PrismDataset(tmp_path, crops=0, patch_shape=PATCH).overlaps(semantic[0])
    with pytest.raises(RuntimeError, match="no crop's file lies in"):
        PrismDataset(tmp_path / "instance", patch_shape=PATCH)
