"""Small crop files in the published format, and jobs that write them. The first file imports h5py and numpy."""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismcache.disk import sha256_of, stamp_of, write_atomically
from prismcache.errors import (
    CropNotCachedError,
    PrismError,
    RequestError,
    UnknownChannelError,
    UnknownCropError,
    UnknownJobError,
)
from prismcache.layout import (
    AXIS_NAMES,
    FORMAT_VERSION,
    LABELS,
    LABELS_IDS,
    UNITS,
    Manifest,
    cache_state,
    crop_path,
    manifest_path,
    raw_dataset,
)
from prismcache.schema import (
    CropFile,
    CropInfo,
    CropProgress,
    Job,
    JobRequest,
    Split,
    State,
    Verdict,
    VerifyResult,
)

if TYPE_CHECKING:
    import h5py
    import numpy as np
    from numpy.typing import NDArray

SHAPE = (3, 8, 24, 24)
"""(C, Z, Y, X) of a made-up crop."""

VOXEL_SIZE = (400, 168, 168)
SOURCE = "memory"


@dataclass(frozen=True)
class CropArrays:
    """One crop's arrays: `raw` (C, Z, Y, X) uint8, `labels` (Z, Y, X) of any unsigned ids."""

    raw: NDArray[np.uint8]
    labels: NDArray[np.uint64]

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(range(len(self.raw)))


def crop_arrays(split: Split, crop: int, given: Any) -> CropArrays:
    """Return the arrays of a crop.

    Parameters
    ----------
    split, crop
        Decide the made-up arrays.
    given
        A mapping with ``raw`` and ``labels``, or None or ... for small made-up arrays, always the same.

    Raises
    ------
    RequestError
        If the shapes do not fit each other.
    """
    import numpy as np

    if given is None or given is ...:
        return _made_up(split, crop)
    if not isinstance(given, Mapping) or not {"raw", "labels"} <= given.keys():
        raise RequestError(f"crop {split.value}/{crop}: give a mapping with 'raw' (C,Z,Y,X) and 'labels' (Z,Y,X)")
    raw, labels = np.asarray(given["raw"], dtype=np.uint8), np.asarray(given["labels"]).astype(np.uint64)
    if raw.ndim != 4 or raw.shape[1:] != labels.shape:
        raise RequestError(f"crop {split.value}/{crop}: raw {raw.shape} and labels {labels.shape} do not fit")
    return CropArrays(raw, labels)


def write_crop(
    root: Path, split: Split, crop: int, arrays: CropArrays, channels: tuple[int, ...] | None = None
) -> CropFile:
    """Write a crop's file and manifest below `root`, as the service publishes them; the same bytes each time.

    Parameters
    ----------
    root
        The cache folder.
    split, crop
        Which crop it is.
    arrays
        All of its channels.
    channels
        Only these; None is all.
    """
    import h5py

    path = root / crop_path(split, crop, channels)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with h5py.File(temporary, "w", locking=False) as file:
        _fill(file, split, crop, arrays, arrays.channels if channels is None else channels)
    temporary.replace(path)
    manifest = _manifest(path, split, crop, arrays, channels)
    place = root / manifest_path(split, crop, channels)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, manifest.model_dump_json().encode())
    return manifest.file_at(path)


def _fill(file: h5py.File, split: Split, crop: int, arrays: CropArrays, channels: tuple[int, ...]) -> None:
    import numpy as np

    ids, labels = np.unique(np.append(arrays.labels, np.uint64(0)), return_inverse=True)
    file.attrs.update(
        {
            "crop_id": crop,
            "split": split.value,
            "num_channels": len(arrays.raw),
            "format_version": FORMAT_VERSION,
            "prismcache_version": SOURCE,
            "source": SOURCE,
            "source_fingerprint": SOURCE,
            "missing_chunks": 0,
        }
    )
    datasets = {raw_dataset(channel): arrays.raw[channel] for channel in channels}
    datasets[LABELS] = labels[:-1].reshape(arrays.labels.shape).astype(np.uint32)
    for name, values in datasets.items():
        dataset = file.create_dataset(name, data=values, chunks=True, compression="gzip", compression_opts=1)
        dataset.attrs.update({"offset": (0, 0, 0), "resolution": VOXEL_SIZE, "voxel_size": VOXEL_SIZE})
        dataset.attrs.update({"axis_names": AXIS_NAMES, "units": UNITS})
    file.create_dataset(LABELS_IDS, data=ids.astype(np.uint64))


