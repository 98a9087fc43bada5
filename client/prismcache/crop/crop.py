"""One cached crop: what it is, where it lies, and any box of its voxels. Needs h5py (``prismcache[torch]``).

::

    with Crop("/lab/prism/instance/crop_0.h5") as crop:
        crop.channels, crop.shape, crop.voxel_size  # (0, …, 17), (200, 500, 500), (400, 168, 168)
        raw = crop.raw[0, :32, 100:356, 100:356]  # only these voxels are read
        box = crop.read([slice(8000, 20_800), slice(0, 43_008), slice(0, 43_008)], channels=[0, 3], units="nm")
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from prismcache.arguments import Numbers, as_channels
from prismcache.crop.boxes import Box, Shape3, Slices3, voxel_box
from prismcache.crop.provenance import CITATION, Provenance
from prismcache.crop.voxels import OriginalLabels, RawVoxels
from prismcache.errors import (
    CropCorruptError,
    CropNotCachedError,
    MissingExtraError,
    RequestError,
    UnknownChannelError,
)
from prismcache.layout import LABELS, LABELS_IDS, Manifest, manifest_path, parse_crop_file_name, raw_dataset
from prismcache.schema import Split

if TYPE_CHECKING:
    import h5py
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CITATION", "Box", "Crop", "LabelValues", "OriginalLabels", "Provenance", "RawVoxels"]

LabelValues = Literal["consecutive", "original"]

_FOREIGN = "Fetch the crop with `prismcache ensure`: files that other programs wrote lack it."


class Crop:
    """A cached crop, opened when it is first looked into; read only, without HDF5 locks.

    It may be pickled and used after a fork: each process opens the file for itself. Everything fails with the errors
    below if the file is not there or not what it should be.

    Parameters
    ----------
    path
        A crop's file, as `PrismClient.ensure` returns it.

    Raises
    ------
    MissingExtraError
        If h5py is not installed.
    CropNotCachedError
        If there is no such file.
    CropCorruptError
        If it is no crop's file.

    Examples
    --------
    >>> path = PrismClient("/lab/prism").ensure("instance", 0, progress=False)[0]
    >>> with Crop(path) as crop:
    ...     crop.crop_id, crop.raw[0, :2, :8, :8].shape, crop.labels[:2].dtype.name
    (0, (2, 8, 8), 'uint32')
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(os.fspath(path)))
        self._opened: tuple[int, h5py.File] | None = None

    def __enter__(self) -> Self:
        _ = self.file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.path, self._opened = path, None

    def __repr__(self) -> str:
        return f"Crop({str(self.path)!r})"

    def close(self) -> None:
        """Close the file; the next look opens it again."""
        opened, self._opened = self._opened, None
        if opened is not None and opened[0] == os.getpid():
            opened[1].close()

    @property
    def file(self) -> h5py.File:
        """The open HDF5 file of this process."""
        if self._opened is None or self._opened[0] != os.getpid():  # HDF5's handles do not survive a fork
            self._opened = (os.getpid(), open_file(self.path))
        return self._opened[1]

    @property
    def split(self) -> Split:
        return Split(str(self._attribute("split")))

    @property
    def crop_id(self) -> int:
        return int(self._attribute("crop_id"))

    @property
    def channels(self) -> tuple[int, ...]:
        """Numbers of the channels in this file, ascending; those of the source."""
        names: Iterator[str] = iter(self.file["raw"])
        return tuple(sorted(int(name.removeprefix("ch_")) for name in names))

    @property
    def shape(self) -> Shape3:
        """(Z, Y, X) in voxels, of labels and of every channel."""
        z, y, x = self.file[LABELS].shape
        return z, y, x

    @property
    def voxel_size(self) -> Shape3:
        """(Z, Y, X) in nm of the expanded tissue."""
        return self._numbers("voxel_size")

    @property
    def resolution(self) -> Shape3:
        """The voxel size under gunpowder's name."""
        return self._numbers("resolution")

    @property
    def offset(self) -> Shape3:
        """World position of the first voxel, (Z, Y, X) in nm."""
        return self._numbers("offset")

    @property
    def labels_ids(self) -> NDArray[np.uint64]:
        """(n+1,) uint64: ``labels_ids[labels]`` are the source's ids; entry 0 is 0.

        Raises
        ------
        RequestError
            If the file has none, since another program wrote it.
        """
        if LABELS_IDS not in self.file:
            raise RequestError(f"{self.path} has no {LABELS_IDS!r}, so the original ids are unknown", remedy=_FOREIGN)
        ids: NDArray[np.uint64] = self.file[LABELS_IDS][...]
        return ids

    @property
    def raw(self) -> RawVoxels:
        """(C, Z, Y, X) uint8, read where it is indexed; ``raw[i]`` is channel ``channels[i]``."""
        return RawVoxels(self)

    @property
    def labels(self) -> h5py.Dataset:
        """(Z, Y, X) uint32, consecutive ids, read where it is indexed."""
        return self.file[LABELS]

    @property
    def original_labels(self) -> OriginalLabels:
        """(Z, Y, X) uint64, the source's ids, read where it is indexed."""
        return OriginalLabels(self)

    @property
    def provenance(self) -> Provenance:
        """Where the voxels come from."""
        return Provenance(
            source=str(self._attribute("source")),
            source_fingerprint=str(self._attribute("source_fingerprint")),
            missing_chunks=int(self._attribute("missing_chunks")),
            format_version=int(self._attribute("format_version")),
            prismcache_version=str(self._attribute("prismcache_version")),
            manifest=manifest_of(self.path),
        )

    @property
    def citation(self) -> str:
        """What to cite when you publish."""
        return CITATION

    def zarr_store(self) -> Any:
        """Return a read-only zarr store over the file, without a copy; the hierarchy is OME-NGFF 0.4, zarr format 2.

        For ``zarr.open(crop.zarr_store(), mode="r")`` with zarr 2 or 3; `prismcache.crop.zarr_face` lists its keys.

        Raises
        ------
        MissingExtraError
            If zarr is not installed.
        RequestError
            If another program wrote the file in a way that zarr cannot read in place.
        """
        from prismcache.crop.zarr_store import open_store

        return open_store(self)

    def channel(self, channel: int) -> h5py.Dataset:
        """A channel by its number: (Z, Y, X) uint8, read where it is indexed.

        Raises
        ------
        UnknownChannelError
            If the file lacks it; names those it has.
        """
        if raw_dataset(channel) not in self.file:
            raise UnknownChannelError(
                f"{self.path} has no channel {channel}; it has {', '.join(map(str, self.channels))}",
                remedy="Name one of these, or `prismcache ensure` the crop with the channels that you need.",
            )
        return self.file[raw_dataset(channel)]

    def read(
        self, box: Box | None = None, channels: Numbers | None = None, *, units: Literal["voxels", "nm"] = "voxels"
    ) -> NDArray[np.uint8]:
        """Raw voxels of a box.

        Parameters
        ----------
        box
            Ranges of Z, Y and X; None is everything.
        channels
            Channel numbers (of the source); None is all of the file's.
        units
            "voxels" counts from the crop's first voxel. "nm" are world coordinates, as `offset` is; every voxel that
            the box meets is read.

        Returns
        -------
        ndarray
            (C, Z, Y, X) uint8, channels ascending.

        Raises
        ------
        RequestError
            If the box is empty or not within the crop; gives the numbers.
        UnknownChannelError
            If the file lacks a channel.
        """
        import numpy as np

        wanted = as_channels(channels) or self.channels
        datasets = [self.channel(channel) for channel in wanted]
        ranges = self.voxels(box, units=units)
        found = np.empty((len(wanted), *(r.stop - r.start for r in ranges)), np.uint8)
        for target, dataset in zip(found, datasets, strict=True):
            dataset.read_direct(target, ranges)
        return found

    def read_labels(
        self,
        box: Box | None = None,
        values: LabelValues = "consecutive",
        *,
        units: Literal["voxels", "nm"] = "voxels",
    ) -> NDArray[Any]:
        """Labels of a box: (Z, Y, X), uint32 if "consecutive", uint64 if "original". Box and errors as in `read`."""
        chosen: Any = self.original_labels if values == "original" else self.labels
        found: NDArray[Any] = chosen[self.voxels(box, units=units)]
        return found

    def voxels(self, box: Box | None, *, units: Literal["voxels", "nm"] = "voxels") -> Slices3:
        """The ranges of voxels that a box means, with start and stop; parameters and errors are those of `read`."""
        if box is None:
            box = (slice(None),) * 3
        if units == "nm":
            return voxel_box(box, self.shape, self.offset, self.voxel_size)
        return voxel_box(box, self.shape)

    def _attribute(self, name: str) -> Any:
        try:
            return self.file.attrs[name]
        except KeyError:
            raise RequestError(f"{self.path} has no attribute {name!r}", remedy=_FOREIGN) from None

    def _numbers(self, name: str) -> Shape3:
        attributes: Mapping[str, Any] = self.file[LABELS].attrs
        if name not in attributes:
            raise RequestError(f"{self.path} does not say its {name!r}", remedy=_FOREIGN)
        z, y, x = (int(value) for value in attributes[name])
        return z, y, x


