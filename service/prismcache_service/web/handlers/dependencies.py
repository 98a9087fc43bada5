"""What handlers depend on: the services, the caller, and parameters of URLs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Depends, Path, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BeforeValidator

from prismcache.arguments import as_context
from prismcache.errors import ForbiddenError, RequestError, UnknownLinkError
from prismcache.numbers import MAX_CROP
from prismcache.schema import NO_CONTEXT, JobRequest, LeaseRequest, Product, Split, VerifyRequest
from prismcache_service.cache import CropName
from prismcache_service.crops import CropService, FaceService, LinkService, PreviewService
from prismcache_service.factory import ServiceFactory
from prismcache_service.jobs import JobService
from prismcache_service.store import LinkRecord
from prismcache_service.web.tokens import Caller, Role

# Clients build these models with their first use. The service builds them at once, since FastAPI silences pydantic's
# warnings only while it reads a body's model, not in a later build.
for _body in (JobRequest, LeaseRequest, VerifyRequest):
    _body.model_config["defer_build"] = False
    _body.model_rebuild()

_DECIMAL = re.compile(r"0|[1-9]\d{0,18}", re.ASCII)
_CHANNELS = r"^\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*$"
_MAX_CHANNELS = 1000

_bearer = HTTPBearer(
    auto_error=False,  # `gate.Gate` has checked the token by then; this is for /docs
    description="A token made with `prismcache token create`. Not needed where the service runs without tokens.",
)


async def _factory(request: Request) -> ServiceFactory:
    factory: ServiceFactory = request.app.state.factory
    return factory


def _part(name: str) -> Any:
    """Return the dependency on a service of the factory."""

    async def part(request: Request) -> Any:
        return getattr(request.app.state.factory, name)

    return Depends(part)


async def _shared(
    capability: Annotated[str, Path(description="What follows `/v1/shared/` in a link's `path`.")],
    links: Annotated[LinkService, _part("links")],
    request: Request,
) -> LinkRecord:
    """Return the link; it ends with its maker's token."""
    link = await links.resolve(capability)
    if not request.app.state.tokens.knows(link.owner):
        raise UnknownLinkError("there is no such link, or it has expired or was revoked")
    return link


async def _caller(
    request: Request, _token: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Caller:
    caller: Caller = request.state.caller
    return caller


def _caller_with(role: Role) -> Any:
    """Return the dependency on a caller who has at least this role."""

    async def caller(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
        if not caller.may(role):
            raise ForbiddenError(f"this needs the role {role.value!r}, and {caller.name!r} has {str(caller.role)!r}")
        return caller

    return Depends(caller)


ReadersOnly = _caller_with(Role.READER)  # for routes that need no caller
Jobs = Annotated[JobService, _part("jobs")]


async def _job_id(
    job_id: Annotated[
        str,
        Path(pattern=r"^[A-Za-z0-9-]{1,64}$", description="The job's id, or its start if no other job's begins so."),
    ],
    jobs: Jobs,
    _reader: Annotated[Caller, ReadersOnly],
) -> str:
    return await jobs.whole_id(job_id)


def _decimal(value: Any) -> Any:
    """Accept plain decimal numbers only: no sign, space, underscore, leading zero or digits beyond ASCII."""
    if isinstance(value, str) and not _DECIMAL.fullmatch(value):
        raise ValueError("must be a plain decimal number")
    return value


def parse_channels(text: str | None) -> tuple[int, ...] | None:
    """Return the channels that a URL names, e.g. ``0-2,5``, ascending and each once; None for all.

    Raises
    ------
    RequestError
        If a range goes down, or there are too many channels.
    """
    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
        if int(last or first) < int(first) or len(found) > _MAX_CHANNELS:
            raise RequestError(f"query field 'channels': {part} is not a range, or there are too many channels")
    return tuple(sorted(found))


async def _refuse_unknown_query(request: Request) -> None:
    """Refuse query parameters that the route does not have, and splits that the catalog does not have.

    A misspelt parameter must not silently mean the default.
    """
    operation_id = getattr(request.scope["route"], "operation_id", None)
    known = request.app.state.query_names.get(operation_id)
    unknown = sorted(set(request.query_params) - known) if known is not None else []
    if unknown:
        name = unknown[0][:100].encode("ascii", "backslashreplace").decode()
        raise RequestError(f"query field {name!r} is unknown; there are {', '.join(sorted(known)) or 'none'}")
    split = request.path_params.get("split", request.query_params.get("split"))
    if split is not None:
        request.app.state.factory.settings.splits.entry(split)


async def _channels(
    channels: Annotated[
        str | None,
        Query(
            pattern=_CHANNELS,
            max_length=1000,
            description="Channels that the file must hold; all if left out.",
            openapi_examples={"some": {"value": "0-2,5"}},
        ),
    ] = None,
) -> tuple[int, ...] | None:
    return parse_channels(channels)


class _OfSplit(Protocol):
    @property
    def split(self) -> Split: ...


_T = TypeVar("_T", bound=_OfSplit)


def readable(request: Request, items: Iterable[_T]) -> tuple[_T, ...]:
    """Return `items` without those of splits that the asking program cannot read.

    Clients older than the catalog know two splits and refuse a whole list for one other split. They send "prismcache"
    as their User-Agent; newer ones send more (`prismcache.remote.http`).
    """
    if request.headers.get("user-agent") != "prismcache":
        return tuple(items)
    return tuple(item for item in items if item.split in (Split.INSTANCE, Split.SEMANTIC))


KnownQuery = Depends(_refuse_unknown_query)
FactoryOf = Annotated[ServiceFactory, Depends(_factory)]
Crops = Annotated[CropService, _part("crops")]
Faces = Annotated[FaceService, _part("faces")]
Links = Annotated[LinkService, _part("links")]
SharedLink = Annotated[LinkRecord, Depends(_shared)]
Previews = Annotated[PreviewService, _part("previews")]
Reader = Annotated[Caller, ReadersOnly]
Requester = Annotated[Caller, _caller_with(Role.REQUESTER)]
Admin = Annotated[Caller, _caller_with(Role.ADMIN)]
AnyCaller = Annotated[Caller, Depends(_caller)]

Decimal = BeforeValidator(_decimal)
SplitPath = Annotated[Split, Path(description="Which set of crops.")]
CropPath = Annotated[int, Decimal, Path(ge=0, le=MAX_CROP, description="The crop's number.", examples=[0])]
JobId = Annotated[str, Depends(_job_id)]
LeasePath = Annotated[str, Path(pattern=r"^[A-Za-z0-9-]{1,64}$", description="The lease's id.")]
Channels = Annotated[tuple[int, ...] | None, Depends(_channels)]


async def _wanted_file(
    split: SplitPath,
    crop: CropPath,
    channels: Channels,
    context: Annotated[
        str | None,
        Query(
            pattern=r"^(all|\d{1,5},\d{1,5},\d{1,5})$",
            description="Voxels (Z,Y,X) that raw must reach beyond the labels, or `all`; none if left out.",
            openapi_examples={"some": {"value": "16,46,46"}},
        ),
    ] = None,
    product: Annotated[
        Product, Query(description="What the file holds; products have neither channels nor context.")
    ] = Product.CROP,
) -> CropName:
    if product is not Product.CROP and (channels is not None or context is not None):
        raise RequestError("query field 'product': a product has neither channels nor context")
    return CropName(split, crop, channels, NO_CONTEXT if context is None else as_context(context), product)


WantedFile = Annotated[CropName, Depends(_wanted_file)]
