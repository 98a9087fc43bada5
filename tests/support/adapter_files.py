"""``python -m tests.support.adapter_files FOLDER``: cached crops, exports of them, and what they must hold.

The adapter tests run this with another Python: the pipeline and gunpowder want different versions of zarr.

=========================  ============================================================
in FOLDER                  content
=========================  ============================================================
``cache``                  the cache folder: instance/0, semantic/1
``instance.zarr`` …        each crop as OME-Zarr
``instance.npz`` …         `ReferenceCrop`'s fields, of the source
=========================  ============================================================
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from prismcache import PrismClient
from prismcache.adapters.zarr import to_zarr
from tests.support.bucket import make_bucket
from tests.support.cache_root import tiny_spec
from tests.support.crops import crop_folder
from tests.support.oracle import reference_crop
from tests.support.s3 import S3Server


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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
