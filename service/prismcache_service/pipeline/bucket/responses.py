"""What a failed request to a bucket means: retry, or refuse with which error. Pure; the one place that decides.

`ROWS` is the table; its first row that matches a failure decides.

Status codes: RFC 9110; error codes: the S3 API reference, "Error responses".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from prismcache.errors import (
    ConfigError,
    PrismError,
    SourceChangedError,
    SourceCorruptError,
    SourceDeniedError,
    SourceError,
    SourceUnreachableError,
)

_DENIED = frozenset(  # S3 sends some of these with 400; botocore makes 500 of an error that came with 200
    {
        "AccessDenied",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_PASSING = frozenset(  # S3 and its like send these with 400, 403 and 409, too
    {
        "BandwidthLimitExceeded",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_CERTIFICATE = re.compile(r"certificate", re.IGNORECASE)
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9._-]{1,64})</Code>")
_TUNNEL = "the proxy on the way refuses the connection"
_REASON = re.compile(r'(?:message: "|InvalidCertificate\(\s*)([^",)]+)|TimedOut|IncompleteBody')
_REGION = re.compile(r"<Region>([a-z0-9-]{1,32})</Region>")


class RedirectRefusedError(aiohttp.ClientError):
    """A server redirects, which is never followed; has its status and the bucket's region if the server names one."""

    def __init__(self, status: int, region: str) -> None:
        super().__init__(f"redirected with status code: {status}")
        self.status, self.region = status, region


@dataclass(frozen=True)
class Failure:
    """A request without a usable response.

    `status` is the HTTP status (0: no response), `code` S3's error code, `region` the bucket's region where the
    response names one, and `reason` the library's own words where there was no response.
    """

    status: int = 0
    code: str = ""
    region: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """The error to raise, and whether another attempt may succeed."""

    error: PrismError
    retry: bool = False


@dataclass(frozen=True)
class Row:
    """What one kind of failure means.

    Attributes
    ----------
    name
        The kind, for people and tests.
    matches
        Whether a failure is of this kind; the second argument says whether keys were requested, not an object.
    error, words, remedy
        The error's class, what its message adds, and what to do about it; ``{region}`` and ``{reason}`` are filled in.
    retry
        Whether another attempt may succeed.
    """

    name: str
    matches: Callable[[Failure, bool], bool]
    error: type[PrismError]
    words: str = ""
    remedy: str | None = None
    retry: bool = False


ROWS = (
    Row(
        "a proxy that wants a password",
        lambda f, _: f.status == 407,
        SourceUnreachableError,
        ": the proxy on the way refuses with 407 Proxy Authentication Required",
        "Put user and password into HTTPS_PROXY and HTTP_PROXY, or the server's host into NO_PROXY.",
    ),
    Row(
        "a proxy that refuses",
        lambda f, _: re.match(rf"{_TUNNEL} with 4(?!08|29)", f.reason) is not None,
        SourceUnreachableError,
        " cannot be reached: {reason}",
        "Have the server's host and port allowed at the proxy of HTTPS_PROXY, or put the host into NO_PROXY.",
    ),
    Row(
        "a certificate that is not trusted",
        lambda f, _: f.status == 0 and _CERTIFICATE.search(f.reason) is not None,
        SourceUnreachableError,
        " has a certificate that is not trusted: {reason}",
        "Set AWS_CA_BUNDLE to a PEM file with the certificate of the server's authority.",
    ),
    Row(
        "no response",
        lambda f, _: f.status == 0,
        SourceUnreachableError,
        " does not respond: {reason}",
        retry=True,
    ),
    Row(
        "another region",
        lambda f, _: bool(f.region) and (300 <= f.status < 400 or f.status == 400),
        ConfigError,
        ": the bucket is in the region {region}",
        "Set PRISMCACHE_S3_REGION={region}.",
    ),
    Row(
        "a clock that is wrong",
        lambda f, _: f.code == "RequestTimeTooSkewed",
        SourceDeniedError,
        remedy="Set this machine's clock.",
    ),
    Row(
        "a busy or broken server",
        lambda f, _: (
            f.code in _PASSING
            or f.status in {408, 425, 429}
            or (f.status >= 500 and f.status not in {501, 505} and f.code not in _DENIED)
        ),
        SourceUnreachableError,
        retry=True,
    ),
    Row("no permission", lambda f, _: f.status in {401, 403} or f.code in _DENIED, SourceDeniedError),
    Row(
        "no such bucket",
        lambda f, _: f.code == "NoSuchBucket",
        ConfigError,
        remedy="Check PRISMCACHE_S3_BUCKET or, for a split of your lab's catalog, its key `bucket`.",
    ),
    Row(
        "no listing",
        lambda f, listing: listing and f.status in {404, 405},
        ConfigError,
        ": this is not an S3 server, or it lacks the bucket",
        "Check PRISMCACHE_S3_ENDPOINT_URL and PRISMCACHE_S3_BUCKET.",
    ),
    Row(
        "a success that is not an S3 response",
        lambda f, _: f.status == 200,
        ConfigError,
        " with something that is not an S3 response: this is not an S3 server",
        "Check PRISMCACHE_S3_ENDPOINT_URL.",
    ),
    Row("a lost object", lambda f, _: f.status == 404, SourceCorruptError, ", though it was listed"),
    Row(
        "a changed object",
        lambda f, _: f.status == 412,
        SourceChangedError,
        ": it changed since it was listed",
    ),
    Row("a redirect", lambda f, _: 300 <= f.status < 400, SourceError, ": redirects are not followed"),
    Row("any other status", lambda _, __: True, SourceError),
)


