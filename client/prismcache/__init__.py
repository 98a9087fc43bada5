"""Training-ready E11bio PRISM crops: pulled from S3 once for the whole lab, verified, aligned, cached as HDF5.

::

    from prismcache import PrismClient

    paths = PrismClient().ensure("instance", [0, 5])

Names are imported when they are first used, so that ``import prismcache`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prismcache import errors
    from prismcache.client import PrismClient
    from prismcache.client.aio import AsyncPrismClient
    from prismcache.config import Settings
    from prismcache.crop import Crop
    from prismcache.errors import (
        ClassNumbersWarning,
        ConfigError,
        CropCorruptError,
        CropInUseError,
        CropNotCachedError,
        EngineUnavailableError,
        EnsureTimeoutError,
        ForbiddenError,
        InvalidSourceError,
        JobCancelledError,
        MemoryLimitError,
        MisalignedError,
        MissingChunksError,
        MissingChunksWarning,
        MissingExtraError,
        NoSpaceError,
        PrismError,
        QuotaExceededError,
        RequestError,
        ServiceBusyError,
        ServiceError,
        ServiceUnreachableError,
        SourceChangedError,
        SourceCorruptError,
        SourceDeniedError,
        SourceError,
        SourceUnreachableError,
        SourceWarning,
        SplitConflictError,
        StorageError,
        StorageUnwritableError,
        UnauthorizedError,
        UnknownChannelError,
        UnknownCropError,
        UnknownJobError,
        UnknownLeaseError,
        UnknownLinkError,
        UnknownSplitError,
        WorkerError,
    )
    from prismcache.schema import (
        CropFile,
        CropInfo,
        CropProgress,
        Job,
        Problem,
        Split,
        State,
        Verdict,
        VerifyResult,
    )

    __version__: str

__all__ = [
    "AsyncPrismClient",
    "ClassNumbersWarning",
    "ConfigError",
    "Crop",
    "CropCorruptError",
    "CropFile",
    "CropInUseError",
    "CropInfo",
    "CropNotCachedError",
    "CropProgress",
    "EngineUnavailableError",
    "EnsureTimeoutError",
    "ForbiddenError",
    "InvalidSourceError",
    "Job",
    "JobCancelledError",
    "MemoryLimitError",
    "MisalignedError",
    "MissingChunksError",
    "MissingChunksWarning",
    "MissingExtraError",
    "NoSpaceError",
    "PrismClient",
    "PrismError",
    "Problem",
    "QuotaExceededError",
    "RequestError",
    "ServiceBusyError",
    "ServiceError",
    "ServiceUnreachableError",
    "Settings",
    "SourceChangedError",
    "SourceCorruptError",
    "SourceDeniedError",
    "SourceError",
    "SourceUnreachableError",
    "SourceWarning",
    "Split",
    "SplitConflictError",
    "State",
    "StorageError",
    "StorageUnwritableError",
    "UnauthorizedError",
    "UnknownChannelError",
    "UnknownCropError",
    "UnknownJobError",
    "UnknownLeaseError",
    "UnknownLinkError",
    "UnknownSplitError",
    "Verdict",
    "VerifyResult",
    "WorkerError",
    "__version__",
    "errors",
]

_HOMES = {"AsyncPrismClient": "client", "Crop": "crop", "PrismClient": "client", "Settings": "config"}
_SCHEMA = frozenset(
    {"CropFile", "CropInfo", "CropProgress", "Job", "Problem", "Split", "State", "Verdict", "VerifyResult"}
)


def __getattr__(name: str) -> object:
    if name == "errors":
        return import_module("prismcache.errors")
    if name == "__version__":
        value: object = _version()
    elif name in __all__:
        home = _HOMES.get(name, "schema" if name in _SCHEMA else "errors")
        value = getattr(import_module(f"prismcache.{home}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("prismcache")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"
