"""The crops of a training set: the facts of each, found from paths or through a client.

A client may still fetch crops while training runs. A thread of the main process then follows the client and posts the
path of each crop, or the error, on a `Board`, where workers see it that were forked or spawned before.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prismcache.arguments import Numbers, as_crops, as_split
from prismcache.catalog import published
from prismcache.client import PrismClient
from prismcache.crop.boxes import Shape3, Slices3
from prismcache.errors import (
    CropNotCachedError,
    PrismError,
    RequestError,
    UnknownChannelError,
    UnknownCropError,
    error_from_problem,
)
from prismcache.layout import covers, parse_file_name
from prismcache.progress.reporter import Progress
from prismcache.schema import NO_CONTEXT, CropInfo, Product, Split
from prismcache.splits import PRODUCTS
from prismcache.torch.crop_facts import CropFacts, check_target_of, crop_name, least
from prismcache.torch.memory import Arrival, Board
from prismcache.torch.patches import Channels, choose_channels, ordered_channels

Array = np.ndarray[Any, np.dtype[Any]]


class Reader(Protocol):
    """Reads boxes of a crop's datasets, from its file or from arrays in memory; see `CropReader.read`."""

    def read(self, name: str, box: Slices3, out: Array, ids: Array | None = None) -> None: ...

    def close(self) -> None: ...


def facts_of_files(
    paths: Sequence[str | os.PathLike[str]], split: str | Split | None, crops: Numbers | None
) -> list[CropFacts]:
    """Return the facts of crops, given by their files.

    Parameters
    ----------
    paths
        Files, as `PrismClient.ensure` returns them.
    split
        The split of all; None takes that of the first file.
    crops
        Only these crops, in this order; None is all.

    Raises
    ------
    RequestError
        If there is no file, or the files are of different splits.
    UnknownCropError
        If one of `crops` is not among the files.
    """
    found = [CropFacts.of(path) for path in paths]
    if not found:
        raise RequestError("no crop's path is given", remedy="PrismClient().ensure(…) returns paths.")
    wanted = found[0].split if split is None else as_split(split)
    if other := next((facts for facts in found if facts.split != wanted), None):
        raise RequestError(f"{other.path} is of the split {other.split.value!r}, not {wanted.value!r}")
    numbers = as_crops(crops)
    if numbers is None:
        return found
    by_crop = {facts.crop: facts for facts in found}
    if lacking := [crop for crop in numbers if crop not in by_crop]:
        raise UnknownCropError(
            f"no file of {crop_name(wanted, lacking[0])} is among the paths given",
            remedy=f"They are of the crops {', '.join(map(str, sorted(by_crop)))}.",
        )
    return [by_crop[crop] for crop in dict.fromkeys(numbers)]


def files_of_root(
    root: Path, split: str | Split | None, crops: Numbers | None, channels: Channels, context: Shape3
) -> list[Path]:
    """Return a file for each crop of a cache folder: the smallest that has the channels and the most of the context.

    Parameters
    ----------
    root
        The cache folder, which has a folder for each split.
    split
        The split; None is "instance".
    crops
        Only these crops; None is all that lie there.
    channels, context
        As `PrismDataset` takes them; context in voxels (Z, Y, X).

    Raises
    ------
    CropNotCachedError
        If no crop of the split lies there.
    """
    folder = root / as_split(Split.INSTANCE if split is None else split).value
    named = {path: parse_file_name(path.name) for path in folder.glob("*.h5")}
    numbers = as_crops(crops)
    wanted = set() if isinstance(channels, str) else set(ordered_channels(channels))

    def worth(facts: CropFacts) -> tuple[bool, int, int]:
        reach = sum(least(facts.before, context)) + sum(least(facts.after, context))
        more = len(facts.channels) if isinstance(channels, str) else 0
        return wanted <= set(facts.channels), more + reach, -facts.path.stat().st_size

    by_crop: dict[int, list[CropFacts]] = {}
    for path, name in sorted(named.items()):
        is_crop = name is not None and name.product is Product.CROP
        if name is not None and is_crop and (numbers is None or name.crop in numbers):
            by_crop.setdefault(name.crop, []).append(CropFacts.of(path))
    if not by_crop:
        raise CropNotCachedError(
            f"no crop's file lies in {folder}", remedy="Run `prismcache ensure`, or give a PrismClient as the source."
        )
    return [max(by_crop[crop], key=worth).path for crop in sorted(by_crop)]


@dataclass(frozen=True)
class ClientCrops:
    """The crops that a client shall provide.

    Attributes
    ----------
    split, crops
        The split, and the crops' numbers.
    ask
        Channels to ask the client for; None is all.
    context
        Voxels (Z, Y, X) that raw shall reach beyond the labels.
    targets
        The products and further arrays that each crop shall have.
    described
        The catalog's entries of the crops; empty where they were not needed.
    """

    split: Split
    crops: tuple[int, ...]
    ask: tuple[int, ...] | None
    context: Shape3
    targets: tuple[str, ...]
    described: Mapping[int, CropInfo]

    @property
    def products(self) -> tuple[Product, ...]:
        """The products among the targets."""
        return tuple(Product(target) for target in self.targets if target in PRODUCTS)


