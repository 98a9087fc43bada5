"""``python -m tests.support.adapter_files FOLDER``: cached crops, exports of them, and what they must hold.

The adapter tests run this with another Python: the pipeline and gunpowder want different versions of zarr.

=========================  ============================================================
in FOLDER                  content
=========================  ============================================================
``cache``                  the cache folder: instance/0, semantic/1, synapses/0
``instance.zarr`` …        each crop as OME-Zarr
``instance.npz`` …         `ReferenceCrop`'s fields, of the source
``crop_3.h5``              an instance crop whose raw reaches beyond the labels
``context.zarr``           that crop as OME-Zarr
``e11.zarr``               that crop in E11's layout
``context.npz``            its ``raw`` and ``labels`` (original ids)
``synapses.zarr``          the synapse crop, cached as synapses/0, as OME-Zarr
``synapses-e11.zarr``      that crop in E11's layout
``synapses.npz``           its arrays by name, and their offsets (nm) as ``NAME_at``
=========================  ============================================================
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from prismcache import PrismClient
from prismcache.adapters.zarr import to_zarr
from tests.support.bucket import make_bucket
from tests.support.cache_root import tiny_spec
from tests.support.context_crops import write_context_crop
from tests.support.crops import crop_folder
from tests.support.oracle import reference_crop
from tests.support.own_splits import synapse_arrays, world, write_synapses
from tests.support.s3 import S3Server

CONTEXT_RAW, CONTEXT_LABELS, CONTEXT_BEFORE = (84, 200, 210), (56, 120, 130), (14, 40, 42)
"""Shapes (Z, Y, X) in voxels: raw has less context than E11's request of 16, 46 and 46, so some must be padded."""


def main(folder: Path) -> None:
    """Make all of it."""
    specs = [tiny_spec(0), tiny_spec(1, "semantic")]
    bucket = make_bucket(folder / "s3", specs)
    with S3Server(bucket) as server, PrismClient(folder / "cache", s3_endpoint_url=server.endpoint) as client:
        for spec in specs:
            path = client.ensure(spec.split, spec.crop, progress=False)[0]
            to_zarr(path, folder / f"{spec.split}.zarr", chunks=(8, 16, 16))
            expected = reference_crop(crop_folder(bucket, spec))
            np.savez(folder / spec.split, **dataclasses.asdict(expected))
        synapses = synapse_arrays()
        write_synapses(bucket, synapses)
        path = client.ensure("synapses", 0, progress=False)[0]
        to_zarr(path, folder / "synapses.zarr")
        to_zarr(path, folder / "synapses-e11.zarr", layout="e11")
    arrays: dict[str, Any] = {}
    for name, (voxels, start) in synapses.items():
        arrays |= {name: voxels, f"{name}_at": world(start)}
    np.savez(folder / "synapses", **arrays)
    noise = np.random.default_rng(3)
    raw = noise.integers(0, 256, (2, *CONTEXT_RAW), np.uint8)
    blocks = noise.integers(0, 4, [-(-extent // 10) for extent in CONTEXT_LABELS]).astype(np.uint64) * 10**15
    labels = blocks.repeat(10, 0).repeat(10, 1).repeat(10, 2)[tuple(map(slice, CONTEXT_LABELS))]
    context = write_context_crop(folder / "crop_3.h5", raw, labels, CONTEXT_BEFORE)
    to_zarr(context, folder / "context.zarr")
    to_zarr(context, folder / "e11.zarr", layout="e11")
    np.savez(folder / "context", raw=raw, labels=labels)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
