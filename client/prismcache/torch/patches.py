"""Decides which patch comes next, from shapes, channels and random numbers. Pure."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, cast

import numpy as np
from numpy.typing import NDArray

from prismcache.arguments import Numbers, as_channels
from prismcache.crop.boxes import Shape3, Slices3
from prismcache.errors import RequestError, UnknownChannelError
from prismcache.numbers import parse_channels
from prismcache.schema import Product

Array = np.ndarray[Any, np.dtype[Any]]
Channels = Numbers | Literal["all", "common"]


def check_option(name: str, value: object, known: Sequence[object]) -> None:
    """Raise `RequestError` if `value` is not among `known`; the message lists these."""
    if value not in known:
        others = ", ".join(repr(each) for each in known[:-1])
        raise RequestError(f"{name} must be {others} or {known[-1]!r}, not {value!r}")


def check_patch_shape(patch_shape: Sequence[int]) -> Shape3:
    """Return a patch's shape, (Z, Y, X) in voxels.

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


@dataclass(frozen=True)
class Context:
    """How far raw patches reach beyond label patches.

    Attributes
    ----------
    voxels
        (Z, Y, X) on each side.
    padding
        "none" if only patches are drawn whose context is in the file; else numpy's mode that fills what is missing.
    """

    voxels: Shape3 = (0, 0, 0)
    padding: Literal["none", "zeros", "reflect"] = "none"

    @classmethod
    def of(cls, context: int | Sequence[int], padding: Literal["none", "zeros", "reflect"]) -> Context:
        """Return a context, given as one number or as (Z, Y, X).

        Raises
        ------
        RequestError
            If it is neither, or a number is negative.
        """
        try:
            z, y, x = (
                [operator.index(context)] * 3 if isinstance(context, SupportsIndex) else map(operator.index, context)
            )
        except (TypeError, ValueError):
            z = y = x = -1
        if min(z, y, x) < 0:
            raise RequestError(f"context must be a number of voxels, or three (Z, Y, X), not {context!r}")
        return cls((z, y, x), padding)

    def around(self, box: Slices3) -> Slices3:
        """Return the box of raw that belongs to a box of labels."""
        z, y, x = (slice(part.start - c, part.stop + c) for part, c in zip(box, self.voxels, strict=True))
        return z, y, x

    def drawable(self, shape: Shape3, before: Shape3, after: Shape3) -> Slices3:
        """Return the box of a crop's labels from which patches are drawn; it may be empty.

        Parameters
        ----------
        shape
            (Z, Y, X) of the labels, in voxels.
        before, after
            Voxels (Z, Y, X) of raw beyond the labels, on either side.
        """
        if self.padding != "none":
            before = after = self.voxels
        z, y, x = (
            slice(max(0, c - b), min(extent, extent + a - c))
            for extent, b, a, c in zip(shape, before, after, self.voxels, strict=True)
        )
        return z, y, x


def check_fits(patch_shape: Shape3, boxes: Mapping[str, Slices3]) -> None:
    """Check that a patch fits into every crop.

    Parameters
    ----------
    patch_shape
        (Z, Y, X) in voxels.
    boxes
        The part of each crop from which patches are drawn, by the crop's name.

    Raises
    ------
    RequestError
        If the patch is larger than a crop; the message names the crops and the largest patch that fits into all.
    """
    shapes = {name: tuple(max(0, part.stop - part.start) for part in box) for name, box in boxes.items()}
    small = [
        f"{name} {shape}"
        for name, shape in shapes.items()
        if any(size > extent for size, extent in zip(patch_shape, shape, strict=True))
    ]
    if small:
        least = tuple(min(sizes) for sizes in zip(*shapes.values(), strict=True))
        raise RequestError(
            f"patch_shape {patch_shape} is larger than {', '.join(small)}",
            remedy=f"Choose a patch of at most {least} voxels (Z, Y, X), or leave these crops out. A context makes "
            "less room for patches; files with context, or context_padding='reflect', give it back.",
        )


