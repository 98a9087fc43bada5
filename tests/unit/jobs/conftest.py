"""A job service on stand-ins, fresh for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from prismcache_service.jobs import service
from tests.support.job_scene import Scene


@pytest.fixture
async def scene(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """A scene, made as `staged` says; its streams show progress at once."""
    monkeypatch.setattr(service, "_TICK_S", 0)
    stage: Scene = getattr(request, "param", Scene)()
    yield stage
    await stage.jobs.aclose()
