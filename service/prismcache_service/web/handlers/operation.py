"""Health, readiness, status and metrics."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response, status
from pydantic import BaseModel

from prismcache.errors import ForbiddenError, StorageError
from prismcache.schema import ServiceStatus
from prismcache_service.factory import ServiceFactory
from prismcache_service.web.handlers.dependencies import AnyCaller, FactoryOf, KnownQuery, ReadersOnly
from prismcache_service.web.metrics import MEDIA_TYPE, Metrics
from prismcache_service.web.problems import documented
from prismcache_service.web.tokens import Role

router = APIRouter(tags=["operation"], dependencies=[KnownQuery])

_READY = {"storage": "ok", "store": "ok", "engine": "ok", "source": "ok"}
# Cached crops are served without the source.
_MAY_FAIL = frozenset({"source"})
_READY_S = 2.0


class Health(BaseModel):
    """The process responds."""

    status: str = "ok"


class Readiness(BaseModel):
    """Each check with "ok" or the reason why it fails (only "failing" for callers without a token)."""

    ready: bool
    checks: dict[str, str]


@router.get("/healthz", operation_id="health", summary="Whether the process responds")
@router.head("/healthz", operation_id="head_health", include_in_schema=False)
async def health() -> Health:
    """Storage, store, engine and bucket are not checked, since a restart would not repair them."""
    return Health()


@router.get(
    "/readyz",
    operation_id="readiness",
    summary="Whether crops can be made",
    responses={
        200: {"content": {"application/json": {"example": {"ready": True, "checks": _READY}}}},
        503: {"model": Readiness, "description": "Crops cannot be made; `checks` has the reasons."},
        **documented(),
    },
)
async def readiness(factory: FactoryOf, caller: AnyCaller, request: Request, response: Response) -> Readiness:
    """An unreachable bucket is shown, but the service counts as ready: cached crops are served without the bucket."""
    checks = await _recent_checks(request, factory)
    ready = all(said == "ok" for name, said in checks.items() if name not in _MAY_FAIL)
    if not ready:
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
        response.headers["Retry-After"] = "10"
    if not caller.may(Role.READER):
        checks = {name: said if said == "ok" else "failing" for name, said in checks.items()}
    return Readiness(ready=ready, checks=checks)


async def _recent_checks(request: Request, factory: ServiceFactory) -> dict[str, str]:
    """Return the checks, made at most once in `_READY_S` s: they use disk, database and bucket, and need no token."""
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
    summary="State of the service",
    responses=documented(ForbiddenError, StorageError),
    dependencies=[ReadersOnly],
)
async def service_status(factory: FactoryOf) -> ServiceStatus:
    """Jobs and crops that are queued or running, the workers, and the disk usage."""
    return await factory.status()


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Metrics for Prometheus",
    dependencies=[ReadersOnly],
    response_class=Response,
    responses={
        200: {"description": "Text.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **documented(ForbiddenError, StorageError),
    },
)
async def metrics(factory: FactoryOf, request: Request) -> Response:
    """If the service has tokens, give Prometheus one of role `reader`."""
    figures: Metrics = request.app.state.metrics
    return Response(figures.expose(await factory.status()), media_type=MEDIA_TYPE)