def plan_client_crops(
    client: PrismClient,
    split: str | Split | None,
    crops: Numbers | None,
    channels: Channels,
    context: Shape3,
    targets: tuple[str, ...],
) -> ClientCrops:
    """Return what to ask a client for; products are made from whole crops, so that these are then asked for.

    Raises
    ------
    UnknownChannelError
        If the crops do not all have the channels.
    PrismError
        As the client raises it.
    """
    wanted = as_split(Split.INSTANCE if split is None else split)
    for target in targets if wanted in published() else ():  # what a lab's own split has, its crops' files say
        check_target_of(published()[wanted], target)
    is_whole = any(target in PRODUCTS for target in targets) and not any(context)
    numbers = as_crops(crops)
    if numbers is None:
        numbers = tuple(info.crop for info in client.catalog(wanted))
    if not numbers:
        raise RequestError(f"no crop of the split {wanted.value!r} is asked for")
    numbers = tuple(dict.fromkeys(numbers))
    if not isinstance(channels, str):
        ask = None if is_whole else tuple(sorted(choose_channels(channels, {})))
        return ClientCrops(wanted, numbers, ask, context, targets, {})
    described = describe(client, wanted, numbers)
    chosen = choose_channels(channels, channels_of(described))
    ask = None if is_whole or channels == "all" else chosen
    return ClientCrops(wanted, numbers, ask, context, targets, described)


def describe(client: PrismClient, split: Split, crops: Sequence[int]) -> dict[int, CropInfo]:
    """Return the catalog's entries of these crops, with their shapes.

    Raises
    ------
    PrismError
        If the client cannot say the shape of one.
    """
    found = {}
    for crop in crops:
        info = client.describe(split, crop)
        if info.raw_shape is None or (info.labels_shape is None and info.has_labels):
            reason = "" if info.problem is None else f": {info.problem.detail}"
            raise RequestError(f"the shape of {crop_name(split, crop)} is not known yet{reason}")
        found[crop] = info
    return found


def channels_of(described: Mapping[int, CropInfo]) -> dict[str, range]:
    """Return the channels of published crops, by the crops' names."""
    return {crop_name(info.split, crop): range(info.raw_shape[0]) for crop, info in described.items() if info.raw_shape}


def ensure_crops(client: PrismClient, plan: ClientCrops, crops: Sequence[int], progress: Progress) -> list[str]:
    """Return the paths of crops; crops that are not cached are fetched, and their products made.

    Raises
    ------
    UnknownChannelError
        If one lacks a channel; the remedy names the channels that all crops of the plan have.
    PrismError
        As the client raises it.
    """
    try:
        paths = client.ensure(plan.split, crops, channels=plan.ask, context=plan.context, progress=progress)
    except UnknownChannelError:
        choose_channels(plan.ask or "all", channels_of(describe(client, plan.split, plan.crops)))
        raise
    for product in plan.products:
        client.ensure(plan.split, crops, product=product, progress=progress)
    return paths


def cached_crops(client: PrismClient, plan: ClientCrops) -> set[int]:
    """Return the plan's crops that are cached as they are wanted; none if there is no catalog."""
    try:
        known = client.catalog(plan.split)
    except PrismError:
        return set()
    return {info.crop for info in known if info.crop in plan.crops and _is_cached(info, plan)}


def _is_cached(info: CropInfo, plan: ClientCrops) -> bool:
    context = plan.context if info.has_labels else NO_CONTEXT  # without labels, every file has all of raw
    files = [file for file in info.files if file.product is Product.CROP and covers(file.context, context)]
    if not set(plan.products) <= {file.product for file in info.files}:
        return False
    if plan.ask is None:
        return any(info.raw_shape and len(file.channels) == info.raw_shape[0] for file in files)
    return any(set(plan.ask) <= set(file.channels) for file in files)


class Follower:
    """Fetches crops in a thread and posts them.

    Parameters
    ----------
    client
        The client that fetches; its owner closes it.
    plan
        What to ask the client for.
    slots
        The place of each awaited crop on the board, by the crop's number.
    board
        The board that processes share.
    prepare
        Called with the slot and path of each crop, before the crop is posted.
    """

    def __init__(
        self,
        client: PrismClient,
        plan: ClientCrops,
        slots: Mapping[int, int],
        board: Board,
        prepare: Callable[[int, Path], None],
    ) -> None:
        self._client, self._plan = client, plan
        self._slots, self._board, self._prepare = dict(slots), board, prepare
        self._posted: set[int] = set()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._follow, name="prismcache-arrivals", daemon=True)
        self._thread.start()

    def wait_for_one(self) -> None:
        """Wait until the first crop is there.

        Raises
        ------
        PrismError
            If fetching fails before.
        """
        with self._changed:
            self._changed.wait_for(lambda: bool(self._posted))
            arrival = self._board.look(next(iter(self._posted)))
        if arrival is not None and arrival.problem is not None:
            raise error_from_problem(arrival.problem)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all crops are posted; return False if `timeout`, in seconds, passes first."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _follow(self) -> None:
        try:
            plan = self._plan
            asked = self._client.iter_ensure(
                plan.split, list(self._slots), channels=plan.ask, context=plan.context, progress=False
            )
            with closing(asked) as paths:
                for path in paths:
                    name = parse_file_name(Path(path).name)
                    if name is not None and name.crop in self._slots:
                        for product in plan.products:
                            self._client.ensure(plan.split, name.crop, product=product, progress=False)
                        self._prepare(self._slots[name.crop], Path(path))
                        self._post(self._slots[name.crop], Arrival(path))
        except PrismError as error:
            self._fail(error)
        except BaseException as error:  # noqa: BLE001 - training must see any error rather than wait for ever
            remedy = "Keep the client open until every crop is there: PrismDataset.wait(), or start='all'."
            self._fail(PrismError(f"crops were awaited, but fetching them ended: {error!r}", remedy=remedy))

    def _fail(self, error: PrismError) -> None:
        for slot in self._slots.values():
            if slot not in self._posted:
                self._post(slot, Arrival(problem=error.to_problem()))

    def _post(self, slot: int, arrival: Arrival) -> None:
        self._board.post(slot, arrival)
        with self._changed:
            self._posted.add(slot)
            self._changed.notify_all()
