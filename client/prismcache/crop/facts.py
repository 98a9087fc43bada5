"""Where a crop comes from, and its facts: sizes of labels, statistics of channels, and a table of the neurons.

``crop_<id>.facts.json`` beside the crop's file holds the facts; ``prismcache ensure … --product facts`` makes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from prismcache.errors import CropCorruptError, CropNotCachedError, StorageError
from prismcache.layout import Manifest, crop_file_name, manifest_of
from prismcache.schema import Product, Split

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)


class ChannelFacts(_Record):
    """Statistics of one channel over all voxels of the crop.

    Attributes
    ----------
    channel
        The channel's number in the source.
    min, max, mean, std
        Of the voxels' values, 0 to 255.
    percentiles
        Value by percentage: 1, 50, 99 and 99.9.
    """

    channel: int
    min: int
    max: int
    mean: float
    std: float
    percentiles: dict[float, int]


class Neuron(_Record):
    """One label of a crop.

    Attributes
    ----------
    label, id
        The consecutive label, and the source's id.
    voxels
        Number of voxels.
    box
        Half-open ranges (start, stop) along Z, Y and X, in voxels.
    centroid_nm
        World position (Z, Y, X) in nm.
    barcode
        Mean value of each channel, in the order of `Facts.channels`.
    """

    label: int
    id: int
    voxels: int
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    centroid_nm: tuple[float, float, float]
    barcode: tuple[float, ...]


class Facts(_Record):
    """The facts of a crop.

    Attributes
    ----------
    split, crop_id
        The crop.
    crop_sha256
        SHA-256 of the crop's file, with all channels, that the facts were computed from.
    labels
        Number of labels, without the background.
    foreground
        Share of the voxels that have a label, 0 to 1.
    label_voxels
        Voxels of a label by percentage of the labels: 1, 25, 50, 75 and 99; empty if there is no label.
    channels
        Statistics of each channel, ascending.
    neurons
        Each label, ascending.
    classes
        Voxels by original id, the background's 0 included; None in instance crops.
    """

    split: Split
    crop_id: int
    crop_sha256: str
    labels: int
    foreground: float
    label_voxels: dict[float, int]
    channels: tuple[ChannelFacts, ...]
    neurons: tuple[Neuron, ...]
    classes: dict[int, int] | None = None

    def windows(self) -> dict[int, tuple[int, int]]:
        """Return the brightness to show of each channel: percentiles 1 and 99.9 of its voxels, by channel number."""
        shown = ((each.channel, each.percentiles[1], each.percentiles[99.9]) for each in self.channels)
        return {channel: (low, max(high, low + 1)) for channel, low, high in shown}

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the neurons as a table.

        Returns
        -------
        dict
            One array (n,) for each column: ``label`` uint32, ``id`` uint64 (the source's), ``voxels`` int64;
            ``z_start``, ``z_stop``, ``y_start``, … ``x_stop`` int64, the half-open bounding box in voxels of the
            labels; ``centroid_z_nm``, ``centroid_y_nm``, ``centroid_x_nm`` float64, world coordinates; and the mean
            of each of the source's channels, ``ch_00``, ``ch_01``, … float64.
        """
        import numpy as np

        of = self.neurons
        found: dict[str, Any] = {
            "label": np.array([each.label for each in of], np.uint32),
            "id": np.array([each.id for each in of], np.uint64),
            "voxels": np.array([each.voxels for each in of], np.int64),
        }
        for axis, letter in enumerate("zyx"):
            found[f"{letter}_start"] = np.array([each.box[axis][0] for each in of], np.int64)
            found[f"{letter}_stop"] = np.array([each.box[axis][1] for each in of], np.int64)
        for axis, letter in enumerate("zyx"):
            found[f"centroid_{letter}_nm"] = np.array([each.centroid_nm[axis] for each in of], np.float64)
        for index, each in enumerate(self.channels):
            found[f"ch_{each.channel:02d}"] = np.array([neuron.barcode[index] for neuron in of], np.float64)
        return found


def product_beside(path: Path, split: Split, crop: int, product: Product) -> Path:
    """Return the file of a product that lies beside a crop's file.

    Raises
    ------
    CropNotCachedError
        If that file does not exist; the remedy is the command that makes the product.
    """
    found = path.with_name(crop_file_name(crop, product=product))
    if not found.exists():
        raise CropNotCachedError(
            f"{split.value} crop {crop} has no file {found}",
            remedy=f"`prismcache ensure {split.value} {crop} --product {product.value}` makes it.",
        )
    return found


def check_same_crop(product: Path, crop_sha256: str, crop: int) -> None:
    """Check that a product was made from the crop's file that lies beside it, as far as the manifest says.

    Parameters
    ----------
    product
        The product's file.
    crop_sha256
        SHA-256 of the file that the product was made from.
    crop
        The crop's number.

    Raises
    ------
    CropCorruptError
        If the crop's manifest gives another SHA-256.
    """
    manifest = manifest_of(product.with_name(crop_file_name(crop)))
    if manifest is not None and manifest.sha256 != crop_sha256:
        raise CropCorruptError(
            f"{product} was made from another version of the crop",
            remedy="Delete the file; `prismcache ensure … --product …` makes it again.",
        )


def read_facts(path: Path, split: Split, crop: int) -> Facts:
    """Return the facts that lie beside a crop's file.

    Raises
    ------
    CropNotCachedError
        If there is no file of facts.
    StorageError
        If the system cannot read the file.
    CropCorruptError
        If the file holds no facts of this crop, or those of another version of the crop.
    """
    place = product_beside(path, split, crop, Product.FACTS)
    try:
        found = Facts.model_validate_json(place.read_bytes())
    except OSError as error:
        raise StorageError(f"{place} cannot be read: {error.strerror} (errno {error.errno})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CropCorruptError(
            f"{place} holds no facts: {where} {first['msg']}",
            remedy="Delete the file; `prismcache ensure … --product facts` makes it again.",
        ) from error
    if (found.split, found.crop_id) != (split, crop):
        raise CropCorruptError(
            f"{place} holds the facts of {found.split.value} crop {found.crop_id}",
            remedy="Delete the file; `prismcache ensure … --product facts` makes it again.",
        )
    check_same_crop(place, found.crop_sha256, crop)
    return found


CITATION = (
    "E11 Bio. PRISM. bioRxiv 2025.09.26.678648 (2025). https://doi.org/10.1101/2025.09.26.678648. "
    "Data: s3://e11bio-prism, CC BY-SA 4.0."
)


@dataclass(frozen=True)
class Provenance:
    """Where a crop's voxels come from.

    Attributes
    ----------
    source, source_fingerprint
        The crop's folder in the bucket, and a digest of its listing.
    missing_chunks
        Chunks that were absent from the bucket and hold zarr's fill value.
    format_version, prismcache_version
        Of the file, and of what wrote it.
    manifest
        The record beside the file, with SHA-256, time and libraries; None where the file was moved away from it.
    citation
        What to cite when you publish.
    """

    source: str
    source_fingerprint: str
    missing_chunks: int
    format_version: int
    prismcache_version: str
    manifest: Manifest | None
    citation: str = CITATION
