"""What lies in a cache folder, seen from outside, and small crops to fill it with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prismcache.config import Settings
from prismcache.layout import STATE_FOLDER
from prismcache.schema import CropProgress, Job, State
from tests.support.codecs import ArrayLayout
from tests.support.crops import BUCKET, CropSpec, crop_folder
from tests.support.faults import FaultProxy


def tiny_spec(crop: int = 0, split: Literal["instance", "semantic"] = "instance", **changes: Any) -> CropSpec:
    """A crop of 0.1 MB in 24 objects, metadata and group included; `changes` are further fields of `CropSpec`."""
    fields: dict[str, Any] = {"channels": 3, "raw_shape": (20, 48, 48), "labels_shape": (12, 30, 32)}
    return CropSpec(split, crop, **(fields | changes))


def many_objects_spec(crop: int = 0, **changes: Any) -> CropSpec:
    """A crop of 0.2 MB in 160 chunk objects, 6 channels with a chunk of their own each, nearly all of them needed."""
    fields: dict[str, Any] = {
        "channels": 6,
        "raw_shape": (20, 48, 64),
        "labels_shape": (16, 40, 56),
        "raw": ArrayLayout(dtype="|u1", chunks=(1, 9, 20, 32), attributes=("offset", "resolution")),
        "labels": ArrayLayout(dtype="<u8", chunks=(5, 20, 15)),
    }
    return CropSpec(crop=crop, **(fields | changes))


@dataclass(frozen=True)
class Lab:
    """A bucket behind a fault proxy, and one cache folder.

    Attributes
    ----------
    bucket_dir
        Folder that the S3 server serves; tests may write crops into it.
    proxy
        What the products of the lab call S3.
    root
        The cache folder.
    """

    bucket_dir: Path
    proxy: FaultProxy
    root: Path

    def settings(self, **changes: Any) -> Settings:
        """Settings for this lab, whatever the environment says."""
        return Settings.load({}, **({"root": self.root, "s3_endpoint_url": self.proxy.endpoint} | changes))

    def source(self, spec: CropSpec) -> Path:
        """The zarr folder of a crop in the bucket."""
        return crop_folder(self.bucket_dir, spec)

    def cached(self, spec: CropSpec, channels: str = "") -> Path:
        """Where the crop's file belongs; `channels` as in the name of a subset's file."""
        return self.root / spec.split / f"crop_{spec.crop}{f'.ch{channels}' if channels else ''}.h5"

    def fetched(self, spec: CropSpec) -> dict[str, int]:
        """How often each object of the crop was asked for, by key below the crop's folder."""
        prefix = spec.prefix + "/"
        return {key.removeprefix(prefix): n for key, n in self.proxy.gets().items() if key.startswith(prefix)}


def object_key(spec: CropSpec, name: str) -> str:
    """Key of one object in the bucket."""
    return f"{spec.prefix}/{name}"


def files_below(root: Path) -> list[str]:
    """Every file, link and other non-folder below `root`, relative to it, in order; [] if there is no such folder."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or not path.is_dir())


def published(root: Path) -> list[str]:
    """The crop files in `root`, relative to it; not those in quarantine."""
    return [name for name in files_below(root) if name.endswith(".h5") and not name.startswith(STATE_FOLDER)]


def unfinished(root: Path) -> list[str]:
    """What nothing that has ended may leave in `root`: temporary files and leases."""
    return [name for name in files_below(root) if name.endswith(".tmp") or "/leases/" in name]


def quarantined(root: Path) -> list[str]:
    """Names of what was set aside."""
    folder = root / STATE_FOLDER / "quarantine"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def traces_of(root: Path, spec: CropSpec) -> list[str]:
    """Every file below `root` that is about one crop of one split, published or not."""
    return [
        name
        for name in files_below(root)
        if f"crop_{spec.crop}." in name and (f"{spec.split}/" in name or f"{spec.split}-" in name)
    ]


def bucket_object(bucket_dir: Path, spec: CropSpec, name: str) -> Path:
    """The file behind an object in the bucket's folder."""
    return bucket_dir / BUCKET / object_key(spec, name)


class Outcomes:
    """A progress callback that keeps the last snapshot: what became of every crop of a job."""

    def __init__(self) -> None:
        self.job: Job | None = None

    def __call__(self, job: Job) -> None:
        self.job = job

    def code(self, crop: int) -> str:
        """``done``, or the error code of a crop that failed."""
        progress = self._crop(crop)
        return progress.problem.code if progress.problem else progress.state.value

    def detail(self, crop: int) -> str:
        """The error's sentence."""
        problem = self._crop(crop).problem
        assert problem is not None, f"crop {crop} did not fail"
        return problem.detail

    def is_running(self, crop: int) -> bool:
        """Whether a worker has begun with it."""
        return self._crop(crop).state is State.RUNNING

    def _crop(self, crop: int) -> CropProgress:
        assert self.job is not None, "no snapshot yet"
        return next(progress for progress in self.job.crops if progress.crop == crop)
