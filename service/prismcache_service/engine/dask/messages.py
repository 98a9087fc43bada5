"""What the service and the workers of a Dask cluster say to each other, as JSON: Dask itself carries only strings."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, Field

from prismcache.config import Settings
from prismcache_service.engine.base import CropTask
from prismcache_service.engine.dask.fitness import versions
from prismcache_service.engine.local.messages import Failed, Made, WorkOrder
from prismcache_service.pipeline.codec.encode import RECIPE
from prismcache_service.pipeline.progress import Progress

TOPIC = "prismcache"
"""Under which workers tell of progress."""

_PLACE = ("root", "s3_endpoint_url", "s3_bucket", "s3_prefix")


class DaskOrder(BaseModel):
    """Service to worker: make this crop.

    Attributes
    ----------
    key
        The task's.
    work
        The order as any worker gets it; its token is this attempt's own, below that of the service's lease.
    settings
        The service's, as JSON.
    silence
        Seconds without a sign of life after which the worker's own child counts as hung.
    """

    key: str
    work: WorkOrder
    settings: str
    silence: float


class Stopped(BaseModel):
    """Worker to service: somebody stopped it, and nothing of it is left."""

    kind: Literal["stopped"] = "stopped"


class DaskAnswer(BaseModel):
    """Worker to service: what became of the order with this token."""

    token: str
    event: Made | Failed | Stopped = Field(discriminator="kind")


class DaskProgress(BaseModel):
    """Worker to service, as an event of `TOPIC`: how far a task is."""

    key: str
    progress: Progress


class Inspection(BaseModel):
    """Worker to service: what it works with, and what is wrong with its view of the storage ("" if nothing is)."""

    host: str
    versions: dict[str, str]
    storage: str


def settings_json(settings: Settings) -> str:
    """What a worker needs of the service's settings."""
    return settings.model_dump_json(include=set(Settings.model_fields) - {"token", "url"})


def task_key(task: CropTask, settings: Settings) -> str:
    """The same for the same file made the same way, whoever asks, and for nothing else.

    A task that ended is known to Dask no more once its future is released, so a later one of this key runs anew.
    """
    place = [str(getattr(settings, name)) for name in _PLACE]
    text = json.dumps([task.name.lease, task.strict, RECIPE, versions(), place])
    return f"prismcache-{task.name.lease}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