def decide(failure: Failure, what: str, endpoint: str, *, listing: bool) -> Verdict:
    """Return what a failed request means.

    `what` was requested from the server `endpoint`: both begin the message. `listing` says whether keys were requested,
    and not an object that was listed.
    """
    row = next(row for row in ROWS if row.matches(failure, listing))
    code = "" if failure.code == str(failure.status) else failure.code
    said = f" responds {failure.status} {code}".rstrip() if failure.status else ""
    words = row.words.format(region=failure.region, reason=failure.reason)
    remedy = row.remedy and row.remedy.format(region=failure.region)
    return Verdict(row.error(f"{what}: {endpoint}{said}{words}", remedy=remedy), row.retry)


def failure_of(error: BaseException) -> Failure:
    """Return what an exception of aiobotocore, aiohttp or obstore says about a request."""
    if isinstance(error, ClientError):
        response: dict[str, Any] = error.response
        about = response.get("ResponseMetadata", {})
        said = response.get("Error", {})
        headers = about.get("HTTPHeaders", {})
        return Failure(
            status=int(about.get("HTTPStatusCode", 0)),
            code=str(said.get("Code", "")),
            region=str(headers.get("x-amz-bucket-region") or said.get("Region", "")),
        )
    cause = error.kwargs.get("error") if isinstance(error, BotoCoreError) else error
    if isinstance(cause, ResponseParserError | RedirectRefusedError):
        return Failure(getattr(cause, "status", 200), region=getattr(cause, "region", ""))
    if isinstance(cause, aiohttp.ClientHttpProxyError) and cause.status != 407:
        return Failure(reason=f"{_TUNNEL} with {cause.status} {cause.message}")
    if getattr(cause, "status", 0) == 407 or "ProxyAuthRequired" in str(error):
        return Failure(407)
    # aiohttp's own words are shorter than botocore's, and give the reason.
    text = (str(cause or "") or str(error)).replace(" ssl:default", "")
    if status := _STATUS.search(text):
        code, region = _CODE.search(text), _REGION.search(text)
        return Failure(int(status[1]), code[1] if code else "", region[1] if region else "")
    return Failure(reason=_TUNNEL if "TunnelUnsuccessful" in text else _short(error, text))


def _short(error: BaseException, text: str) -> str:
    """Return the message, and of obstore's nested report only its innermost reason."""
    first, _, details = text.partition("\n\nDebug source:")
    if not first.strip():
        return "no progress for too long" if isinstance(error, TimeoutError) else type(error).__name__
    inner = [found[1] or found[0] for found in _REASON.finditer(details)]
    return ": ".join([first.strip(), *inner[-1:]])
