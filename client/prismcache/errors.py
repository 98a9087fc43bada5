"""All errors of prismcache, as one tree with a stable ``code`` for each kind.

::

    PrismError
    ├── ConfigError                 config_invalid        a setting is missing or unusable
    │   └── MissingExtraError       missing_extra         an optional dependency is not installed
    ├── RequestError                invalid_request       the request cannot be met as asked
    │   ├── UnknownSplitError       unknown_split
    │   ├── UnknownCropError        unknown_crop
    │   ├── UnknownChannelError     unknown_channel
    │   └── SplitConflictError      split_conflict        another catalog has given the name to other crops
    ├── SourceError                 source_error          the bucket, or what it holds
    │   ├── SourceUnreachableError  source_unreachable    no usable response by the deadline
    │   ├── SourceDeniedError       source_denied         401 or 403
    │   ├── SourceCorruptError      source_corrupt        a listed object is absent, short or altered
    │   ├── SourceChangedError      source_changed        the crop changed while it was fetched, twice
    │   ├── InvalidSourceError      invalid_source        metadata or values that are no PRISM crop
    │   │   └── MisalignedError     misaligned            raw cannot be cut to the labels' voxels
    │   └── MissingChunksError      missing_chunks        absent chunks, refused by ``strict``
    ├── StorageError                storage_error         the cache folder, or one that the message names
    │   ├── NoSpaceError            no_space
    │   └── StorageUnwritableError  storage_unwritable
    │   └── QuotaExceededError      quota_exceeded        larger than the cache may ever be
    ├── CropNotCachedError          not_cached            asked for a file that is not in the cache
    ├── CropInUseError              crop_in_use           pinned or leased, so not to be removed
    ├── CropCorruptError            crop_corrupt          a cached file that does not match its manifest
    ├── MemoryLimitError            memory_limit          the limit is too small for the crop's chunks
    ├── WorkerError                 worker_failed         a worker process died or gave up
    ├── EngineUnavailableError      engine_unavailable    no worker machine can be given the crop
    ├── EnsureTimeoutError          timeout               the caller's time ran out (the work may go on)
    ├── JobCancelledError           cancelled
    ├── UnknownJobError             unknown_job           no such job, or it was forgotten
    ├── UnknownLeaseError           unknown_lease         no such lease, or it has run out
    ├── UnknownLinkError            unknown_link          no such capability link, or it has expired or was revoked
    └── ServiceError                service_error         the remote service
        ├── ServiceUnreachableError service_unreachable
        ├── ServiceBusyError        busy                  a limit is reached; try again later
        ├── UnauthorizedError       unauthorized          no token, or not a valid one
        └── ForbiddenError          forbidden             the token's role does not allow it

``str(error)`` is one sentence that names the thing and the value; ``error.remedy`` says what to do. Between processes
and over HTTP an error travels as a `Problem` and becomes the same class again.
"""

from __future__ import annotations

from typing import ClassVar

from prismcache.schema import Problem

REMEDY = "remedy: "