def _manifest(path: Path, split: Split, crop: int, arrays: CropArrays, channels: tuple[int, ...] | None) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        split=split,
        crop=crop,
        channels=arrays.channels if channels is None else channels,
        complete=channels is None,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
        stamp=stamp_of(path.stat()),
        source=SOURCE,
        endpoint="",
        source_fingerprint=SOURCE,
        missing_chunks=0,
        recipe=SOURCE,
        prismcache_version=SOURCE,
        libraries={},
        created_at="1970-01-01T00:00:00Z",
    )


def _made_up(split: Split, crop: int) -> CropArrays:
    """Noise with a few cuboid objects, whose ids have gaps as published ones do."""
    import numpy as np

    random = np.random.default_rng([list(Split).index(split), crop])
    labels = np.zeros(SHAPE[1:], np.uint64)
    for number in range(1, 5):
        z, y, x = (int(random.integers(0, size // 2)) for size in SHAPE[1:])
        labels[z : z + 4, y : y + 10, x : x + 10] = 1000 * number + crop
    return CropArrays(random.integers(0, 256, SHAPE, np.uint8), labels)


class Lab:
    """The crops that are published and cached, and the jobs; shared by all clients and safe to use from any thread."""

    def __init__(self, root: Path, crops: Mapping[tuple[Split, int], Any]) -> None:
        self.root = root
        self.published = dict(sorted(crops.items()))
        self.lock = threading.RLock()
        self.held = False
        self.failing: dict[tuple[Split, int], PrismError | None] = {}
        self.files: dict[tuple[Split, int, tuple[int, ...] | None], CropFile] = {}
        self.jobs: dict[str, tuple[JobRequest, Job, set[str]]] = {}  # with the names of those who want it

    def arrays(self, split: Split, crop: int) -> CropArrays:
        if (split, crop) not in self.published:
            raise UnknownCropError(f"crop {crop} of split {split.value!r} is not published")
        return crop_arrays(split, crop, self.published[split, crop])

    def good(self, split: Split, crop: int, channels: tuple[int, ...] | None) -> CropFile | None:
        """Return the cached file of exactly these channels (None: all), if its content is still right."""
        file = self.files.get((split, crop, channels))
        path = self.root / crop_path(split, crop, channels)
        return file if file is not None and path.is_file() and sha256_of(path) == file.sha256 else None

    def make(self, split: Split, crop: int, channels: tuple[int, ...] | None) -> CropFile:
        """Return a file that has the channels, written if need be."""
        arrays = self.arrays(split, crop)
        for channel in channels or ():
            if channel not in arrays.channels:
                raise UnknownChannelError(f"crop {split.value}/{crop} has no channel {channel}")
        subset = None if channels == arrays.channels else channels
        found = self.good(split, crop, None) or self.good(split, crop, subset)
        if found is None:
            found = self.files[split, crop, subset] = write_crop(self.root, split, crop, arrays, subset)
        return found

    def submit(self, request: JobRequest, name: str) -> Job:
        """Return the active job for the same request, or a new one, which is final if everything is cached."""
        for same, job, names in self.jobs.values():
            if same == request and not job.state.is_final:
                names.add(name)
                return job
        split, channels = request.split, request.channels
        crops = [crop for each, crop in self.published if each is split] if request.crops is None else request.crops
        progress = []
        for crop in crops:
            file = self.good(split, crop, None) or self.good(split, crop, channels)
            progress.append(CropProgress(crop=crop, state=State.DONE if file else State.RUNNING, file=file))
        job = Job(
            id=uuid.uuid4().hex,
            revision=0,
            state=_state_of(progress),
            split=split,
            channels=channels,
            crops=tuple(progress),
            strict=request.strict,
        )
        self.jobs[job.id] = request, job, {name}
        return job

    def advance(self, job_id: str) -> Job:
        """Make one more crop of a job, unless jobs are held; return the job after that."""
        _, job, _ = self.find(job_id)
        following = next((crop.crop for crop in job.crops if not crop.state.is_final), None)
        if following is None or self.held:
            return job
        try:
            if (error := self.failing.get((job.split, following))) is not None:
                raise error
            file = self.make(job.split, following, job.channels)
        except PrismError as error:
            return self._change(job_id, CropProgress(crop=following, state=State.FAILED, problem=error.to_problem()))
        return self._change(job_id, CropProgress(crop=following, state=State.DONE, file=file))

    def cancel(self, job_id: str, name: str) -> None:
        """End the wish of one call; the job is cancelled with the last of them."""
        _, job, names = self.find(job_id)
        names.discard(name)
        for crop in () if names else job.crops:
            if not crop.state.is_final:
                self._change(job_id, CropProgress(crop=crop.crop, state=State.CANCELLED))

    def find(self, job_id: str) -> tuple[JobRequest, Job, set[str]]:
        if job_id not in self.jobs:
            raise UnknownJobError(f"there is no job {job_id!r}")
        return self.jobs[job_id]

    def describe(self, split: Split, crop: int) -> CropInfo:
        arrays = self.arrays(split, crop)
        files = tuple(file for key, file in self.files.items() if key[:2] == (split, crop))
        return CropInfo(
            split=split,
            crop=crop,
            state=cache_state(files, is_making=False),
            raw_shape=arrays.raw.shape,
            labels_shape=arrays.labels.shape,
            offset=(0, 0, 0),
            voxel_size=VOXEL_SIZE,
            source_bytes=arrays.raw.nbytes + arrays.labels.nbytes,
            source_objects=1 + len(arrays.raw),
            files=files,
        )

    def verify(self, split: Split | None, crops: Sequence[int] | None, *, repair: bool) -> list[VerifyResult]:
        """Read cached files again; with `repair`, write damaged files again."""
        keys = [key for key in self.files if split in {None, key[0]} and (crops is None or key[1] in crops)]
        if absent := set(crops or ()) - {key[1] for key in keys}:
            raise CropNotCachedError(f"not cached: crops {', '.join(map(str, sorted(absent)))}")
        found = []
        for key in keys:
            file, verdict, reason = self.files[key], Verdict.OK, ""
            if self.good(*key) is None:
                verdict = Verdict.REPAIRED if repair else Verdict.CORRUPT
                reason = f"{file.path} is not what was published"
                if repair:
                    self.make(*key)
            result = VerifyResult(
                split=key[0], crop=key[1], channels=file.channels, path=file.path, verdict=verdict, reason=reason
            )
            found.append(result)
        return found

    def remove(self, split: Split, crops: Sequence[int] | None) -> list[CropFile]:
        """Delete the cached files of these crops (None: of all); return the files."""
        keys = [key for key in self.files if key[0] is split and (crops is None or key[1] in crops)]
        for key in keys:
            (self.root / crop_path(*key)).unlink(missing_ok=True)
            (self.root / manifest_path(*key)).unlink(missing_ok=True)
        return [self.files.pop(key) for key in keys]

    def _change(self, job_id: str, progress: CropProgress) -> Job:
        request, job, names = self.jobs[job_id]
        crops = tuple(progress if crop.crop == progress.crop else crop for crop in job.crops)
        job = job.model_copy(update={"crops": crops, "state": _state_of(crops), "revision": job.revision + 1})
        self.jobs[job_id] = request, job, names
        return job


def _state_of(crops: Sequence[CropProgress]) -> State:
    states = {crop.state for crop in crops}
    return next((state for state in (State.RUNNING, State.CANCELLED, State.FAILED) if state in states), State.DONE)
