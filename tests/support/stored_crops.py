"""Crop files that are published in a cache folder through the product's own cache, of any size, without a bucket."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from prismcache.layout import FORMAT_VERSION, HDF5_SIGNATURE, FileStamp, Manifest, SourceList
from prismcache.schema import CropFile, Product
from prismcache_service.cache import CropCache, CropName


def store_crop(cache: CropCache, name: CropName, size: int = 1000, *, token: str = "") -> CropFile:
    """Publish a file of `size` bytes that begins as HDF5 and holds nothing; the same bytes for the same name."""
    cache.prepare(name.split)
    token = token or uuid.uuid4().hex
    content = _content(name, size)
    temporary = cache.temporary(name, token)
    temporary.write_bytes(content)
    sources = SourceList(source_fingerprint="f", objects=())
    return cache.publish(name, temporary, manifest_of(name, content), sources, token)


def manifest_of(name: CropName, content: bytes, **changes: Any) -> Manifest:
    """The manifest of a file with this content, which has channels 0 to 2 unless the name says otherwise."""
    return Manifest(
        format_version=FORMAT_VERSION,
        split=name.split,
        crop=name.crop,
        channels=name.channels or (0, 1, 2),
        complete=name.channels is None,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        stamp=FileStamp(size=len(content), mtime_ns=0, ctime_ns=0),
        source="s3://bucket",
        endpoint="http://s3",
        source_fingerprint="f",
        missing_chunks=0,
        recipe="test",
        prismcache_version="0",
        libraries={},
        created_at="2025-01-01T00:00:00+00:00",
        context=name.context,
        product=name.product,
        crop_sha256="" if name.product is Product.CROP else _sha256(CropName(name.split, name.crop), len(content)),
    ).model_copy(update=changes)


def _sha256(name: CropName, size: int) -> str:
    return hashlib.sha256(_content(name, size)).hexdigest()


def _content(name: CropName, size: int) -> bytes:
    return (HDF5_SIGNATURE + name.lock.encode()).ljust(size, b".")
