"""What an engine and a worker process say to each other: one JSON document a line."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from prismcache.schema import CropFile, Problem, Split
from prismcache_service.pipeline.progress import Progress


class WorkOrder(BaseModel):
    """Engine to worker: make this crop."""

    split: Split
    crop: int
    channels: tuple[int, ...] | None
    strict: bool
    token: str


class Alive(BaseModel):
    """Worker to engine, every second or so: not hung."""

    kind: Literal["alive"] = "alive"


class Progressed(BaseModel):
    """Worker to engine: how far the crop is."""

    kind: Literal["progressed"] = "progressed"
    progress: Progress


class Made(BaseModel):
    """Worker to engine: published."""

    kind: Literal["made"] = "made"
    file: CropFile


class Failed(BaseModel):
    """Worker to engine: the crop cannot be made, and why."""

    kind: Literal["failed"] = "failed"
    problem: Problem


Event = Annotated[Alive | Progressed | Made | Failed, Field(discriminator="kind")]
EVENT: TypeAdapter[Alive | Progressed | Made | Failed] = TypeAdapter(Event)
