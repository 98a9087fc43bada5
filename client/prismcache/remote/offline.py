"""Find cached crops on a mount by their manifests, for when the service does not respond."""

from __future__ import annotations

from pathlib import Path

from prismcache.layout import FORMAT_VERSION, FileName, Manifest, crop_path, manifest_path
from prismcache.schema import NO_CONTEXT, Context, CropFile, CropProgress, Job, JobRequest, Split, State

ID = "known"
"""Id of a job that was put together without the service."""


def known_job(request: JobRequest, mount: Path | None) -> Job | None:
    """Return a final job for `request`, if the mount has a manifest for each of its crops; else None.

    A request for all crops is never known, since only the service knows which crops are published.
    """
    if mount is None or request.crops is None:
        return None
    files = [_known_file(mount, request, crop) for crop in request.crops]
    crops = tuple(CropProgress(crop=file.crop, state=State.DONE, file=file) for file in files if file is not None)
    if len(crops) < len(files):
        return None
    return Job(
        id=ID,
        revision=0,
        state=State.DONE,
        split=request.split,
        channels=request.channels,
        crops=crops,
        strict=request.strict,
        context=request.context,
        product=request.product,
    )


def _known_file(mount: Path, request: JobRequest, crop: int) -> CropFile | None:
    contexts: tuple[Context, ...] = (request.context,) if request.context == NO_CONTEXT else (request.context, "all")
    for context in contexts:
        for channels in (None, request.channels):
            file = _read(mount, request.split, FileName(crop, channels, context, request.product))
            if file is None or (request.strict and file.missing_chunks):
                continue
            if request.channels is None or set(request.channels) <= set(file.channels):
                return file
    return None


def _read(mount: Path, split: Split, name: FileName) -> CropFile | None:
    try:
        manifest = Manifest.model_validate_json((mount / manifest_path(split, *name)).read_bytes())
    except (OSError, ValueError):
        return None
    channels = None if manifest.complete else manifest.channels
    found = (manifest.split, FileName(manifest.crop, channels, manifest.context, manifest.product))
    if found != (split, name) or manifest.format_version > FORMAT_VERSION:
        return None
    return manifest.file_at(mount / crop_path(split, *name))
