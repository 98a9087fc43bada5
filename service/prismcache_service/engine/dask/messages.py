"""The messages between the service and the workers of a Dask cluster: JSON texts, which no pickle has to carry."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from pydantic import BaseModel

from prismcache.config import Settings
from prismcache.layout import FORMAT_VERSION
from prismcache_service.engine import CropTask, News
from prismcache_service.pipeline.codec import RECIPE

TOPIC = "prismcache"
"""Dask's topic under which workers send `DaskNews`."""

_PACKAGES = (
    "prismcache", "distributed", "aiobotocore", "h5py", "isal", "numcodecs", "numpy", "obstore", "zarr",
)  # fmt: skip
_PLACE = ("root", "s3_endpoint_url", "s3_bucket", "s3_prefix")


class DaskOrder(BaseModel):
    """Service to worker: make this crop.

    Attributes
    ----------
    key
        The Dask task's key.
    work
        The order for the worker's child process; its token belongs to this run alone.
    settings
        The service's settings, as JSON.
    silence
        Seconds without a line from the child process after which the child process counts as hung.
    """

    key: str
    work: CropTask
    settings: str
    silence: float


class DaskNews(BaseModel):
    """Worker to service, under `TOPIC`: the task has begun (no progress yet), or its progress."""

    key: str
    news: News


class Inspection(BaseModel):
    """Worker to service: its host, its versions, and what is wrong with its cache folder ("" if nothing is wrong)."""

    host: str
    versions: dict[str, str]
    storage: str


def settings_json(settings: Settings) -> str:
    """Return the settings that a worker needs, as JSON; without token and URL."""
    return settings.model_dump_json(include=set(Settings.model_fields) - {"token", "url"})


def resource_name(settings: Settings) -> str:
    """Return the name of the Dask resource that a worker gets if it may make crops for these settings."""
    return f"prismcache-{_digest(versions(), _place(settings))}"


def task_key(task: CropTask, settings: Settings) -> str:
    """Return the Dask key of a task: services that need the same file, made in the same way, use the same key.

    Dask forgets an ended task when its future is released, so a later task with this key runs again.
    """
    lock, definition = task.name.lock, "" if task.entry is None else task.entry.definition
    return f"prismcache-{lock}-{_digest(lock, task.strict, RECIPE, versions(), _place(settings), definition)}"


def versions() -> dict[str, str]:
    """Return the versions of all software in this process that affects a file's bytes."""
    major, minor, _ = platform.python_version_tuple()
    found = {"python": f"{major}.{minor}", "file format": str(FORMAT_VERSION)}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Return the differences, such as ``isal 1.7.2 (service: 1.8.0)``; "" without differences."""
    wrong = [name for name, own in ours.items() if theirs.get(name) != own]
    return ", ".join(f"{name} {theirs.get(name, 'unknown')} (service: {ours[name]})" for name in wrong)


def _place(settings: Settings) -> list[str]:
    return [str(getattr(settings, name)) for name in _PLACE]


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
