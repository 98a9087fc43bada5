"""The messages between an engine and a worker process: JSON documents, one on each line."""

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
    """Worker to engine, at least once a second: the progress, the outcome, or neither, which shows that it lives."""

    progress: Progress | None = None
    outcome: CropFile | Problem | None = None
