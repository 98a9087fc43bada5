"""The app: its routes, and the middleware that every request passes.

A request passes `logs.RequestLog` (an id, one line in the log, a bare 500 for an unexpected error), the instrumentator,
`gate.Gate` (token, limits), `limits.BodyLimit`, and then the handler.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from prismcache.schema import JobEvent
from prismcache_service import factory as factories
from prismcache_service.config import ServiceConfig
from prismcache_service.factory import ServiceFactory
from prismcache_service.jobs import Observer
from prismcache_service.web import dashboard, metrics, neuroglancer, problems
from prismcache_service.web.gate import Gate
from prismcache_service.web.handlers import crops, docs, files, jobs, links, operation, overview, previews, zarr
from prismcache_service.web.limits import BodyLimit, RateLimiter
from prismcache_service.web.logs import RequestLog
from prismcache_service.web.public_url import SubPath
from prismcache_service.web.tokens import TokenBook, require_safe_address, tokens_path

Opener = Callable[[ServiceConfig, Observer], AbstractAsyncContextManager[ServiceFactory]]

_DESCRIPTION = """\
Request PRISM crops by name. Each crop is fetched from the bucket once, verified, and kept as an HDF5 file that \
everybody in the lab can use. Submit a job, wait for it (`?wait=`) or follow its events, then open the paths in its \
response, or download the files. Every error is an RFC 9457 problem with a stable `code`, one sentence in `detail` and \
advice in `remedy`; `Retry-After` gives the seconds to wait before another attempt. Requests with unknown fields are \
refused; later versions may add fields to responses. Bodies are JSON of at most 64 KiB."""


def create_app(config: ServiceConfig, opener: Opener | None = None) -> FastAPI:
    """Return a new app; its services are opened when the app starts and closed when it ends.

    `opener` opens the services. Raise `ConfigError` if the tokens file or the catalog file cannot be used, or the
    service would be open to other machines without tokens.
    """
    tokens = TokenBook(tokens_path(config))
    require_safe_address(config, tokens)
    figures = metrics.Metrics()
    open_factory: Opener = opener or factories.open_factory

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_factory(config, figures) as factory:
            app.state.factory = factory
            watching = asyncio.create_task(tokens.watch())
            try:
                yield
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    app = FastAPI(
        title="prismcache", version=version("prismcache"), description=_DESCRIPTION, lifespan=lifespan,
        docs_url=None, redoc_url=None, redirect_slashes=False, openapi_tags=_TAGS,
        servers=[{"url": config.public_url}] if config.public_url else None,
    )  # fmt: skip
    app.state.tokens, app.state.metrics, app.state.closing = tokens, figures, asyncio.Event()
    app.state.public_url, app.state.asked = config.public_url, {}
    app.state.readiness, app.state.readiness_lock = None, asyncio.Lock()
    app.state.zarr_rates = RateLimiter(float(config.zarr_byte_rate))
    app.state.overview, app.state.overview_lock = None, asyncio.Lock()
    # Routes are tried in this order, so what viewers and clients ask for most comes first.
    for module in (zarr, jobs, crops, files, previews, links, operation, overview, docs):
        app.include_router(module.router)
    app.include_router(dashboard.router)
    app.include_router(neuroglancer.router)
    app.state.query_names = _complete_document(app, list(config.splits))
    problems.install(app)
    _add_middleware(app, config)
    return app


_TAGS = [
    {"name": "jobs", "description": "Request crops and follow the jobs that make them."},
    {"name": "crops", "description": "List, download, pin and evict crops."},
    {"name": "leases", "description": "Protect crops from eviction while they are used."},
    {"name": "links", "description": "Let viewers and colleagues read one crop without a token."},
    {"name": "operation", "description": "For the person who runs the service."},
]


def _complete_document(app: FastAPI, splits: list[str]) -> dict[str, set[str]]:
    """Complete the OpenAPI document for generators of clients; return the query parameters of each operation."""
    document = app.openapi()  # kept by the app, so that what is added stays
    event = JobEvent.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    event.pop("$defs")  # all of them are there
    document["components"]["schemas"]["JobEvent"] = event
    document["components"]["schemas"]["Split"]["enum"] = splits
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    for item in (item for each in operations for item in each.get("parameters", [])):
        # What pydantic calls a number's bounds where a validator runs before them.
        for own, standard in (("ge", "minimum"), ("le", "maximum")):
            if own in item["schema"]:
                item["schema"][standard] = item["schema"].pop(own)
    return {
        operation["operationId"]: {item["name"] for item in operation.get("parameters", []) if item["in"] == "query"}
        for operation in operations
    }


def _add_middleware(app: FastAPI, config: ServiceConfig) -> None:
    """Add the middleware; the last one added runs first."""
    app.add_middleware(BodyLimit)
    app.add_middleware(Gate, tokens=app.state.tokens, config=config)
    metrics.install(app, app.state.metrics)
    app.user_middleware.insert(0, Middleware(RequestLog))
    if config.cors_origins:  # outermost, so that errors carry the headers, too: viewers must be able to read a 404
        cors = Middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins.split(),
            allow_methods=["GET", "HEAD"],
            allow_headers=["Authorization", "Range"],
            expose_headers=["Content-Range", "ETag"],
        )
        app.user_middleware.insert(0, cors)
    if config.public_url:
        app.user_middleware.insert(0, Middleware(SubPath, public_url=config.public_url))
