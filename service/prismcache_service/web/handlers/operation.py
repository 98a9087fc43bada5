"""Whether the service lives, what it is doing, and how to speak to it."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response, status
from pydantic import BaseModel

from prismcache.errors import ForbiddenError, StorageError
from prismcache.schema import ServiceStatus
from prismcache_service.factory import Factory
from prismcache_service.web.handlers.dependencies import AnyCaller, FactoryOf, KnownQuery, Reader
from prismcache_service.web.metrics import MEDIA_TYPE, Metrics
from prismcache_service.web.problems import documented
from prismcache_service.web.tokens import Role

router = APIRouter(tags=["operation"], dependencies=[KnownQuery])

_READY = {"storage": "ok", "store": "ok", "engine": "ok", "source": "ok"}
# Crops that are cached can be had without it.
_MAY_FAIL = frozenset({"source"})
_READY_S = 2.0


class Health(BaseModel):
    """The process answers."""

    status: str = "ok"


class Readiness(BaseModel):
    """Each check with "ok", or what is wrong with it (only "failing" for callers without a token)."""

    ready: bool
    checks: dict[str, str]


@router.get("/healthz", operation_id="health", summary="Does the process live?")
@router.head("/healthz", operation_id="head_health", include_in_schema=False)
async def health() -> Health:
    """Says nothing about storage, store, engine or bucket: a restart would mend none of them."""
    return Health()


@router.get(
    "/readyz",
    operation_id="readiness",
    summary="Can it work?",
    responses={
        200: {"content": {"application/json": {"example": {"ready": True, "checks": _READY}}}},
        503: {"model": Readiness, "description": "It cannot make crops; the checks say why."},
        **documented(),
    },
)
async def readiness(factory: FactoryOf, caller: AnyCaller, request: Request, response: Response) -> Readiness:
    """An unreachable bucket alone is shown but does not count: cached crops are served all the same."""
    checks = await _recent_checks(request, factory)
    ready = all(said == "ok" for name, said in checks.items() if name not in _MAY_FAIL)
    if not ready:
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
        response.headers["Retry-After"] = "10"
    if not caller.may(Role.READER):
        checks = {name: said if said == "ok" else "failing" for name, said in checks.items()}
    return Readiness(ready=ready, checks=checks)


async def _recent_checks(request: Request, factory: Factory) -> dict[str, str]:
    """The checks ask disk, database and bucket, and everybody may ask for them: so at most once in a while."""
    state = request.app.state
    async with state.readiness_lock:
        if state.readiness is None or time.monotonic() - state.readiness[0] > _READY_S:
            checks = await factory.readiness()
            state.readiness = time.monotonic(), checks
        found: dict[str, str] = state.readiness[1]
        return found


@router.get(
    "/v1/status",
    operation_id="status",
    summary="Queue, workers, disk",
    responses=documented(ForbiddenError, StorageError),
)
async def service_status(factory: FactoryOf, caller: Reader) -> ServiceStatus:  # noqa: ARG001 - checks the role
    """What the service is doing, and how much room there is."""
    return await factory.status()


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Text.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **documented(ForbiddenError, StorageError),
    },
)
async def metrics(factory: FactoryOf, caller: Reader, request: Request) -> Response:  # noqa: ARG001 - checks the role
    """Where there are tokens, give Prometheus one of role `reader`."""
    figures: Metrics = request.app.state.metrics
    return Response(figures.expose(await factory.status()), media_type=MEDIA_TYPE)