class PrismError(Exception):
    """Base of all prismcache errors.

    Parameters
    ----------
    message
        One sentence that names the thing and the value.
    remedy
        What the reader can do about the error; defaults to the class's own advice.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "prismcache failed"
    default_remedy: ClassVar[str] = "Try again; if the error stays, report it with the log around it."

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.remedy = self.default_remedy if remedy is None else remedy
        if self.remedy:
            self.add_note(f"{REMEDY}{self.remedy}")  # tracebacks show notes

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), self.remedy)

    def to_problem(self) -> Problem:
        """Return this error as an RFC 9457 problem."""
        return Problem(
            type=f"urn:prismcache:error:{self.code}",
            title=self.title,
            status=self.status,
            code=self.code,
            detail=str(self),
            remedy=self.remedy,
        )


def _rebuild(cls: type[PrismError], message: str, remedy: str) -> PrismError:
    return cls(message, remedy=remedy)


class ConfigError(PrismError):
    code, status, title = "config_invalid", 500, "A setting is missing or unusable"
    default_remedy = "Change the setting that the message names."


class MissingExtraError(ConfigError):
    code, title = "missing_extra", "An optional dependency is not installed"
    default_remedy = 'pip install "prismcache[service]"'


class RequestError(PrismError):
    code, status, title = "invalid_request", 422, "The request cannot be met as asked"
    default_remedy = "Change the part of the request that the message names."


class UnknownSplitError(RequestError):
    code, title = "unknown_split", "No such split"
    default_remedy = "`prismcache ls` lists the crops of every split; a catalog file can add splits."


class UnknownCropError(RequestError):
    code, status, title = "unknown_crop", 404, "No such crop"
    default_remedy = "`prismcache ls` shows the crops that exist."


class UnknownChannelError(RequestError):
    code, title = "unknown_channel", "The crop lacks this channel"
    default_remedy = "`prismcache ls` shows each crop's count; instance and semantic crops all have 0-9."


class SplitConflictError(RequestError):
    code, status, title = "split_conflict", 409, "Another catalog has given the split's name to other crops"
    default_remedy = "Rename the split in one of the two catalogs, or use another PRISMCACHE_ROOT."


class SourceError(PrismError):
    code, status, title = "source_error", 502, "The source bucket failed"
    default_remedy = "Try again; if the error stays, check the network and the PRISMCACHE_S3_* settings."


class SourceUnreachableError(SourceError):
    code, status, title = "source_unreachable", 503, "The source bucket gives no usable response"
    default_remedy = "Check the network and PRISMCACHE_S3_ENDPOINT_URL; crops already cached stay usable."


class SourceDeniedError(SourceError):
    code, title = "source_denied", "The source bucket refuses access"
    default_remedy = (
        "Check PRISMCACHE_S3_BUCKET and PRISMCACHE_S3_PREFIX; for a private bucket set PRISMCACHE_S3_ANONYMOUS=false "
        "and give AWS credentials (AWS_ACCESS_KEY_ID, a profile or a role)."
    )


class SourceCorruptError(SourceError):
    code, title = "source_corrupt", "An object of the source is absent, short or altered"
    default_remedy = "Try again; if the error stays, the bucket or the network damages data."


class SourceChangedError(SourceError):
    code, status, title = "source_changed", 503, "The source changed while it was fetched"
    default_remedy = "Try again when the upload to the bucket is over."


class InvalidSourceError(SourceError):
    code, title = "invalid_source", "The source is not a PRISM crop that can be read"
    default_remedy = "The data in the bucket are wrong; report this to their owner."


class MisalignedError(InvalidSourceError):
    code, title = "misaligned", "Raw cannot be cut to the labels' voxels"


class MissingChunksError(SourceError):
    code, title = "missing_chunks", "Chunks are absent from the source"
    default_remedy = "Leave out strict: absent chunks then get zarr's fill value, and a warning says so."


class StorageError(PrismError):
    code, status, title = "storage_error", 503, "A folder or the job store failed"
    default_remedy = "Check the disk, the mount and the permissions of the path in the message; then try again."


class NoSpaceError(StorageError):
    code, status, title = "no_space", 507, "No space is left"
    default_remedy = "Free space (`prismcache rm`), or point PRISMCACHE_ROOT at a larger disk."


class StorageUnwritableError(StorageError):
    code, title = "storage_unwritable", "A folder cannot be written"
    default_remedy = "Point PRISMCACHE_ROOT at a folder you may write, or have its permissions changed."


class QuotaExceededError(StorageError):
    code, status, title = "quota_exceeded", 422, "Larger than the quota"
    default_remedy = "Ask for fewer channels, or have the service's PRISMCACHE_MAX_BYTES raised."


class CropInUseError(PrismError):
    code, status, title = "crop_in_use", 409, "The crop is pinned or leased"
    default_remedy = "Wait for the training that uses it, or unpin it."


class CropNotCachedError(PrismError, RuntimeError):  # RuntimeError is what torch_em raises for it
    code, status, title = "not_cached", 404, "The crop is not in the cache"
    default_remedy = "`prismcache ensure` fetches it."


class CropCorruptError(PrismError):
    code, status, title = "crop_corrupt", 500, "A cached file does not match its manifest"
    default_remedy = "`prismcache verify --repair` sets it aside and fetches it again."


class MemoryLimitError(PrismError):
    code, status, title = "memory_limit", 507, "The memory limit is too small for the crop's chunks"
    default_remedy = "Raise PRISMCACHE_MEMORY_LIMIT."


class WorkerError(PrismError):
    code, status, title = "worker_failed", 500, "A worker process died"
    default_remedy = "Try again; the log names the signal or the error. Out of memory? Lower PRISMCACHE_MEMORY_LIMIT."


class EngineUnavailableError(PrismError):
    code, status, title = "engine_unavailable", 503, "No worker machine can be given the crop"
    default_remedy = "Check the Dask scheduler and its workers; the service's /readyz says what is wrong with them."


class EnsureTimeoutError(PrismError):
    code, status, title = "timeout", 504, "The time given ran out"
    default_remedy = "Call again with a longer timeout; crops that are cached by then are used."


class JobCancelledError(PrismError):
    code, status, title = "cancelled", 409, "The job was cancelled"
    default_remedy = "Ask again; crops that were ready stay cached."


class UnknownJobError(PrismError):
    code, status, title = "unknown_job", 404, "No such job"
    default_remedy = "`prismcache jobs` lists the jobs; asking for the crops again makes a new one."


class UnknownLeaseError(PrismError):
    code, status, title = "unknown_lease", 404, "No such lease"
    default_remedy = "Ask for a new one."


class UnknownLinkError(PrismError):
    code, status, title = "unknown_link", 404, "No such link"
    default_remedy = "Ask the person who sent the link for a new one; `prismcache link` makes links."


class ServiceError(PrismError):
    code, status, title = "service_error", 502, "The prismcache service failed"
    default_remedy = "Check that PRISMCACHE_URL is a prismcache service; if it is, the service's log says more."


class ServiceUnreachableError(ServiceError):
    code, status, title = "service_unreachable", 503, "The prismcache service does not respond"
    default_remedy = "Check PRISMCACHE_URL, and that the service is running."


class ServiceBusyError(ServiceError):
    code, status, title = "busy", 429, "The service is at a limit"
    default_remedy = "Try again later; the header Retry-After gives the seconds."


class UnauthorizedError(ServiceError):
    code, status, title = "unauthorized", 401, "The prismcache service refuses the token"
    default_remedy = "Set PRISMCACHE_TOKEN to a token that your service's operator made with `prismcache token create`."


class SourceWarning(UserWarning):
    """A crop's source lacks something: a voxel size, ETags, chunks."""


class MissingChunksWarning(SourceWarning):
    """A crop holds zarr's fill value where chunks are absent from the bucket."""


class ClassNumbersWarning(UserWarning):
    """The same label number stands for different classes in the semantic crops that are used together."""


class ForbiddenError(ServiceError):
    code, status, title = "forbidden", 403, "The token's role does not allow this"
    default_remedy = "Ask your service's operator for a token with a role that allows it."


def error_classes() -> dict[str, type[PrismError]]:
    """Return every error class by its code."""
    found: dict[str, type[PrismError]] = {}
    pending: list[type[PrismError]] = [PrismError]
    while pending:
        cls = pending.pop()
        found[cls.code] = cls
        pending.extend(cls.__subclasses__())
    return found


def error_from_problem(problem: Problem) -> PrismError:
    """Return the error of a problem, as its own class (`PrismError` for a code that this version does not know)."""
    cls = error_classes().get(problem.code, PrismError)
    return cls(problem.detail, remedy=problem.remedy)
