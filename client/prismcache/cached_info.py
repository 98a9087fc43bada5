"""What the cached files of this machine say of their crops, for when neither bucket nor service can be read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from prismcache.disk import stamp_of
from prismcache.errors import PrismError
from prismcache.layout import Manifest, cache_state, manifest_path, parse_crop_file_name
from prismcache.numbers import SPLIT_NAME
from prismcache.schema import ArrayInfo, CropFile, CropInfo, Split
from prismcache.verified import VerifiedFiles


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
    found = []
    for path in sorted((mount / split.value).glob("crop_*.h5")):
        if (name := parse_crop_file_name(path.name)) is None:
            continue
        with suppress(OSError, ValueError):
            manifest = Manifest.model_validate_json((mount / manifest_path(split, *name)).read_bytes())
            found.append(manifest.file_at(path))
    return found


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
