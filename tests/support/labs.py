"""Start a lab (bucket, S3 server, fault proxy, cache folder) for the tests of one module or of one test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.cache_root import Lab
from tests.support.crops import BUCKET, CropSpec, write_crop
from tests.support.faults import FaultProxy
from tests.support.s3 import S3Server


@contextmanager
def running_lab(folder: Path, specs: Iterable[CropSpec] = (), *, bucket_changes: bool = False) -> Iterator[Lab]:
    """A lab in `folder` with these crops in its bucket and nothing in its cache; ended with the block.

    Unless `bucket_changes`, the server keeps what it has once listed: hashing every object anew for each listing is
    most of its work.
    """
    bucket_dir = folder / "s3"
    (bucket_dir / BUCKET).mkdir(parents=True)
    for spec in specs:
        write_crop(bucket_dir, spec)
    keep = 0 if bucket_changes else 86_400
    with S3Server(bucket_dir, dir_cache_seconds=keep) as server, FaultProxy(server.endpoint) as proxy:
        yield Lab(bucket_dir, proxy, folder / "root")
