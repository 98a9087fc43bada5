"""Reads patches of a training set: raw with its context, and labels, into tensors or arrays."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from prismcache.crop.boxes import Shape3, Slices3
from prismcache.layout import LABELS, raw_dataset
from prismcache.torch.crop_facts import target_datasets
from prismcache.torch.patches import Array, Context, clipped
from prismcache.torch.tensors import Buffers
from prismcache.torch.training_set import TrainingSet, available_cores


class PatchReader:
    """Reads patches in one process.

    Parameters
    ----------
    crops
        The crops to read.
    patch_shape
        (Z, Y, X) of a label patch, in voxels.
    context
        How far raw reaches beyond the labels.
    outs
        Dtypes of the tensors of raw, labels and targets. None: arrays of the file's dtype, for callables to work on.
    threads
        Threads that inflate one patch; None is all cores in the main process, and one in a DataLoader's worker.
    """

    def __init__(
        self,
        crops: TrainingSet,
        patch_shape: Shape3,
        context: Context,
        outs: tuple[np.dtype[Any] | None, np.dtype[Any] | None, np.dtype[Any] | None],
        threads: int | None,
    ) -> None:
        self._crops, self._context, self._threads = crops, context, threads
        self._raw_out, self._labels_out, self._targets_out = outs
        wide = [size + 2 * reach for size, reach in zip(patch_shape, context.voxels, strict=True)]
        self._raw_shape, self._labels_shape = (len(crops.channels), *wide), (1, *patch_shape)
        self._buffers = Buffers()
        self._tables: dict[int, Array | None] = {}

    def read(self, slot: int, box: Slices3) -> tuple[Any, Any, tuple[Any, ...]]:
        """Return raw (C, Z, Y, X), labels (1, Z, Y, X) and the targets of a patch, (C, Z, Y, X) or (1, Z, Y, X).

        Labels are None in a split without labels.

        Parameters
        ----------
        slot
            A crop that is ready.
        box
            Box of the labels, (Z, Y, X) in voxels; raw is that of the box with its context.

        Raises
        ------
        PrismError
            If the file cannot be read.
        """
        threads = self._threads or (available_cores() if get_worker_info() is None else 1)
        reader = self._crops.reader(slot, threads)
        wide = self._context.around(box)
        inside, missing = clipped(wide, self._crops.around(slot))
        mode: Any = "reflect" if self._context.padding == "reflect" else "constant"
        raw, voxels = self._memory(self._raw_shape, self._raw_out, np.uint8)
        for channel, target in zip(self._crops.channels, voxels, strict=True):
            if missing is None:
                reader.read(raw_dataset(channel), wide, target)
            else:
                part = np.empty([each.stop - each.start for each in inside], np.uint8)
                reader.read(raw_dataset(channel), inside, part)
                target[...] = np.pad(part, missing, mode)
        facts, labels = self._crops.facts(slot), None
        if facts.entry.labels:
            native = np.uint64 if self._crops.original else np.uint32
            labels, voxels = self._memory(self._labels_shape, self._labels_out, native)
            reader.read(LABELS, box, voxels[0], self._table(slot, voxels.dtype))
        targets = []
        for each in self._crops.targets:
            names = target_datasets(each, self._crops.channels)
            own = np.dtype(facts.arrays[each].dtype if each in facts.arrays else np.uint8)
            target, voxels = self._memory((len(names), *self._labels_shape[1:]), self._targets_out, own)
            for name, part in zip(names, voxels, strict=True):
                reader.read(name, box, part)
            targets.append(target)
        return raw, labels, tuple(targets)

    def _memory(self, shape: tuple[int, ...], out: np.dtype[Any] | None, native: Any) -> tuple[Any, Array]:
        """Return the memory of a patch, a tensor if no callable will change it, and the array that fills it."""
        if out is not None:
            return self._buffers.tensor(shape, out)
        array = np.empty(shape, native)
        return array, array

    def _table(self, slot: int, dtype: np.dtype[Any]) -> Array | None:
        if slot not in self._tables:
            table = self._crops.facts(slot).table(original=self._crops.original)
            self._tables[slot] = None if table is None else table.astype(dtype)
        return self._tables[slot]


@dataclass(frozen=True)
class Patch:
    """A patch as it was read.

    Attributes
    ----------
    slot
        The crop's slot in the `TrainingSet`.
    random
        Draws further patches of the same sample.
    raw, labels
        (C, Z, Y, X) and (1, Z, Y, X); labels are None in a split without labels.
    targets
        Of each product or further array (C, Z, Y, X) or (1, Z, Y, X).
    """

    slot: int
    random: np.random.Generator
    raw: Any
    labels: Any
    targets: tuple[Any, ...]


@dataclass
class Here:
    """The state of one process: threads and locks do not survive a fork."""

    pid: int
    patches: PatchReader
    ahead: dict[tuple[int, int], Future[Patch]] = field(default_factory=dict)
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "prismcache-prefetch"))
