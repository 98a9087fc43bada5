"""`Crop.facts` and `Crop.neurons()`, read from the file that the service's writer makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prismcache import Crop, CropCorruptError, CropNotCachedError, PrismError, StorageError
from prismcache._testing_files import VOXEL_SIZE, crop_arrays, write_crop, write_product
from prismcache.schema import Product, Split


def crop_with_facts(root: Path, split: Split) -> Path:
    path = Path(write_crop(root, split, 3, crop_arrays(split, 3, None)).path)
    write_product(root, split, 3, crop_arrays(split, 3, None), Product.FACTS)
    return path


@pytest.mark.parametrize("split", [Split.INSTANCE, Split.SEMANTIC])
def test_facts_and_neurons_are_those_of_the_voxels(split: Split, tmp_path: Path) -> None:
    with Crop(crop_with_facts(tmp_path, split)) as crop:
        facts, neurons = crop.facts, crop.neurons()
        raw, labels, ids, offset = crop.raw[:], crop.labels[:], crop.labels_ids, crop.offset
    assert (facts.split, facts.crop_id, facts.labels) == (split, 3, len(ids) - 1)
    assert facts.foreground == pytest.approx((labels > 0).mean())
    assert [each.channel for each in facts.channels] == list(range(len(raw)))
    assert [each.percentiles[99.9] for each in facts.channels] == [
        np.percentile(channel, 99.9, method="inverted_cdf") for channel in raw
    ]
    if split is Split.SEMANTIC:
        assert facts.classes == {int(each): int((ids[labels] == each).sum()) for each in ids}
    else:
        assert facts.classes is None
    assert {column.shape for column in neurons.values()} == {(len(ids) - 1,)}
    np.testing.assert_array_equal(neurons["label"], np.arange(1, len(ids), dtype=np.uint32))
    np.testing.assert_array_equal(neurons["id"], ids[1:])
    for row, label in enumerate(neurons["label"]):
        mask = labels == label
        places = np.argwhere(mask)
        assert neurons["voxels"][row] == len(places)
        for axis, letter in enumerate("zyx"):
            box = neurons[f"{letter}_start"][row], neurons[f"{letter}_stop"][row]
            assert box == (places[:, axis].min(), places[:, axis].max() + 1)
            centroid = offset[axis] + places[:, axis].mean() * VOXEL_SIZE[axis]
            assert neurons[f"centroid_{letter}_nm"][row] == pytest.approx(centroid)
        for channel, voxels in enumerate(raw):
            assert neurons[f"ch_{channel:02d}"][row] == pytest.approx(voxels[mask].mean())


def is_absent(facts: Path) -> None:
    facts.unlink()


def is_half(facts: Path) -> None:
    facts.write_bytes(facts.read_bytes()[:200])


def lacks_its_labels(facts: Path) -> None:
    content = json.loads(facts.read_text())
    del content["labels"]
    facts.write_text(json.dumps(content))


def is_of_crop_4(facts: Path) -> None:
    facts.write_text(facts.read_text().replace('"crop_id":3', '"crop_id":4'))


def is_of_another_version(facts: Path) -> None:
    content = json.loads(facts.read_text())
    facts.write_text(json.dumps(content | {"crop_sha256": "0" * 64}))


def cannot_be_read(facts: Path) -> None:
    facts.unlink()
    facts.mkdir()


@pytest.mark.parametrize(
    ("harm", "error", "message", "remedy"),
    [
        (is_absent, CropNotCachedError, "crop_3.facts.json", "prismcache ensure instance 3 --product facts"),
        (is_half, CropCorruptError, "holds no facts", "Delete the file"),
        (lacks_its_labels, CropCorruptError, "holds no facts: labels Field required", "Delete the file"),
        (is_of_crop_4, CropCorruptError, "holds the facts of instance crop 4", "Delete the file"),
        (is_of_another_version, CropCorruptError, "made from another version of the crop", "Delete the file"),
        (cannot_be_read, StorageError, "cannot be read: Is a directory", None),
    ],
)
def test_facts_that_cannot_be_used_are_a_typed_error(
    harm: Callable[[Path], None], error: type[PrismError], message: str, remedy: str | None, tmp_path: Path
) -> None:
    path = crop_with_facts(tmp_path, Split.INSTANCE)
    harm(path.with_name("crop_3.facts.json"))
    with pytest.raises(error, match=message) as raised:
        Crop(path).neurons()
    assert remedy is None or remedy in str(raised.value.remedy)
