"""The crops of one training, opened in each process that reads them, and decoded once if that is wanted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ByteSize, TypeAdapter, ValidationError

from prismcache.arguments import Numbers
from prismcache.client import PrismClient
from prismcache.crop.boxes import Shape3, Slices3
from prismcache.errors import RequestError, UnknownChannelError, error_from_problem
from prismcache.layout import LABELS, raw_dataset
from prismcache.progress.reporter import Progress, signs_of_life
from prismcache.schema import Split
from prismcache.splits import SplitEntry
from prismcache.torch.crop_facts import CropFacts, crop_name
from prismcache.torch.crops import (
    ClientCrops,
    Follower,
    Reader,
    cached_crops,
    describe,
    ensure_crops,
    facts_of_files,
    files_of_root,
    plan_client_crops,
)
from prismcache.torch.decoded import ArrayReader, Layout, SharedMemory, Sidecars, grown
from prismcache.torch.hdf5_chunks import CropReader, FilesReader
from prismcache.torch.memory import Board, check_memory, is_spawning
from prismcache.torch.patches import Channels, Context, check_fits, check_labels_fit, choose_channels

Source = PrismClient | str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class Demands:
    """The requirements of a training on each crop.

    Attributes
    ----------
    patch_shape
        (Z, Y, X) in voxels.
    channels
        As `PrismDataset` takes them.
    label_values
        "original", "consecutive", or None for original in semantic crops and consecutive in instance crops.
    exact_to, label_dtype
        The largest label that the tensors hold exactly, None for any; and the name of their dtype.
    context
        How far raw patches reach beyond label patches.
    targets
        The products and further arrays whose voxels are read beside raw and labels.
    """

    patch_shape: Shape3
    channels: Channels
    label_values: Literal["consecutive", "original"] | None
    exact_to: int | None
    label_dtype: str
    context: Context = field(default_factory=Context)
    targets: tuple[str, ...] = ()

    def original(self, entry: SplitEntry) -> bool:
        """Whether labels are the source's ids."""
        return entry.classes if self.label_values is None else self.label_values == "original"

    def check(self, facts: CropFacts, channels: Sequence[int]) -> None:
        """Check that a crop meets the requirements.

        Raises
        ------
        RequestError
            If a patch does not fit into the crop, a channel is missing, or a label is too large for the tensors.
        """
        for target in self.targets:
            facts.check_target(target, channels)
        check_fits(self.patch_shape, {facts.name: facts.drawable(self.context, self.targets)})
        if lacking := set(channels) - set(facts.channels):
            raise UnknownChannelError(f"{facts.path} lacks the channels {sorted(lacking)}")
        if not facts.entry.labels:
            return
        table = facts.table(original=self.original(facts.entry))
        if self.exact_to is not None and facts.ids is not None:
            largest = len(facts.ids) - 1 if table is None else int(table.max())
            check_labels_fit(largest, self.exact_to, facts.name, self.label_dtype)


@dataclass(frozen=True)
class Cache:
    """How decoded voxels are kept.

    Attributes
    ----------
    mode
        "none", "ram" or "mmap", as `PrismDataset` takes it.
    limit
        Bytes that decoded voxels may take; None is the default of the mode.
    folder
        The folder of decoded files, for "mmap".
    """

    mode: Literal["none", "ram", "mmap"]
    limit: int | None
    folder: Path

    @property
    def sidecars(self) -> Sidecars:
        """The decoded files."""
        return Sidecars(self.folder, self.limit)


