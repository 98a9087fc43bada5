"""Take over a file that another cache made, when everything that can be checked says that it is right."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from prismcache.disk import sha256_of
from prismcache.errors import CropCorruptError, RequestError, SourceError, SplitConflictError
from prismcache.layout import FileStamp, Manifest, SourceList, SourceObject, parse_file_name
from prismcache.schema import CropFile, Split
from prismcache_service.cache import CropCache, CropName, Watch
from prismcache_service.crops.catalog import CatalogService
from prismcache_service.engine.programs import run_program
from prismcache_service.pipeline.bucket.source import fingerprint

_COMMAND = (sys.executable, "-m", "prismcache_service.crops.proof")
_RECIPE = "adopted"


class Proof(BaseModel):
    """What a file says of itself; every chunk was read and has the checksum that was stored with it.

    `definition` is that of the file's split, as in the manifest.
    """

    split: Split
    crop: int
    channels: tuple[int, ...]
    format_version: int
    prismcache_version: str
    source: str
    source_fingerprint: str
    missing_chunks: int
    definition: str


async def adopt(path: Path, cache: CropCache, catalog: CatalogService, on_unproven: Callable[[str], None]) -> CropFile:
    """Copy a file into the cache folder and publish it there.

    The file's attributes must name a crop, each chunk must match its checksum, and the source's fingerprint must be the
    bucket's.

    `on_unproven` is called with a sentence if the bucket cannot be read, so that its fingerprint was not compared. The
    file stays where it is; a crop that is cached already stays as it is, and is returned.

    Raises
    ------
    RequestError
        If the file is not a crop of prismcache's format.
    UnknownSplitError, SplitConflictError
        If the catalog has no such split, or describes it in another way than the catalog that the file was made with.
    CropCorruptError
        If the file is damaged, or was made from another version of the crop.
    """
    digest = await cache.threads.read(sha256_of, path)
    proof = Proof.model_validate_json(await run_program(f"reading {path}", *_COMMAND, str(path)))
    folder = CropName(proof.split, proof.crop).folder
    entry = cache.splits.entry(proof.split)
    if proof.definition != entry.definition:
        raise SplitConflictError(
            f"{path} is of a split {entry.name!r} that another catalog describes",
            remedy="Name the catalog that the file was made with in PRISMCACHE_CATALOG.",
        )
    objects, endpoint = await _listing(catalog, proof, on_unproven)
    if objects is not None and fingerprint(objects) != proof.source_fingerprint:
        raise CropCorruptError(
            f"{path} was made from another version of {folder} than the bucket has",
            remedy="`prismcache ensure` makes the crop from the bucket.",
        )
    is_complete = await _has_all_channels(path, proof, catalog)
    name = CropName(proof.split, proof.crop, None if is_complete else proof.channels)
    await cache.threads.run(cache.prepare, name.split)
    watch = Watch()
    while (token := await cache.locks.acquire(name.lock, watch)) is None:
        pass
    async with cache.locks.held(name.lock, token):
        found = await cache.find(name)
        if found.file is not None and found.file.channels == proof.channels:
            return found.file
        temporary = cache.temporary(name, token)
        try:
            if await cache.threads.read(_copy, path, temporary) != digest:
                raise CropCorruptError(f"{path} changed while it was copied")
            manifest = _manifest(proof, digest, temporary.stat().st_size, endpoint, is_complete=is_complete)
            sources = SourceList(source_fingerprint=proof.source_fingerprint, objects=tuple(objects or ()))
            return await cache.threads.run(cache.publish, name, temporary, manifest, sources, token)
        finally:
            await cache.threads.run(lambda: temporary.unlink(missing_ok=True))


def _copy(path: Path, target: Path) -> str:
    """Copy a file to the disk, and return the SHA-256 of the copy."""
    shutil.copyfile(path, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
        return sha256_of(file.fileno())


async def _has_all_channels(path: Path, proof: Proof, catalog: CatalogService) -> bool:
    """Return whether the file has all channels of its crop, by the catalog or, where it is unknown, by its name."""
    try:
        known = await catalog.crops()
    except SourceError:
        known = await catalog.recall()
    for info in known:
        if (info.split, info.crop) == (proof.split, proof.crop) and info.raw_shape is not None:
            return len(proof.channels) == info.raw_shape[0]
    named = parse_file_name(path.name)
    if named is None:
        raise RequestError(
            f"nothing says whether {path} has all channels of its crop", remedy="Name it as prismcache did: crop_0.h5."
        )
    return named.channels is None


async def _listing(
    catalog: CatalogService, proof: Proof, on_unproven: Callable[[str], None]
) -> tuple[list[SourceObject] | None, str]:
    try:
        return await catalog.objects(proof.split, proof.crop)
    except SourceError as error:
        on_unproven(f"{CropName(proof.split, proof.crop).folder} was not compared with the bucket: {error}")
        return None, ""


def _manifest(proof: Proof, sha256: str, size: int, endpoint: str, *, is_complete: bool) -> Manifest:
    return Manifest(
        format_version=proof.format_version,
        split=proof.split,
        crop=proof.crop,
        channels=proof.channels,
        complete=is_complete,
        sha256=sha256,
        size=size,
        stamp=FileStamp(size=size, mtime_ns=0, ctime_ns=0),
        source=proof.source,
        endpoint=endpoint,
        source_fingerprint=proof.source_fingerprint,
        missing_chunks=proof.missing_chunks,
        definition=proof.definition,
        recipe=_RECIPE,
        prismcache_version=proof.prismcache_version,
        libraries={},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
