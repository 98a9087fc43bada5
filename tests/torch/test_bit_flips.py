"""A bit flips in a cached file, and the file's stamps stay as they were: read by ours, it is never silently wrong."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_em.data.datasets.light_microscopy.e11bio import get_e11bio_dataset as reference_dataset

from prismcache import Crop, CropCorruptError, PrismClient, Verdict
from prismcache.disk import stamp_of
from prismcache.layout import Manifest, manifest_path
from prismcache.schema import Split
from prismcache.torch import PrismDataset
from prismcache.torch_em import get_e11bio_dataset
from tests.support.cache_root import Lab, tiny_spec
from tests.support.labs import running_lab

pytestmark = pytest.mark.torch

SPEC = tiny_spec(0)
FLIPS = 48
REMADE = range(0, FLIPS, 8)
"""Flips after which the crop is fetched again; each takes 0.3 s."""


@dataclass(frozen=True)
class Cached:
    """A cached crop and how to damage it."""

    lab: Lab
    client: PrismClient
    path: Path
    content: bytes

    def put(self, content: bytes) -> None:
        """Overwrite the file as a failing disk does: for the manifest nobody touched it."""
        self.path.write_bytes(content)
        place = self.lab.root / manifest_path(Split.INSTANCE, SPEC.crop)
        manifest = Manifest.model_validate_json(place.read_bytes())
        place.write_text(manifest.model_copy(update={"stamp": stamp_of(self.path.stat())}).model_dump_json())


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cached]:
    with running_lab(tmp_path_factory.mktemp("flips"), [SPEC]) as lab, PrismClient(settings=lab.settings()) as client:
        [path] = map(Path, client.ensure("instance", SPEC.crop, progress=False))
        yield Cached(lab, client, path, path.read_bytes())


def through_crop(path: Path) -> list[Any]:
    with Crop(path) as crop:
        facts = [crop.split, crop.crop_id, crop.channels, crop.shape, crop.offset, crop.voxel_size]
        voxels = [crop.raw[:], crop.labels[:], crop.original_labels[:], crop.labels_ids]
        return [*facts, crop.provenance.source, crop.provenance.source_fingerprint, *voxels]


def through_our_dataset(cache: str, folder: Path, path: Path) -> list[Any]:
    dataset = PrismDataset(
        path, patch_shape=SPEC.labels_shape, channels="all", cache=cache, cache_folder=folder, label_values="original",
        label_dtype=torch.uint64, sampling="grid",
    )  # fmt: skip
    return [tensor.numpy() for index in range(len(dataset)) for tensor in dataset[index]]


def through_torch_em(loader: Callable[..., Any], root: Path) -> list[Any]:
    dataset = loader(
        root, SPEC.labels_shape, crop_ids=[SPEC.crop], n_samples=1, raw_transform=lambda raw: raw,
        transform=lambda raw, labels: (raw, labels),
    )  # fmt: skip
    return [tensor.numpy() for tensor in dataset[0]]


def are_same(found: list[Any], right: list[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, right, strict=True))


def test_a_flipped_bit_is_an_error_or_makes_no_difference(cached: Cached, tmp_path: Path) -> None:
    chance = random.Random(13)
    readers: dict[str, Callable[[Path], list[Any]]] = {
        "Crop": lambda _: through_crop(cached.path),
        "torch_em": lambda _: through_torch_em(get_e11bio_dataset, cached.lab.root),
    } | {
        f"PrismDataset, cache {cache}": lambda folder, cache=cache: through_our_dataset(cache, folder, cached.path)
        for cache in ("none", "ram", "mmap")
    }
    right = {name: read(tmp_path / "right") for name, read in readers.items()}
    wrong, errors = [], 0
    for number in range(FLIPS):
        place, bit = chance.randrange(len(cached.content)), chance.randrange(8)
        damaged = bytearray(cached.content)
        damaged[place] ^= 1 << bit
        cached.put(bytes(damaged))
        assert cached.client.ensure("instance", SPEC.crop, progress=False) == [str(cached.path)]
        for name, read in readers.items():
            try:
                found = read(tmp_path / str(number))
            except CropCorruptError:
                errors += 1
            except OSError:  # of h5py, which torch_em reads chunks with
                errors += 1
                assert name == "torch_em"
            else:
                if not are_same(found, right[name]):
                    wrong.append((place, bit, name))
        [verified] = cached.client.verify("instance", SPEC.crop)
        assert verified.verdict is Verdict.CORRUPT, (place, bit)
        if number in REMADE or os.environ.get("PRISMCACHE_SWEEP") == "all":
            cached.client.ensure("instance", SPEC.crop, progress=False)
            assert cached.path.read_bytes() == cached.content
        else:
            cached.put(cached.content)
    assert wrong == []
    assert errors > FLIPS


def test_the_reference_reads_a_sealed_file(cached: Cached) -> None:
    cached.put(cached.content)
    ours, theirs = (
        through_torch_em(loader, cached.lab.root)
        for loader in (get_e11bio_dataset, partial(reference_dataset, download=False))
    )
    assert are_same(ours, theirs)
