"""Crops as the cached files of this machine describe them, for when neither the bucket nor the service can be read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from prismcache.disk import VerifiedFiles, stamp_of
from prismcache.errors import PrismError
from prismcache.layout import (
    FORMAT_VERSION,
    FileName,
    cache_state,
    crop_path,
    manifest_of,
    parse_crop_file_name,
)
from prismcache.numbers import SPLIT_NAME
from prismcache.schema import (
    NO_CONTEXT,
    ArrayInfo,
    Context,
    CropFile,
    CropInfo,
    CropProgress,
    Job,
    JobRequest,
    Split,
    State,
)


def described(info: CropInfo) -> CropInfo:
    """Return `info` with shapes, voxel size and offset of its fullest cached file, where they are unknown.

    The shape of raw is then the one in the file, which the bucket's may exceed. Nothing is added where h5py is not
    installed or the file cannot be read.
    """
    if info.raw_shape is not None or not info.files:
        return info
    fullest = max(info.files, key=lambda file: len(file.channels))
    with suppress(ImportError, PrismError, OSError, KeyError):
        from prismcache.crop import Crop  # here, since it needs h5py

        with Crop(fullest.path) as crop:
            channels = int(crop.file.attrs["num_channels"])
            found = {
                "raw_shape": (channels, *crop.raw_shape),
                "labels_shape": crop.shape if crop.has_labels else None,
                "has_labels": crop.has_labels,
                "expansion": crop.entry.expansion,
                "arrays": tuple(
                    ArrayInfo(
                        name=name,
                        shape=crop.array(name).shape,
                        dtype=crop.array(name).dtype.name,
                        offset=crop.array_offset(name),
                    )
                    for name in crop.arrays
                ),
                "offset": crop.offset,
                "voxel_size": crop.voxel_size,
            }
            return info.model_copy(update=found)
    return info


def splits_below(folder: Path) -> list[Split]:
    """Return the splits that have a folder below a mount or among the downloads."""
    return [Split(path.name) for path in sorted(folder.glob("*")) if SPLIT_NAME.fullmatch(path.name) and path.is_dir()]


def files_on_mount(mount: Path, split: Split) -> list[CropFile]:
    """Return the files of a split that the manifests below a mount name and that are there."""
    names = (parse_crop_file_name(path.name) for path in sorted((mount / split.value).glob("crop_*.h5")))
    files = (_file_on_mount(mount, split, FileName(*name)) for name in names if name is not None)
    return [file for file in files if file is not None]


def files_downloaded(folder: Path, split: Split, verified: VerifiedFiles) -> list[CropFile]:
    """Return the files of a split among the downloads of one service that were found right."""
    found = []
    for path in sorted((folder / split.value).glob("crop_*.h5")):
        with suppress(ImportError, OSError, PrismError):
            name, status = parse_crop_file_name(path.name), path.stat()
            sha256 = verified.recall(path, stamp_of(status))
            if name is None or sha256 is None:
                continue
            from prismcache.crop import Crop

            with Crop(path) as crop:
                channels = crop.channels
            found.append(
                CropFile(
                    split=split, crop=name[0], channels=channels, path=str(path), size=status.st_size, sha256=sha256
                )
            )
    return found


def catalog_of(files: list[CropFile]) -> list[CropInfo]:
    """Return a catalog of the crops that have these files, by split and number."""
    by_crop: dict[tuple[Split, int], list[CropFile]] = {}
    for file in files:
        by_crop.setdefault((file.split, file.crop), []).append(file)
    return [
        described(CropInfo(split=split, crop=crop, state=cache_state(own, is_making=False), files=tuple(own)))
        for (split, crop), own in sorted(by_crop.items())
    ]


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
            file = _file_on_mount(mount, request.split, FileName(crop, channels, context, request.product))
            if file is None or (request.strict and file.missing_chunks):
                continue
            if request.channels is None or set(request.channels) <= set(file.channels):
                return file
    return None


def _file_on_mount(mount: Path, split: Split, name: FileName) -> CropFile | None:
    """Return the file that its manifest describes; None if no manifest of a known format does."""
    path = mount / crop_path(split, *name)
    manifest = manifest_of(path)
    if manifest is None or manifest.format_version > FORMAT_VERSION:
        return None
    channels = None if manifest.complete else manifest.channels
    found = (manifest.split, FileName(manifest.crop, channels, manifest.context, manifest.product))
    return manifest.file_at(path) if found == (split, name) else None
