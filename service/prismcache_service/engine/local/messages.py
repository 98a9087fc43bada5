"""What an engine and a worker process send to each other: one JSON document a line."""

from __future__ import annotations

from pydantic import BaseModel

from prismcache.schema import CropFile, Problem, Progress
from prismcache_service.cache import CropName


class WorkOrder(BaseModel):
    """Engine to worker: make this file."""

    name: CropName
    strict: bool
    token: str


class News(BaseModel):
    """Worker to engine, at least once a second: a sign of life, with the progress or the outcome if there is any."""

    progress: Progress | None = None
    outcome: CropFile | Problem | None = None