def common_channels(available: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """Return the channels that all crops have, ascending."""
    sets = [set(channels) for channels in available.values()]
    return tuple(sorted(set.intersection(*sets))) if sets else ()


def parse_wanted(wanted: Channels | str) -> Channels:
    """Return the channels that a caller asks for; text such as "0-2,5" becomes numbers.

    Raises
    ------
    RequestError
        If text is neither numbers nor "all" or "common".
    """
    if not isinstance(wanted, str):
        return wanted
    if wanted in {"all", "common"}:
        return cast("Channels", wanted)
    try:
        return parse_channels(wanted)
    except ValueError:
        raise RequestError(
            f"channels must be a number, several, text such as '0-2,5', 'all' or 'common', not {wanted!r}"
        ) from None


def parse_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """Return the products and further arrays whose voxels a caller asks for, in order.

    Raises
    ------
    RequestError
        If a name is that of what has no voxels of its own. Which names a split has is known later.
    """
    names = [targets] if isinstance(targets, str) else list(targets)
    for name in names:
        if name in {Product.CROP, Product.FACTS}:
            raise RequestError(f"targets must be names of products or arrays with voxels, not {name!r}")
    return tuple(map(str, names))


def choose_channels(wanted: Channels, available: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """Return the channels of a patch, which every crop must have.

    Parameters
    ----------
    wanted
        A channel number or several (their order is kept), "all", or "common" for those that all crops have.
    available
        Channels of each crop, by its name.

    Raises
    ------
    UnknownChannelError
        If crops lack a channel, or "all" is not the same for all of them; the message names these crops, and the remedy
        the channels that all crops have.
    """
    shared = common_channels(available)
    if isinstance(wanted, str):
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
    """Return channel numbers in the order asked.

    Raises
    ------
    RequestError
        If one of them is no channel number, or is asked for twice.
    """
    as_channels(wanted)
    chosen = tuple(int(channel) for channel in np.atleast_1d(np.asarray(wanted)))
    if len(set(chosen)) < len(chosen):
        raise RequestError(f"channels {chosen} name a channel twice")
    return chosen


def _remedy(shared: Sequence[int]) -> str:
    return f"All of the crops have channels {', '.join(map(str, shared))}; channels='common' takes these."


def patches_to_cover(shape: Shape3, patch_shape: Shape3) -> int:
    """Return how many random patches read as many voxels as a crop has; torch_em's default length."""
    return math.ceil(math.prod(extent / size for extent, size in zip(shape, patch_shape, strict=True)))


def share(samples: int, crops: int) -> list[int]:
    """Return how many of `samples` each crop gets: equally many, and the first crops one more, as in torch_em."""
    return [samples // crops + (number < samples % crops) for number in range(crops)]


def interleave(counts: Sequence[int]) -> NDArray[np.int32]:
    """Return the crop of each sample, such that crop i comes ``counts[i]`` times, spread evenly.

    Examples
    --------
    >>> interleave([2, 4]).tolist()
    [1, 0, 1, 1, 0, 1]
    """
    crops = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count] or [np.empty(0)])
    return crops[np.argsort(places, kind="stable")]


def samples_of(n_samples: int | None, shapes: Sequence[Shape3], patch_shape: Shape3) -> NDArray[np.int32]:
    """Return the crop of each sample of a dataset of random patches.

    Parameters
    ----------
    n_samples
        Number of samples, shared evenly among the crops; None is the number whose voxels are as many as all crops have.
    shapes
        (Z, Y, X) of each crop, in voxels.
    patch_shape
        (Z, Y, X) of a patch, in voxels.

    Raises
    ------
    RequestError
        If `n_samples` is less than 1.
    """
    if n_samples is None:
        return interleave([patches_to_cover(shape, patch_shape) for shape in shapes])
    if n_samples < 1:
        raise RequestError(f"n_samples must be positive, not {n_samples}")
    return interleave(share(n_samples, len(shapes)))


def random_box(random: np.random.Generator, within: Slices3, patch_shape: Shape3) -> Slices3:
    """Return a patch's box at a random place within a box; all places are equally likely."""
    z, y, x = (
        slice(start, start + size)
        for part, size in zip(within, patch_shape, strict=True)
        for start in (int(random.integers(part.start, part.stop - size, endpoint=True)),)
    )
    return z, y, x


def clipped(box: Slices3, available: Slices3) -> tuple[Slices3, list[tuple[int, int]] | None]:
    """Return the part of a box that is available, and the voxels missing on either side of each axis (None if none)."""
    z, y, x = (slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, available, strict=True))
    missing = [(b.start - a.start, a.stop - b.stop) for a, b in zip(box, (z, y, x), strict=True)]
    return (z, y, x), missing if any(map(any, missing)) else None


@dataclass(frozen=True)
class Grid:
    """The patches that cover a box, in the order of its voxels; at the far borders patches overlap.

    Attributes
    ----------
    within
        The box of a crop's labels that is covered.
    patch_shape
        (Z, Y, X) in voxels.
    """

    within: Slices3
    patch_shape: Shape3

    @property
    def counts(self) -> Shape3:
        """The number of patches along Z, Y and X."""
        axes = zip(self.within, self.patch_shape, strict=True)
        z, y, x = (-(-(part.stop - part.start) // size) for part, size in axes)
        return z, y, x

    def __len__(self) -> int:
        return math.prod(self.counts)

    def box(self, number: int) -> Slices3:
        """Return the box of patch `number`."""
        places = np.unravel_index(number, self.counts)
        z, y, x = (
            slice(start, start + size)
            for place, part, size in zip(places, self.within, self.patch_shape, strict=True)
            for start in (min(part.start + int(place) * size, part.stop - size),)
        )
        return z, y, x


def check_labels_fit(largest: int, exact_to: int, crop: str, dtype: Any) -> None:
    """Check that a tensor can hold a crop's labels exactly.

    Parameters
    ----------
    largest
        The largest label.
    exact_to
        The tensor's dtype holds every integer up to this one.
    crop, dtype
        Names for the message.

    Raises
    ------
    RequestError
        If `largest` is greater than `exact_to`.
    """
    if largest > exact_to:
        raise RequestError(
            f"label {largest} of {crop} does not fit into {dtype}, which is exact up to {exact_to}",
            remedy="Take label_values='consecutive', a larger label_dtype, or a label_transform.",
        )
