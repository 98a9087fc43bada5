"""Cached crops as training batches. Needs torch and h5py (``prismcache[torch]``).

::

    from torch.utils.data import DataLoader

    from prismcache import PrismClient
    from prismcache.torch import PrismDataset

    dataset = PrismDataset(PrismClient(), "instance", [0, 5], patch_shape=(32, 256, 256), cache="ram")
    for raw, labels in DataLoader(dataset, batch_size=2, num_workers=2):
        ...  # (2, 1, 32, 256, 256) float32, (2, 1, 32, 256, 256) int64
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from prismcache.errors import MissingExtraError

try:
    import h5py  # noqa: F401 - so that it is missed here, with the remedy
    import numpy as np
    import torch
    from torch.utils.data import Dataset
except ImportError as error:
    raise MissingExtraError(
        f"prismcache.torch needs {error.name}, which is not installed", remedy='pip install "prismcache[torch]"'
    ) from error

from prismcache.arguments import Numbers
from prismcache.catalog import load_splits
from prismcache.client import PrismClient
from prismcache.config import Settings
from prismcache.crop.boxes import Slices3
from prismcache.errors import RequestError
from prismcache.numbers import format_shape
from prismcache.progress.reporter import Progress
from prismcache.schema import Split
from prismcache.splits import Splits
from prismcache.torch.memory import Visits
from prismcache.torch.patch_reader import Here, Patch, PatchReader
from prismcache.torch.patches import (
    Array,
    Channels,
    Context,
    Grid,
    check_option,
    check_patch_shape,
    parse_targets,
    parse_wanted,
    random_box,
    samples_of,
)
from prismcache.torch.tensors import as_spatial, as_tensor, dtypes_as_read, exact_to, seeded
from prismcache.torch.training_set import Cache, Demands, Source, TrainingSet, parse_bytes

__all__ = ["PrismDataset"]

Transform = Callable[[Any], Any]

_MAX_ATTEMPTS = 500  # as torch_em's


class PrismDataset(Dataset):  # type: ignore[misc]  # torch is Any where mypy runs
    """Patches of cached crops: ``dataset[i]`` is ``(raw, labels, *targets)``, tensors.

    Raw is (C, Z, Y, X), labels are (1, Z, Y, X), and so are targets, if any are asked for. Crops of a split without
    labels, such as synapses, give ``(raw, *targets)``; what is said of the labels' box below is then that of raw.

    With random patches, a sample is another patch each time that it is drawn. The patch depends only on the seed, the
    sample's number and how often the sample was drawn before. So with the same seed a `DataLoader` gives the same
    batches with any number of workers and any way to start them, and random callables are seeded in the same way.
    (While crops are still being fetched, patches come from the crops that are there, which depends on time.) Call
    `set_epoch` before each epoch if a loop leaves epochs early, since workers draw samples ahead, and in a training
    over several processes, as with torch's DistributedSampler.

    Each process opens the files when it first reads. The dataset may be pickled.

    Parameters
    ----------
    source
        A `PrismClient`, which fetches the crops and which you close; or paths of crops' files; or a cache folder.
    split
        "instance", "semantic", "synapses", or a split of a lab's own catalog. Default: "instance" of a client or a
        folder; the split of the files.
    crops
        Crop numbers; None is every crop that a client knows, or all of the files.
    patch_shape
        (Z, Y, X) of a label patch, in voxels; without context also of a raw patch.
    channels
        A channel number, several (in this order), text such as "0-2,5", "all" (crops must have equally many) or
        "common" for those that all crops have. With a client only these are fetched.
    context
        Voxels that raw reaches beyond the labels on each side, one number or (Z, Y, X): raw patches are
        ``patch_shape + 2 * context``, in the middle of which the label patch lies. For networks without padding
        ("valid" convolutions). A client fetches as much of it as the source has.
    context_padding
        "none" draws only patches whose whole context is in the file. "zeros" and "reflect" draw from everywhere, and
        fill what the file lacks with zeros or by mirroring raw at its border.
    targets
        What follows labels as further tensors, in this order. Products: "avg_barcodes" (C, Z, Y, X), with the channels
        of raw; "unlabelled", and for semantic crops "fgbg" and "border_mask", (1, Z, Y, X). A client has them made;
        else their files lie beside the crops'. Or arrays of the crops' files, such as "psd95_output" of synapses,
        (1, Z, Y, X): patches are drawn where each of them has voxels. All have the box of the label patch and `dtype`.
    label_values
        "original" gives the source's ids, "consecutive" 1…n in each crop. Default: original for the semantic split,
        whose class ids are the same in every crop, else consecutive.
    raw_transform, label_transform, transform, label_transform2
        Applied in this order, as torch_em does: to raw; to labels; to both and all targets, ``transform(raw, labels,
        *targets)``, which returns an array for each of them, as an augmentation; to labels again. They get
        arrays, raw (Z, Y, X) uint8, or (C, Z, Y, X) unless `channels` is a single number, and labels (Z, Y, X)
        uint32, or uint64 if original; they may return tensors.
    sampler
        ``sampler(raw, labels) -> bool`` returns whether to take a patch; called before the transforms, without labels
        as ``sampler(raw, *targets)``. Only for random patches.
    n_samples
        Length of the dataset, shared evenly among the crops. Default: the number of patches with as many voxels as all
        crops have.
    sampling
        "random", or "grid": the patches that tile each crop, in order, moved inward at the far borders.
    dtype, label_dtype
        Dtypes of the tensors.
    cache
        "none" decodes each patch from the file. "ram" decodes all crops once, into memory that DataLoader workers
        share. "mmap" decodes them once for this machine, into files (in `Settings.decoded`) that are mapped into
        memory; the next training finds them.
    cache_limit
        Bytes that decoded voxels may take, such as "20GB". For "mmap" that includes the files of other trainings, of
        which those used longest ago are deleted. Default: 80 % of the available memory; all of the disk but 1 GB.
    cache_folder
        A folder for "mmap" in place of `Settings.decoded`.
    start
        With a client and random patches: "first" begins with the crops that are cached, or with the first that comes;
        the others are fetched meanwhile, and each joins when it is ready. "all" waits for all crops.
    prefetch
        Number of samples that a thread reads ahead, in ascending order (or the rest of a batch); for loaders without
        workers.
    threads
        Threads that inflate one patch. Default: all cores in the main process, one in a worker.
    generator
        Draws the seed. Default: torch's own generator, which `torch.manual_seed` seeds.
    progress
        Progress display while crops are fetched; as `PrismClient.ensure` takes it.

    Attributes
    ----------
    split, crops, channels
        The split, the crops' numbers and the channels' numbers.
    raw_patch_shape
        (Z, Y, X) of a raw patch, in voxels.
    seed
        The seed.

    Raises
    ------
    RequestError
        If an argument cannot be met; the message names the crop, channel or number, and the remedy what is possible.
    MemoryLimitError, NoSpaceError
        If decoded voxels do not fit.
    PrismError
        If a crop cannot be fetched or read; raised by a later sample if the crop was awaited.

    Examples
    --------
    >>> dataset = PrismDataset(PrismClient("/lab/prism"), "semantic", [0, 1], patch_shape=(4, 8, 8), channels="common")
    >>> raw, labels = dataset[0]
    >>> raw.shape, labels.dtype
    (torch.Size([3, 4, 8, 8]), torch.int64)
    """

    ndim = 3

    def __init__(  # noqa: PLR0913 - torch_em's conventions, one keyword each
        self,
        source: Source,
        split: str | Split | None = None,
        crops: Numbers | None = None,
        *,
        patch_shape: Sequence[int],
        channels: Channels | str = 0,
        context: int | Sequence[int] = 0,
        context_padding: Literal["none", "zeros", "reflect"] = "none",
        targets: Sequence[str] = (),
        label_values: Literal["consecutive", "original"] | None = None,
        raw_transform: Transform | None = None,
        label_transform: Transform | None = None,
        label_transform2: Transform | None = None,
        transform: Callable[..., Sequence[Any]] | None = None,
        sampler: Callable[[Any, Any], bool] | None = None,
        n_samples: int | None = None,
        sampling: Literal["random", "grid"] = "random",
        dtype: torch.dtype = torch.float32,
        label_dtype: torch.dtype = torch.int64,
        cache: Literal["none", "ram", "mmap"] = "none",
        cache_limit: int | str | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        start: Literal["first", "all"] = "first",
        prefetch: int = 0,
        threads: int | None = None,
        generator: torch.Generator | None = None,
        progress: Progress = None,
    ) -> None:
        check_option("context_padding", context_padding, ("none", "zeros", "reflect"))
        check_option("label_values", label_values, (None, "consecutive", "original"))
        check_option("sampling", sampling, ("random", "grid"))
        check_option("cache", cache, ("none", "ram", "mmap"))
        check_option("start", start, ("first", "all"))
        if sampling == "grid" and (sampler is not None or n_samples is not None):
            raise RequestError("a grid has every patch once: sampler and n_samples need sampling='random'")
        products = parse_targets(targets)
        channels = parse_wanted(channels)
        self.patch_shape = check_patch_shape(patch_shape)
        self._context = Context.of(context, context_padding)
        z, y, x = (size + 2 * c for size, c in zip(self.patch_shape, self._context.voxels, strict=True))
        self.raw_patch_shape = z, y, x
        self.raw_transform, self.transform = raw_transform, transform
        self.label_transform, self.label_transform2 = label_transform, label_transform2
        self.sampler = sampler
        self.dtype, self.label_dtype = dtype, label_dtype
        self._with_channels = isinstance(channels, str) or np.ndim(np.asarray(channels)) > 0
        self._prefetch, self._threads = prefetch, threads
        changes_labels = label_transform is not None or label_transform2 is not None
        self._raw_out, self._labels_out, self._targets_out = dtypes_as_read(
            dtype,
            label_dtype,
            changes_raw=raw_transform is not None,
            changes_labels=changes_labels,
            changes_all=transform is not None or sampler is not None,
        )
        exact = None if changes_labels else exact_to(label_dtype)
        demands = Demands(self.patch_shape, channels, label_values, exact, str(label_dtype), self._context, products)
        settings = source.settings if isinstance(source, PrismClient) else Settings.load()
        folder = settings.decoded if cache_folder is None else Path(os.path.abspath(cache_folder))
        self._set = TrainingSet(
            source,
            split,
            crops,
            demands,
            Cache(cache, parse_bytes(cache_limit), folder),
            start="all" if sampling == "grid" else start,
            progress=progress,
        )
        self.split, self.crops, self.channels = self._set.split, self._set.crops, self._set.channels
        if not self._set.entry.labels and any((label_values, label_transform, label_transform2)):
            raise RequestError(
                f"crops of {self.split.value!r} have no labels", remedy="Leave out label_values and label transforms."
            )
        self._catalog = settings.catalog
        self.seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())
        slots = range(len(self.crops))
        self._grids: list[Grid] = []
        if sampling == "grid":
            self._grids = [Grid(self._set.drawable(slot), self.patch_shape) for slot in slots]
            self._slots = np.repeat(np.arange(len(slots), dtype=np.int32), [len(grid) for grid in self._grids])
        else:
            self._slots = samples_of(n_samples, [self._set.shape(slot) for slot in slots], self.patch_shape)
        self._visits = Visits([0] * len(self._slots))
        self._here: Here | None = None
        self._set.ready()

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return self._sample(self._number(index), ())

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, ...]]:
        """Return the samples of a batch, for DataLoader."""
        numbers = [self._number(index) for index in indices]
        return [self._sample(number, numbers[place + 1 :]) for place, number in enumerate(numbers)]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_here": None}

    def __repr__(self) -> str:
        crops = ", ".join(map(str, self.crops))
        raw = f", raw {format_shape(self.raw_patch_shape)}" if any(self._context.voxels) else ""
        return (
            f"<PrismDataset {self.split.value} crops {crops}: {len(self)} patches of {format_shape(self.patch_shape)} "
            f"voxels{raw}, channels {', '.join(map(str, self.channels))}>"
        )

    def overlaps(self, other: PrismDataset) -> bool:
        """Return whether a crop of this dataset shows the same tissue as a crop of another one.

        Semantic crop 0 is the tissue of instance crop 2, so a training on one and a validation on the other leak. Which
        crops show the same tissue, the catalog knows.
        """
        splits = Splits([*load_splits(self._catalog).values(), *self._set.entries, *other._set.entries])
        ours, theirs = ({f"{each.split}/{crop}" for crop in each.crops} for each in (self, other))
        same = {name for each in self.crops for name in splits.same_tissue(self.split, each)}
        return not (ours | same).isdisjoint(theirs)

    @property
    def ready_crops(self) -> list[int]:
        """The crops that are there by now."""
        return [self.crops[slot] for slot in self._set.ready()]

    def wait(self) -> Self:
        """Wait until every crop is there; only in the process that made the dataset."""
        self._set.wait()
        return self

    def set_epoch(self, epoch: int) -> None:
        """Count all samples as drawn `epoch` times, to resume a training or to run one over several processes."""
        self._visits.set_all(epoch)

    def close(self) -> None:
        """Close the files that this process has open; the next sample opens them again."""
        self._set.close()

    def _number(self, index: int) -> int:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"there is no sample {number} in {len(self)}")
        return number % len(self)

    def _sample(self, number: int, upcoming: Sequence[int]) -> tuple[torch.Tensor, ...]:
        visit = self._visits.next(number)
        here = self._process()
        waiting = here.ahead.pop((number, visit), None)
        patch = self._patch(number, visit) if waiting is None else waiting.result()
        if self._prefetch:
            self._read_ahead(here, [*upcoming, *range((upcoming or [number])[-1] + 1, len(self))][: self._prefetch])
        if self._raw_out is not None and self._labels_out is not None:
            return (patch.raw, *([] if patch.labels is None else [patch.labels]), *patch.targets)
        with seeded((self.seed, number, visit, 1)):
            return self._transformed(self._accepted(patch))

    def _accepted(self, patch: Patch) -> Patch:
        if self.sampler is None:
            return patch
        for _ in range(_MAX_ATTEMPTS):
            beside = [each[0] for each in (patch.targets if patch.labels is None else [patch.labels])]
            if self.sampler(self._shown(patch.raw), *beside):
                return patch
            patch = self._random_patch(patch.slot, patch.random)
        raise RequestError(
            f"the sampler refused {_MAX_ATTEMPTS} patches of {self._set.facts(patch.slot).name} in a row",
            remedy="Have it accept more, take a larger patch_shape, or leave this crop out.",
        )

    def _transformed(self, patch: Patch) -> tuple[torch.Tensor, ...]:
        raw, labels = patch.raw, patch.labels
        targets: Sequence[Any] = patch.targets
        if self._raw_out is None:
            raw = self._shown(raw)
            raw = raw if self.raw_transform is None else self.raw_transform(raw)
        if self._labels_out is None and labels is not None:
            labels = labels[0]
            labels = labels if self.label_transform is None else self.label_transform(labels)
        if self.transform is not None:
            shown = [each[0] if len(each) == 1 and not self._with_channels else each for each in targets]
            raw, *targets = self.transform(raw, *([] if labels is None else [labels]), *shown)
            labels = None if labels is None else targets.pop(0)
        if self.label_transform2 is not None:
            labels = self.label_transform2(as_spatial(labels, patch.labels.dtype))
        tensors = [] if labels is None else [as_tensor(labels, self.label_dtype, "labels")]
        tensors += [as_tensor(each, self.dtype, "a target") for each in targets]
        return as_tensor(raw, self.dtype, "raw"), *tensors

    def _shown(self, raw: Array) -> Array:
        return raw if self._with_channels else raw[0]

    def _patch(self, number: int, visit: int) -> Patch:
        slot = int(self._slots[number])
        random = np.random.default_rng((self.seed, number, visit))
        if self._grids:
            first = int(np.searchsorted(self._slots, slot))
            return self._read(slot, random, self._grids[slot].box(number - first))
        ready = self._set.ready()
        if slot not in ready:
            slot = ready[int(random.integers(len(ready)))]
        return self._random_patch(slot, random)

    def _random_patch(self, slot: int, random: np.random.Generator) -> Patch:
        return self._read(slot, random, random_box(random, self._set.drawable(slot), self.patch_shape))

    def _read(self, slot: int, random: np.random.Generator, box: Slices3) -> Patch:
        return Patch(slot, random, *self._process().patches.read(slot, box))

    def _read_ahead(self, here: Here, upcoming: Sequence[int]) -> None:
        wanted = [(number, self._visits.peek(number)) for number in upcoming]
        for key in here.ahead.keys() - set(wanted):
            here.ahead.pop(key).cancel()
        for key in wanted:
            if key not in here.ahead:
                here.ahead[key] = here.thread.submit(self._patch, *key)

    def _process(self) -> Here:
        if self._here is None or self._here.pid != os.getpid():
            outs = self._raw_out, self._labels_out, self._targets_out
            patches = PatchReader(self._set, self.patch_shape, self._context, outs, self._threads)
            self._here = Here(os.getpid(), patches)
        return self._here