class TrainingSet:
    """Crops by slot, 0…n-1, some of which may still be awaited.

    A copy that is pickled to a worker process shares memory with this one; any other copy decodes for itself.

    Parameters
    ----------
    source, split, crops, start, progress
        As `PrismDataset` takes them.
    demands
        The requirements on each crop.
    cache
        How decoded voxels are kept.
    """

    def __init__(
        self,
        source: Source,
        split: str | Split | None,
        crops: Numbers | None,
        demands: Demands,
        cache: Cache,
        *,
        start: Literal["first", "all"],
        progress: Progress,
    ) -> None:
        self._demands, self._cache = demands, cache
        self._client: PrismClient | None = None
        self._plan: ClientCrops | None = None
        self._facts: dict[int, CropFacts] = {}
        self._awaited: dict[int, CropFacts] = {}
        if isinstance(source, PrismClient):
            self._take_from_client(source, split, crops, start, progress)
        else:
            self._take_files(source, split, crops)
        names = [crop_name(self.split, crop) for crop in self.crops]
        check_fits(demands.patch_shape, {name: self.drawable(slot) for slot, name in enumerate(names)})
        for facts in self._facts.values():
            demands.check(facts, self.channels)
        self._set_up()

    def _take_files(self, source: Any, split: str | Split | None, crops: Numbers | None) -> None:
        paths = [source] if isinstance(source, str | os.PathLike) else source
        if not isinstance(paths, Iterable):
            raise RequestError(f"crops come from a PrismClient or from paths, not from {source!r}")
        paths = list(paths)
        if len(paths) == 1 and Path(paths[0]).is_dir():
            context = self._demands.context.voxels
            paths = files_of_root(Path(paths[0]), split, crops, self._demands.channels, context)
        found = facts_of_files(paths, split, crops)
        self.split, self.crops = found[0].split, tuple(facts.crop for facts in found)
        self.channels = choose_channels(self._demands.channels, {facts.name: facts.channels for facts in found})
        self._facts = dict(enumerate(found))

    def _take_from_client(
        self,
        client: PrismClient,
        split: str | Split | None,
        crops: Numbers | None,
        start: Literal["first", "all"],
        progress: Progress,
    ) -> None:
        wanted = self._demands.channels
        plan = plan_client_crops(client, split, crops, wanted, self._demands.context.voxels, self._demands.targets)
        self.split, self.crops = plan.split, plan.crops
        cached = set(plan.crops) if start == "all" else cached_crops(client, plan)
        later = [crop for crop in plan.crops if crop not in cached]
        described = dict(plan.described) or describe(client, plan.split, later)
        names = {
            crop_name(plan.split, crop): range(info.raw_shape[0]) for crop, info in described.items() if info.raw_shape
        }
        if isinstance(wanted, str) or later:
            self.channels = choose_channels(wanted, names)
        else:
            self.channels = choose_channels(wanted, {})
        now = [crop for crop in plan.crops if crop in cached]
        for path, crop in zip(ensure_crops(client, plan, now, progress), now, strict=True):
            self._facts[self.crops.index(crop)] = CropFacts.of(path)
        for crop in later:
            facts = CropFacts.expected(described[crop], self._demands.context.voxels)
            self._awaited[self.crops.index(crop)] = facts
        self._client, self._plan = client, plan

    def _set_up(self) -> None:
        """Make the memory that processes share, decode the crops that are there, and begin to await the others."""
        self._pid = os.getpid()
        self._readers: dict[int, Reader] = {}
        self._board = Board(len(self.crops)) if self._awaited else None
        self._memory: dict[int, SharedMemory] = {}
        layouts = {slot: self._layout(facts) for slot, facts in (self._facts | self._awaited).items()}
        if self._cache.mode == "ram":
            check_memory(sum(layout.size for layout in layouts.values()), self._cache.limit)
            self._memory = {slot: SharedMemory(layout) for slot, layout in layouts.items()}
        elif self._cache.mode == "mmap":
            self._make_room(layouts)
        with signs_of_life("decoding the cached crops"):
            for slot in self._facts:
                self._decode(slot, self._facts[slot])
        self._follower: Follower | None = None
        if self._board is not None and self._client is not None and self._plan is not None:
            slots = {self.crops[slot]: slot for slot in self._awaited}
            self._follower = Follower(self._client, self._plan, slots, self._board, self._prepare)

    def _make_room(self, layouts: dict[int, Layout]) -> None:
        sidecars = self._cache.sidecars
        ours = [(facts.path, layouts[slot]) for slot, facts in self._facts.items()]
        missing = sum(sum(sidecars.missing(path, layout).values()) for path, layout in ours)
        awaited = sum(layouts[slot].size for slot in self._awaited)
        if missing + awaited:
            sidecars.make_room(missing + awaited, ours)

    def __getstate__(self) -> dict[str, Any]:
        shares = is_spawning()
        state: dict[str, Any] = dict(self.__dict__)
        state.update(_readers={}, _follower=None, _shares=shares)
        if shares:
            state.update(_client=None)
        else:
            state.update(_board=None, _memory={})
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        shares = state.pop("_shares")
        self.__dict__.update(state)
        self._pid = os.getpid()
        if not shares:
            self._set_up()

    @property
    def targets(self) -> tuple[str, ...]:
        """The products and further arrays whose voxels are read beside raw and labels."""
        return self._demands.targets

    @property
    def original(self) -> bool:
        """Whether labels are the source's ids."""
        return self._demands.original(self.entry)

    @property
    def entry(self) -> SplitEntry:
        """What the split is."""
        return next(iter((self._facts or self._awaited).values())).entry

    @property
    def entries(self) -> list[SplitEntry]:
        """What each crop says of the split."""
        return [facts.entry for facts in (self._awaited | self._facts).values()]

    def shape(self, slot: int) -> Shape3:
        """Return (Z, Y, X) of a crop's labels, in voxels."""
        return (self._facts.get(slot) or self._awaited[slot]).shape

    def drawable(self, slot: int) -> Slices3:
        """Return the box of a crop's labels from which patches are drawn; of an awaited crop that is not known yet."""
        return (self._facts.get(slot) or self._awaited[slot]).drawable(self._demands.context, self.targets)

    def around(self, slot: int) -> Slices3:
        """Return the box of raw that a ready crop has, in voxels counted from the labels' first one."""
        facts = self._facts[slot]
        return grown(facts.shape, facts.before, facts.after)

    def facts(self, slot: int) -> CropFacts:
        """Return the facts of a crop that is ready."""
        return self._facts[slot]

    def ready(self) -> list[int]:
        """Return the slots of the crops that are there by now, ascending; if no crop is there, wait for the first one.

        Raises
        ------
        PrismError
            If a crop could not be fetched.
        """
        self._look()
        if not self._facts and self._follower is not None:
            with signs_of_life("waiting for the first crop"):
                self._follower.wait_for_one()
            self._look()
        return sorted(self._facts)

    def wait(self) -> None:
        """Wait until every crop is there, in the process that has the client."""
        if self._follower is not None:
            with signs_of_life("waiting until every crop is there"):
                self._follower.join()
        self._look()

    def _look(self) -> None:
        if self._board is None:
            return
        for slot in [slot for slot in self._awaited if slot not in self._facts]:
            arrival = self._board.look(slot)
            if arrival is None:
                continue
            if arrival.problem is not None:
                raise error_from_problem(arrival.problem)
            self._facts[slot] = CropFacts.of(arrival.path)

    def _prepare(self, slot: int, path: Path) -> None:
        facts = CropFacts.of(path)
        self._demands.check(facts, self.channels)
        self._decode(slot, facts)

    def _decode(self, slot: int, facts: CropFacts) -> None:
        if self._cache.mode == "ram":
            reader = self._file(facts)
            self._memory[slot].fill(reader, self._layout(facts))
            reader.close()
        elif self._cache.mode == "mmap":
            self._cache.sidecars.arrays(facts.path, self._layout(facts), lambda: self._file(facts))

    def _layout(self, facts: CropFacts) -> Layout:
        return facts.layout(self.channels, self._demands.context.voxels, self.targets)

    def _file(self, facts: CropFacts, threads: int | None = None) -> CropReader | FilesReader:
        threads = available_cores() if threads is None else threads
        starts = {name: facts.arrays[name].start for name in self.targets if name in facts.arrays}
        names = [*([LABELS] if facts.entry.labels else []), *map(raw_dataset, self.channels), *starts]
        reader = CropReader(facts.path, names, threads, facts.before, starts)
        if not self.targets:
            return reader
        files = self._layout(facts).files
        products = {name: CropReader(path, [name], threads) for name, path in files.items()}
        return FilesReader(dict.fromkeys(names, reader) | products)

    def reader(self, slot: int, threads: int) -> Reader:
        """Return the reader of a ready crop in this process."""
        if self._pid != os.getpid():
            self._pid, self._readers = os.getpid(), {}
        if slot not in self._readers:
            self._readers[slot] = self._open(self._facts[slot], slot, threads)
        return self._readers[slot]

    def _open(self, facts: CropFacts, slot: int, threads: int) -> Reader:
        layout = self._layout(facts)
        if self._cache.mode == "ram":
            return ArrayReader(self._memory[slot].arrays(layout), layout)
        if self._cache.mode == "mmap":
            return ArrayReader(self._cache.sidecars.arrays(facts.path, layout, lambda: self._file(facts)), layout)
        return self._file(facts, threads)

    def close(self) -> None:
        """Close the files of this process; the next read opens them anew."""
        readers, self._readers = self._readers, {}
        for reader in readers.values():
            reader.close()


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_bytes(value: str | int | None) -> int | None:
    """Return a number of bytes, written as "4GB" or 4_000_000_000; None stays None.

    Raises
    ------
    RequestError
        If the value is no size.
    """
    try:
        return None if value is None else int(TypeAdapter(ByteSize).validate_python(value))
    except ValidationError:
        raise RequestError(f"cache_limit must be a size such as '4GB', not {value!r}") from None
