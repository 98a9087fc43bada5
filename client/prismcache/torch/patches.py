"""Which patch comes next: pure decisions on shapes, channels and random numbers."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prismcache.arguments import Numbers, as_channels
from prismcache.crop.boxes import Shape3, Slices3
from prismcache.errors import RequestError, UnknownChannelError

Array = np.ndarray[Any, np.dtype[Any]]
Channels = Numbers | Literal["all", "common"]


def check_patch_shape(patch_shape: Sequence[int]) -> Shape3:
    """A patch's shape, (Z, Y, X) in voxels.

    Raises
    ------
    RequestError
        If it is not three positive integers.
    """
    try:
        z, y, x = (operator.index(size) for size in patch_shape)
    except (TypeError, ValueError):
        z = y = x = 0
    if min(z, y, x) < 1:
        raise RequestError(f"patch_shape must be three positive integers (Z, Y, X), not {patch_shape!r}")
    return z, y, x


def check_fits(patch_shape: Shape3, shapes: Mapping[str, Shape3]) -> None:
    """See that a patch fits into every crop.

    Parameters
    ----------
    patch_shape
        (Z, Y, X) in voxels.
    shapes
        Of the crops, by name.

    Raises
    ------
    RequestError
        If it does not; names the crops and the largest patch that fits into all.
    """
    small = [f"{name} {shape}" for name, shape in shapes.items() if _exceeds(patch_shape, shape)]
    if small:
        least = tuple(min(sizes) for sizes in zip(*shapes.values(), strict=True))
        raise RequestError(
            f"patch_shape {patch_shape} is larger than {', '.join(small)}",
            remedy=f"Choose a patch of at most {least} voxels (Z, Y, X), or leave these crops out.",
        )


def _exceeds(patch_shape: Shape3, shape: Shape3) -> bool:
    return any(size > extent for size, extent in zip(patch_shape, shape, strict=True))


def common_channels(available: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The channels that all crops have, ascending."""
    sets = [set(channels) for channels in available.values()]
    return tuple(sorted(set.intersection(*sets))) if sets else ()


def choose_channels(wanted: Channels, available: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The channels of a patch, which every crop must have.

    Parameters
    ----------
    wanted
        A channel number or several (their order is kept), "all", or "common" for those that all crops have.
    available
        Channels of each crop, by its name.

    Raises
    ------
    UnknownChannelError
        If crops lack a channel, or "all" is not the same for all of them; names them and the channels that all have.
    """
    shared = common_channels(available)
    if isinstance(wanted, str):
        if wanted not in {"all", "common"}:
            raise RequestError(f"channels must be a number, several, 'all' or 'common', not {wanted!r}")
        if not shared:
            raise UnknownChannelError("the crops have no channel in common", remedy="Train on fewer crops at a time.")
        if wanted == "common" or all(set(channels) == set(shared) for channels in available.values()):
            return shared
        counts = ", ".join(f"{name} {len(channels)}" for name, channels in available.items())
        raise UnknownChannelError(f"the crops' channels differ in number: {counts}", remedy=_remedy(shared))
    chosen = ordered_channels(wanted)
    for channel in chosen:
        lacking = [name for name, channels in available.items() if channel not in channels]
        if lacking:
            raise UnknownChannelError(f"no channel {channel} in {', '.join(lacking)}", remedy=_remedy(shared))
    return chosen


def ordered_channels(wanted: Numbers) -> tuple[int, ...]:
    """Channel numbers in the order asked, checked.

    Raises
    ------
    RequestError
        If one is none, or asked for twice.
    """
    as_channels(wanted)
    chosen = tuple(int(channel) for channel in np.atleast_1d(np.asarray(wanted)))
    if len(set(chosen)) < len(chosen):
        raise RequestError(f"channels {chosen} name one twice")
    return chosen


def _remedy(shared: Sequence[int]) -> str:
    return f"All of the crops have channels {', '.join(map(str, shared))}; channels='common' takes these."


def patches_to_cover(shape: Shape3, patch_shape: Shape3) -> int:
    """How many random patches read as many voxels as a crop has; torch_em's default length."""
    return math.ceil(math.prod(extent / size for extent, size in zip(shape, patch_shape, strict=True)))


def share(samples: int, crops: int) -> list[int]:
    """`samples` divided among crops as evenly as can be, the first ones getting what is left over, as torch_em does."""
    return [samples // crops + (number < samples % crops) for number in range(crops)]


def interleave(counts: Sequence[int]) -> NDArray[np.int32]:
    """The crop of each sample, such that crop i comes ``counts[i]`` times, spread evenly.

    Examples
    --------
    >>> interleave([2, 4]).tolist()
    [1, 0, 1, 1, 0, 1]
    """
    crops = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count] or [np.empty(0)])
    return crops[np.argsort(places, kind="stable")]


def random_box(random: np.random.Generator, shape: Shape3, patch_shape: Shape3) -> Slices3:
    """A box at any place of a crop, each equally likely."""
    z, y, x = (
        slice(start, start + size)
        for extent, size in zip(shape, patch_shape, strict=True)
        for start in (int(random.integers(0, extent - size, endpoint=True)),)
    )
    return z, y, x


@dataclass(frozen=True)
class Grid:
    """The patches that cover a crop, in the order of its voxels; at a border they overlap rather than stand out.

    Attributes
    ----------
    shape, patch_shape
        Of the crop and of a patch, (Z, Y, X).
    """

    shape: Shape3
    patch_shape: Shape3

    @property
    def counts(self) -> Shape3:
        z, y, x = (-(-extent // size) for extent, size in zip(self.shape, self.patch_shape, strict=True))
        return z, y, x

    def __len__(self) -> int:
        return math.prod(self.counts)

    def box(self, number: int) -> Slices3:
        """The box of patch `number`."""
        places = np.unravel_index(number, self.counts)
        z, y, x = (
            slice(start, start + size)
            for place, extent, size in zip(places, self.shape, self.patch_shape, strict=True)
            for start in (min(int(place) * size, extent - size),)
        )
        return z, y, x


def check_labels_fit(largest: int, exact_to: int, crop: str, dtype: Any) -> None:
    """See that a tensor can hold a crop's labels exactly.

    Parameters
    ----------
    largest
        The largest label.
    exact_to
        The largest integer up to which the tensor's dtype holds every one.
    crop, dtype
        For the error.

    Raises
    ------
    RequestError
        If it cannot.
    """
    if largest > exact_to:
        raise RequestError(
            f"label {largest} of {crop} does not fit into {dtype}, which is exact up to {exact_to}",
            remedy="Take label_values='consecutive', a larger label_dtype, or a label_transform.",
        )
