"""Read a whole file of a crop, and write what it holds, or what is wrong with it.

``python -m prismcache_service.crops.proof FILE`` writes a `Proof` to standard output, or a problem: see
`engine.programs`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from prismcache.crop import Crop
from prismcache.errors import CropCorruptError, RequestError
from prismcache.layout import FORMAT_VERSION
from prismcache_service.crops.adoption import Proof
from prismcache_service.engine.programs import end_program

_SLAB = 16  # voxels along Z: one row of chunks


def prove(path: str) -> Proof:
    """Read the whole file.

    Raises
    ------
    CropCorruptError
        If a chunk does not match its checksum, or a label has no original id.
    RequestError
        If the file is not a crop without context of a known format.
    """
    with Crop(path) as crop:
        provenance, split = crop.provenance, crop.split
        if not 1 <= provenance.format_version <= FORMAT_VERSION:
            raise RequestError(f"{path} has format {provenance.format_version}; known are 1 to {FORMAT_VERSION}")
        if crop.raw_shape != crop.shape:
            raise RequestError(f"{path} has context, raw {crop.raw_shape} around labels {crop.shape}")
        for dataset in (*map(crop.channel, crop.channels), *map(crop.array, crop.arrays)):
            for _ in _slabs(dataset):
                pass
        if crop.has_labels:
            ids = len(crop.labels_ids)
            largest = max((int(voxels.max(initial=0)) for voxels in _slabs(crop.labels)), default=0)
            if largest >= ids:
                raise CropCorruptError(f"{path}: label {largest} has no original id")
        return Proof(
            split=split,
            crop=crop.crop_id,
            channels=crop.channels,
            format_version=provenance.format_version,
            prismcache_version=provenance.prismcache_version,
            source=provenance.source,
            source_fingerprint=provenance.source_fingerprint,
            missing_chunks=provenance.missing_chunks,
            definition=crop.entry.definition,
        )


def _slabs(dataset: Any) -> Iterator[Any]:
    """Read a dataset, (Z, Y, X), one row of chunks after the other; inflating compares the chunks' Adler-32."""
    for z in range(0, dataset.shape[0], _SLAB):
        yield dataset[z : z + _SLAB]


def _prove_or_advise() -> bytes:
    try:
        return prove(sys.argv[1]).model_dump_json().encode()
    except CropCorruptError as error:
        error.remedy = "Leave the file; `prismcache ensure` makes the crop from the bucket."
        raise


if __name__ == "__main__":
    end_program(_prove_or_advise)