def open_file(path: Path, **options: Any) -> h5py.File:
    """Open a crop's file for reading, without HDF5 locks; `options` are h5py's.

    Raises
    ------
    MissingExtraError, CropNotCachedError, CropCorruptError
        As `Crop` raises them.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError(
            "reading crops needs h5py, which is not installed", remedy='pip install "prismcache[torch]"'
        ) from error
    if not path.is_file():
        raise CropNotCachedError(f"there is no file {path}")
    try:
        try:
            file = h5py.File(path, "r", locking=False, **options)
        except OSError as error:
            if "locking" not in str(error):
                raise
            # Something else in this process (torch_em) has it open with locks, and HDF5 does not open it both ways.
            file = h5py.File(path, "r", **options)
    except OSError as error:
        raise CropCorruptError(f"{path} cannot be opened as HDF5: {error}") from error
    if LABELS not in file or "raw" not in file:
        file.close()
        raise CropCorruptError(f"{path} is no crop: it lacks 'raw' or {LABELS!r}")
    return file


def manifest_of(path: Path) -> Manifest | None:
    """The manifest beside a file that lies in a cache folder; None if there is none that can be read."""
    parsed = parse_crop_file_name(path.name)
    try:
        split = Split(path.parent.name)
        place = path.parent.parent / manifest_path(split, *parsed) if parsed is not None else None
        return None if place is None else Manifest.model_validate_json(place.read_bytes())
    except (OSError, ValueError):
        return None
