"""A crop as OME-Zarr (NGFF 0.4, zarr format 2), for what does not read HDF5. Needs zarr 3 (``prismcache[service]``).

======================  ===============================================================================
path in the folder      content
======================  ===============================================================================
``.``                   image: ``multiscales`` with one scale, ``omero`` channel names, ``prismcache``
``0``                   raw, (C, Z, Y, X) uint8
``labels/<split>``      label image; ``labels/<split>/0`` is (Z, Y, X)
``labels_ids``          (n+1,) uint64, the source's id of each consecutive label
======================  ===============================================================================

Both arrays carry ``offset``, ``resolution``, ``voxel_size`` (nm; Z,Y,X), ``axis_names``, ``units`` and ``types``, as
gunpowder, funlib, volara and dacapo read them; ``offset`` and the NGFF translation are the same numbers.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismcache.adapters import labels_of
from prismcache.arguments import Numbers, as_channels
from prismcache.crop import Crop, LabelValues, ngff
from prismcache.disk import disk_errors
from prismcache.errors import MissingExtraError, RequestError
from prismcache.layout import LABELS_IDS

if TYPE_CHECKING:
    import numpy as np
    import zarr

CHUNKS = (64, 64, 64)


def to_zarr(
    path: os.PathLike[str] | str,
    destination: os.PathLike[str] | str,
    *,
    channels: Numbers | None = None,
    label_values: LabelValues | None = None,
    label_dtype: str | None = None,
    chunks: Sequence[int] = CHUNKS,
) -> Path:
    """Write a crop as OME-Zarr; the folder appears when it is complete. Memory holds a few rows of chunks along X.

    Parameters
    ----------
    path
        A crop's file.
    destination
        A folder that is not there yet, as ``crop_0.zarr``.
    channels
        Numbers of the channels wanted, which come in ascending order; None is all of the file's.
    label_values
        "consecutive", "original" or None; see `prismcache.adapters`.
    label_dtype
        Any integer type that holds all of the labels, as "uint8"; None is uint32 for consecutive ones, else uint64.
    chunks
        (Z, Y, X) in voxels; raw has one channel a chunk.

    Returns
    -------
    Path
        The folder, absolute.

    Raises
    ------
    RequestError
        If the destination exists, or an argument cannot be meant.
    UnknownChannelError
        If the file lacks a channel.
    StorageError
        If the disk refuses.
    MissingExtraError
        If zarr 3 is not installed.

    Examples
    --------
    >>> to_zarr("/lab/prism/instance/crop_0.h5", "/scratch/crop_0.zarr", channels=[0, 3])
    PosixPath('/scratch/crop_0.zarr')
    """
    target = Path(os.path.abspath(destination))
    if len(chunks) != 3 or min(chunks) < 1:
        raise RequestError(f"chunks must be three positive numbers (Z, Y, X), not {tuple(chunks)!r}")
    with Crop(path) as crop, _published(target) as folder:
        wanted = as_channels(channels) or crop.channels
        raw, labels = [crop.channel(channel) for channel in wanted], labels_of(crop, label_values)
        dtype = _label_dtype(crop, label_dtype or labels.dtype.name, consecutive=labels.dtype == "uint32")
        sizes = [min(size, extent) for size, extent in zip(chunks, crop.shape, strict=True)]

        image = _group(folder)
        array = _array(image, "0", (len(raw), *crop.shape), (1, *sizes), "uint8", crop)
        for index, channel in enumerate(raw):
            _copy(channel, array, (index,), sizes)
        ids = crop.labels_ids
        _create(image, LABELS_IDS, ids.shape, ids.shape, "uint64", {})[...] = ids
        name = crop.split.value
        segmentation = image.create_group("labels", attributes={"labels": [name]}).create_group(name)
        _copy(labels, _array(segmentation, "0", crop.shape, tuple(sizes), dtype, crop), (), sizes)
        where = {"offset": crop.offset, "voxel_size": crop.voxel_size}
        image.attrs.update(
            {
                "multiscales": [ngff.multiscale(f"{name}/crop_{crop.crop_id}", **where, has_channels=True)],
                "omero": ngff.omero(wanted),
                "prismcache": ngff.origin(name, crop.crop_id, wanted, crop.provenance),
            }
        )
        segmentation.attrs.update(
            {
                "multiscales": [ngff.multiscale(f"{name} labels", **where, has_channels=False)],
                "image-label": ngff.image_label(),
            }
        )
    return target


@contextmanager
def _published(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes it when the block ends, or vanishes when the block fails."""
    if os.path.lexists(target):
        raise RequestError(f"{target} exists already", remedy="Name another folder, or delete it first.")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with disk_errors(target, "the export"):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _group(folder: Path) -> zarr.Group:
    try:
        import zarr

        return zarr.open_group(str(folder), mode="w", zarr_format=2)
    except (ImportError, TypeError) as error:  # TypeError: zarr 2 knows no zarr_format
        raise MissingExtraError(
            "writing OME-Zarr needs zarr 3, which is not installed", remedy='pip install "prismcache[service]"'
        ) from error


def _create(
    group: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, attributes: Any
) -> zarr.Array[Any]:
    keys: Any = {"name": "v2", "separator": "/"}
    return group.create_array(
        name, shape=shape, chunks=chunks, dtype=dtype, chunk_key_encoding=keys, attributes=attributes
    )


def _array(
    group: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, crop: Crop
) -> zarr.Array[Any]:
    place = ngff.place(crop.offset, crop.voxel_size, has_channels=len(shape) == 4)
    return _create(group, name, shape, chunks, dtype, place)


def _copy(source: Any, target: zarr.Array[Any], index: tuple[Any, ...], chunks: Sequence[int]) -> None:
    """Copy (Z, Y, X) voxels, one row of chunks along X after the other."""
    depth, height, _ = source.shape
    for z in range(0, depth, chunks[0]):
        for y in range(0, height, chunks[1]):
            row = slice(z, z + chunks[0]), slice(y, y + chunks[1])
            target[(*index, *row)] = source[row].astype(target.dtype)


def _label_dtype(crop: Crop, name: str, *, consecutive: bool) -> str:
    """The name, if the type holds every label."""
    import numpy as np

    try:
        largest = int(np.iinfo(name).max)
    except (TypeError, ValueError):
        raise RequestError(f"label_dtype must name an integer type, not {name!r}") from None
    ids: np.ndarray[Any, Any] = crop.labels_ids
    needed = len(ids) - 1 if consecutive else int(ids.max())
    if needed > largest:
        raise RequestError(f"{crop.path} has the label {needed}, which {name} does not hold")
    return name
