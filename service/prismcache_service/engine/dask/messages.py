"""What the service and the workers of a Dask cluster send to each other: JSON, since Dask carries only strings."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from pydantic import BaseModel

from prismcache.config import Settings
from prismcache.layout import FORMAT_VERSION
from prismcache_service.engine.base import CropTask
from prismcache_service.engine.local.messages import News, WorkOrder
from prismcache_service.pipeline.codec.encode import RECIPE

TOPIC = "prismcache"
"""Dask's topic under which workers send `DaskNews`."""

_PACKAGES = ("prismcache", "distributed", "aiobotocore", "h5py", "isal", "numcodecs", "numpy", "obstore", "zarr")
_PLACE = ("root", "s3_endpoint_url", "s3_bucket", "s3_prefix")


class DaskOrder(BaseModel):
    """Service to worker: make this crop.

    Attributes
    ----------
    key
        The Dask task's key.
    work
        The order as any worker process gets it; its token is this run's own.
    settings
        The service's, as JSON.
    silence
        Seconds without a line from the worker's own child process after which the child counts as hung.
    """

    key: str
    work: WorkOrder
    settings: str
    silence: float


class DaskNews(BaseModel):
    """Worker to service, under `TOPIC`: the task has begun (no progress yet), or its progress."""

    key: str
    news: News


class Inspection(BaseModel):
    """Worker to service: what it makes crops with, and what is wrong with its view of the storage ("" if nothing)."""

    host: str
    versions: dict[str, str]
    storage: str


def settings_json(settings: Settings) -> str:
    """Return what a worker needs of the service's settings."""
    return settings.model_dump_json(include=set(Settings.model_fields) - {"token", "url"})


def resource_name(settings: Settings) -> str:
    """Return the name of the Dask resource that only workers have that may make crops for these settings."""
    return f"prismcache-{_digest(versions(), _place(settings))}"


def task_key(task: CropTask, settings: Settings) -> str:
    """Return the Dask key of a task: equal for the same file made in the same way, whichever service asks.

    Dask forgets a task that ended once its future is released, so a later one with this key runs anew.
    """
    lock = task.name.lock
    return f"prismcache-{lock}-{_digest(lock, task.strict, RECIPE, versions(), _place(settings))}"


def versions() -> dict[str, str]:
    """Return the versions of everything in this process that decides about a file's bytes."""
    major, minor, _ = platform.python_version_tuple()
    found = {"python": f"{major}.{minor}", "file format": str(FORMAT_VERSION)}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Return what differs, as ``isal 1.7.2 (service: 1.8.0)``; "" if nothing does."""
    wrong = [name for name, own in ours.items() if theirs.get(name) != own]
    return ", ".join(f"{name} {theirs.get(name, 'unknown')} (service: {ours[name]})" for name in wrong)


def _place(settings: Settings) -> list[str]:
    return [str(getattr(settings, name)) for name in _PLACE]


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
