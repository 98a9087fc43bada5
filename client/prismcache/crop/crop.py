"""One cached crop: what it is, where it lies, and any box of its voxels. Needs h5py (``prismcache[torch]``).

::

    with Crop("/lab/prism/instance/crop_0.h5") as crop:
        crop.channels, crop.shape, crop.voxel_size  # (0, …, 17), (200, 500, 500), (400, 168, 168)
        raw = crop.raw[0, :32, 100:356, 100:356]  # only these voxels are read
        box = crop.read([slice(8000, 20_800), slice(0, 43_008), slice(0, 43_008)], channels=[0, 3], units="nm")
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from prismcache.arguments import Numbers, as_channels
from prismcache.catalog import published
from prismcache.crop.boxes import Box, Shape3, Slices3, margins, voxel_box
from prismcache.crop.facts import CITATION, Facts, Provenance, read_facts
from prismcache.crop.picture import Picture, described, draw, thumbnail
from prismcache.crop.voxels import OriginalLabels, RawVoxels
from prismcache.errors import CropCorruptError, RequestError, UnknownChannelError
from prismcache.html import table
from prismcache.layout import LABELS, LABELS_IDS, VOXEL_UNITS, manifest_of, raw_dataset
from prismcache.schema import Product, Split
from prismcache.splits import SplitEntry

if TYPE_CHECKING:
    import h5py
    import numpy as np
    from numpy.typing import NDArray

LabelValues = Literal["consecutive", "original"]
Units = Literal["voxels", "nm"]

_ALL = (slice(None),) * 3
_FOREIGN = "Fetch the crop with `prismcache ensure`: files that other programs wrote lack it."


class Crop:
    """A cached crop, read only. The file is opened at the first access, not by the constructor.

    A `Crop` can be pickled and used after a fork: each process opens the file for itself. Other libraries of the same
    process may have the file open at the same time. Every access raises the errors below if the file cannot be read.

    A crop of a split without labels (synapses) has further arrays instead, see `arrays`; `shape`, `offset` and boxes
    are then those of raw.

    In a file with context, raw reaches beyond the labels, and `raw_shape` and `raw_offset` say how far. Boxes in voxels
    always count from the first voxel of the *labels*, so that one box means the same tissue in raw and labels;
    negative numbers reach into the context.

    Parameters
    ----------
    path
        The crop's file, as `PrismClient.ensure` returns it.

    Raises
    ------
    MissingExtraError
        If h5py is not installed.
    CropNotCachedError
        If there is no such file.
    CropCorruptError
        If the file is not a crop, or its content is damaged.
    StorageError
        If the system cannot read the file now; the message gives the path and the error number.

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

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.path, self._opened = path, None

    def __getitem__(self, key: Any) -> Any:
        """Return a channel by its number: ``crop[3]`` is `channel(3)`, ``crop[3, :32]`` are voxels of it."""
        number, *rest = key if isinstance(key, tuple) else (key,)
        dataset = self.channel(number)
        return dataset[tuple(rest)] if rest else dataset

    def __repr__(self) -> str:
        return f"<Crop {self.path}: {', '.join(f'{name} {value}' for name, value in described(self).items())}>"

    def _repr_html_(self) -> str:
        """Return what notebooks show: a small table and a thumbnail."""
        return table(str(self.path), (), [*described(self).items(), ("middle slice", thumbnail(self))])

    def close(self) -> None:
        """Close the file; the next access opens it again."""
        opened, self._opened = self._opened, None
        if opened is not None and opened[0] == os.getpid():
            opened[1].close()

    @property
    def file(self) -> h5py.File:
        """The open HDF5 file of this process. What is read through it raises h5py's own errors."""
        if self._opened is None or self._opened[0] != os.getpid():  # HDF5's handles do not survive a fork
            from prismcache.crop.files import open_crop

            self._opened = (os.getpid(), open_crop(self.path))
        return self._opened[1]

    @property
    def split(self) -> Split:
        """The split, such as "instance"."""
        return Split(str(self._attribute("split")))

    @property
    def entry(self) -> SplitEntry:
        """What the split is: the catalog's entry that the file was made for."""
        from prismcache.crop.files import entry_of

        return entry_of(self.file, self.path) or published().get(self.split) or SplitEntry(self.split.value)

    @property
    def has_labels(self) -> bool:
        """Whether the file has labels; that of a synapse crop has arrays instead."""
        return LABELS in self.file

    @property
    def arrays(self) -> tuple[str, ...]:
        """The names of the further arrays in the file, such as "psd95_output"; see `array`."""
        return tuple(name for name in self.entry.datasets if name in self.file)

    @property
    def crop_id(self) -> int:
        """The crop's number in its split."""
        return int(self._attribute("crop_id"))

    @property
    def channels(self) -> tuple[int, ...]:
        """The numbers of the channels in this file, ascending; the numbers are those of the source."""
        file = self.file
        with self._errors("raw"):
            return tuple(sorted(int(name.removeprefix("ch_")) for name in file["raw"]))

    @property
    def shape(self) -> Shape3:
        """(Z, Y, X) of the labels, in voxels; without context also of every channel."""
        if not self.has_labels:
            return self.raw_shape
        z, y, x = self.labels.shape
        return z, y, x

    @property
    def raw_shape(self) -> Shape3:
        """(Z, Y, X) of every channel, in voxels; larger than `shape` in a file with context."""
        z, y, x = self.channel(self.channels[0]).shape
        return z, y, x

    @property
    def voxel_size(self) -> Shape3:
        """(Z, Y, X) in nm of the expanded tissue."""
        return self._numbers("voxel_size")

    @property
    def voxel_size_nm(self) -> tuple[float, float, float] | None:
        """(Z, Y, X) in nm, exact where `voxel_size` is rounded; None if the source gave no voxel size."""
        with self._errors("attribute 'voxel_size_nm'"):
            attributes = self._dataset(self._placed).attrs
            if "voxel_size_nm" in attributes:
                z, y, x = map(float, attributes["voxel_size_nm"])
                return z, y, x
            is_unknown = tuple(attributes.get("units", ())) == VOXEL_UNITS
        return None if is_unknown else self.voxel_size

    @property
    def resolution(self) -> Shape3:
        """The voxel size under gunpowder's name."""
        return self._numbers("resolution")

    @property
    def offset(self) -> Shape3:
        """World position of the labels' first voxel, (Z, Y, X) in nm; without context also of raw's."""
        return self._numbers("offset")

    @property
    def raw_offset(self) -> Shape3:
        """World position of raw's first voxel, (Z, Y, X) in nm; less than `offset` in a file with context."""
        return self._numbers("offset", raw_dataset(self.channels[0]))

    @property
    def context(self) -> tuple[Shape3, Shape3]:
        """Voxels (Z, Y, X) that raw reaches beyond the labels: before their first voxel, and after their last one.

        Raises
        ------
        CropCorruptError
            If raw does not hold all of the labels' box.
        """
        if self.raw_shape == self.shape:
            return (0, 0, 0), (0, 0, 0)
        before, after = margins(self.shape, self.offset, self.raw_shape, self.raw_offset, self.voxel_size)
        if min(before + after) < 0:
            raise CropCorruptError(f"{self.path}: raw, {self.raw_shape}, does not hold the labels' box, {self.shape}")
        return before, after

    @property
    def labels_ids(self) -> NDArray[np.uint64]:
        """(n+1,) uint64: ``labels_ids[labels]`` are the source's ids; entry 0 is 0.

        Raises
        ------
        RequestError
            If the file has none, since another program wrote it, or the split has no labels.
        CropCorruptError
            If the table does not match its checksum, or is not ascending from 0.
        """
        if LABELS_IDS not in self.labels.file:
            raise RequestError(f"{self.path} has no {LABELS_IDS!r}, so the original ids are unknown", remedy=_FOREIGN)
        from prismcache.crop.files import read_ids

        return read_ids(self.file, self.path)

    @property
    def raw(self) -> RawVoxels:
        """(C, Z, Y, X) uint8, read where it is indexed, with all of its context; ``raw[i]`` is ``channels[i]``."""
        return RawVoxels(self)

    @property
    def labels(self) -> h5py.Dataset:
        """(Z, Y, X) uint32, consecutive ids, read where it is indexed.

        Raises
        ------
        RequestError
            If the split has no labels.
        """
        if not self.has_labels:
            raise RequestError(
                f"{self.path} has no labels: crops of {self.split.value!r} have none",
                remedy=f"They have {', '.join(('raw', *self.arrays))}; see Crop.raw and Crop.array.",
            )
        return self._dataset(LABELS)

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
    def facts(self) -> Facts:
        """Sizes of the labels, statistics of all channels, and the neurons, from ``crop_<id>.facts.json``.

        Raises
        ------
        CropNotCachedError
            If there is no such file beside the crop's; the remedy is the command that makes the file.
        RequestError
            If crops of the split have no facts.
        CropCorruptError
            If the file is damaged, or was made from another version of the crop.
        """
        self.entry.check_product(Product.FACTS)
        return read_facts(self.path, self.split, self.crop_id)

    def neurons(self) -> dict[str, NDArray[Any]]:
        """Return a table of the labels, for ``pandas.DataFrame(crop.neurons())``: see `Facts.columns` and `facts`."""
        return self.facts.columns()

    @property
    def citation(self) -> str:
        """The text to cite when you publish."""
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

    def show(self, z: int | None = None, channels: Numbers | str | None = None, *, labels: bool = False) -> Picture:
        """Return a picture of one slice, which a notebook shows without matplotlib.

        ``.save("slice.png")`` writes it; ``numpy.asarray`` and ``plt.imshow`` take it: (Y, X, 3) uint8.

        Parameters
        ----------
        z
            Voxels from the labels' first slice, as in `read`; None is the middle.
        channels
            One is grey; several are red, green, blue, red, …, added up; None is the file's first three.
        labels
            Whether labels lie over raw, each in a colour of its own.

        Raises
        ------
        RequestError, UnknownChannelError
            As in `read`; `RequestError`, too, if labels are to be drawn and the split has none.
        """
        return draw(self, z, as_channels(channels) or self.channels[:3], labels=labels)

    def channel(self, channel: int) -> h5py.Dataset:
        """Return a channel by its number: (Z, Y, X) uint8, with all of its context, read where it is indexed.

        Raises
        ------
        UnknownChannelError
            If the file lacks the channel; the message names those that the file has.
        """
        (number,) = as_channels(channel) or ()
        if number not in self.channels:
            raise UnknownChannelError(
                f"{self.path} has no channel {number}; it has {', '.join(map(str, self.channels))}",
                remedy="Name one of these, or `prismcache ensure` the crop with the channels that you need.",
            )
        return self._dataset(raw_dataset(number))

    def array(self, name: str) -> h5py.Dataset:
        """Return a further array by its name, (Z, Y, X) of its own dtype and extent, read where it is indexed.

        `array_offset` and `array_start` say where it lies.

        Raises
        ------
        RequestError
            If the file has no such array; the message names those that it has.
        """
        if name not in self.arrays:
            has = ", ".join(self.arrays) or "none"
            raise RequestError(f"{self.path} has no array {name!r}; it has {has}")
        return self._dataset(name)

    def array_offset(self, name: str) -> Shape3:
        """Return the world position of a further array's first voxel, (Z, Y, X) in nm."""
        return self._numbers("offset", name)

    def array_start(self, name: str) -> Shape3:
        """Return the first voxel of a further array, (Z, Y, X), counted from the first voxel that boxes count from."""
        places = zip(self.array_offset(name), self.offset, self.voxel_size, strict=True)
        z, y, x = (round((own - first) / size) for own, first, size in places)
        return z, y, x

    def read(
        self, box: Box | None = None, channels: Numbers | str | None = None, *, units: Units = "voxels"
    ) -> NDArray[np.uint8]:
        """Return the raw voxels of a box.

        Parameters
        ----------
        box
            Half-open ranges of Z, Y and X; None, or ``slice(None)`` for an axis, is all of raw with its context.
        channels
            Channel numbers (of the source), also as "0-2,5"; None is all of the file's.
        units
            "voxels" counts from the first voxel of the labels; negative numbers reach into the context. "nm" are world
            coordinates, as `offset` is; every voxel that the box meets is read.

        Returns
        -------
        ndarray
            (C, Z, Y, X) uint8, channels ascending.

        Raises
        ------
        RequestError
            If the box is empty or leaves raw; the message gives the numbers.
        UnknownChannelError
            If the file lacks a channel.
        """
        import numpy as np

        wanted = as_channels(channels) or self.channels
        datasets = [self.channel(channel) for channel in wanted]
        if units == "nm":
            ranges = voxel_box(box or _ALL, self.raw_shape, self.raw_offset, self.voxel_size)
        else:
            z, y, x = self.context[0]
            ranges = voxel_box(box or _ALL, self.raw_shape, (-z, -y, -x))
        found = np.empty((len(wanted), *(r.stop - r.start for r in ranges)), np.uint8)
        for target, dataset in zip(found, datasets, strict=True):
            dataset.read_direct(target, ranges)
        return found

    def read_labels(
        self, box: Box | None = None, values: LabelValues = "consecutive", *, units: Units = "voxels"
    ) -> NDArray[Any]:
        """Return the labels of a box: (Z, Y, X), uint32 if "consecutive", uint64 if "original".

        `box` and `units` are those of `read`; None is all of the labels.

        Raises
        ------
        RequestError
            If the box is empty or leaves the labels; the message gives the numbers.
        """
        chosen: Any = self.original_labels if values == "original" else self.labels
        found: NDArray[Any] = chosen[self.voxels(box, units=units)]
        return found

    def voxels(self, box: Box | None, *, units: Units = "voxels") -> Slices3:
        """Return a box as ranges of the labels' voxels, with start and stop; see `read_labels`."""
        if units == "nm":
            return voxel_box(box or _ALL, self.shape, self.offset, self.voxel_size)
        return voxel_box(box or _ALL, self.shape)

    def _errors(self, what: str) -> AbstractContextManager[None]:
        from prismcache.crop.files import read_errors

        return read_errors(self.path, what)

    def _dataset(self, name: str) -> h5py.Dataset:
        from prismcache.crop.files import open_dataset

        return open_dataset(self.file, name, self.path)

    def _attribute(self, name: str, dataset: str | None = None) -> Any:
        holder = self.file if dataset is None else self._dataset(dataset)
        with self._errors(f"attribute {name!r}"):
            if name in holder.attrs:
                return holder.attrs[name]
        raise RequestError(f"{self.path} does not say its {name!r}", remedy=_FOREIGN)

    @property
    def _placed(self) -> str:
        """The name of the dataset whose place is that of the crop: labels, or raw in a file without labels."""
        return LABELS if self.has_labels else raw_dataset(self.channels[0])

    def _numbers(self, name: str, dataset: str | None = None) -> Shape3:
        z, y, x = (int(value) for value in self._attribute(name, dataset or self._placed))
        return z, y, x
