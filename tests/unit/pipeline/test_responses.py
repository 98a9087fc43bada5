"""What each kind of failed request means."""

from __future__ import annotations

import pytest
from aiohttp import ClientHttpProxyError
from botocore.exceptions import ClientError, ProxyConnectionError
from obstore.exceptions import GenericError

from prismcache.errors import (
    ConfigError,
    PrismError,
    SourceChangedError,
    SourceCorruptError,
    SourceDeniedError,
    SourceError,
    SourceUnreachableError,
)
from prismcache_service.pipeline.bucket.responses import ROWS, Failure, RedirectRefusedError, decide, failure_of

UNREACHABLE = SourceUnreachableError
CASES: dict[str, list[tuple[Failure, type[PrismError], bool, str]]] = {
    "a proxy that wants a password": [(Failure(407), UNREACHABLE, False, "proxy on the way refuses with 407")],
    "a proxy that refuses": [
        (Failure(reason="the proxy on the way refuses the connection with 403 No"), UNREACHABLE, False, "with 403 No")
    ],
    "a certificate that is not trusted": [
        (
            Failure(reason="certificate verify failed"),
            UNREACHABLE,
            False,
            "has a certificate that is not trusted: cert",
        ),
        (Failure(reason="InvalidCertificate: Expired"), UNREACHABLE, False, "InvalidCertificate: Expired"),
    ],
    "no response": [
        (Failure(reason="connection reset"), UNREACHABLE, True, "http://s3 does not respond: conn"),
        (Failure(reason="the proxy on the way refuses the connection with 502 Bad"), UNREACHABLE, True, "with 502"),
    ],
    "another region": [
        (Failure(301, "PermanentRedirect", "eu-west-1"), ConfigError, False, "in the region eu-west-1"),
        (Failure(307, region="eu-west-1"), ConfigError, False, "responds 307: the bucket is in the region eu-west-1"),
        (Failure(400, "AuthorizationHeaderMalformed", "ap-south-1"), ConfigError, False, "ap-south-1"),
    ],
    "a clock that is wrong": [(Failure(403, "RequestTimeTooSkewed"), SourceDeniedError, False, "Skewed")],
    "no permission": [
        (Failure(403, "AccessDenied", "eu-west-1"), SourceDeniedError, False, "responds 403 AccessDenied"),
        (Failure(401), SourceDeniedError, False, "responds 401"),
        (Failure(400, "ExpiredToken"), SourceDeniedError, False, "responds 400 ExpiredToken"),
        (Failure(500, "AccessDenied"), SourceDeniedError, False, "AccessDenied"),
    ],
    "no such bucket": [(Failure(404, "NoSuchBucket"), ConfigError, False, "NoSuchBucket")],
    "a success that is not an S3 response": [(Failure(200), ConfigError, False, "this is not an S3 server")],
    "a lost object": [(Failure(404, "NoSuchKey"), SourceCorruptError, False, "though it was listed")],
    "a changed object": [(Failure(412), SourceChangedError, False, "changed since it was listed")],
    "a busy or broken server": [
        (Failure(status), UNREACHABLE, True, f"responds {status}")
        for status in (408, 425, 429, 500, 502, 503, 504, 599)
    ]
    + [
        (Failure(status, code), UNREACHABLE, True, f"responds {status} {code}")
        for status, code in ((400, "RequestTimeout"), (403, "Throttling"), (409, "OperationAborted"))
    ],
    "a redirect": [
        (Failure(status), SourceError, False, "redirects are not followed") for status in (301, 302, 307, 308)
    ],
    "any other status": [
        (Failure(status), SourceError, False, f"responds {status}")
        for status in (204, 206, 400, 402, 405, 409, 411, 413, 416, 418, 501, 505)
    ],
}
ALL = [pytest.param(name, *case, id=f"{name}-{case[0].status}") for name, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("name", "failure", "error", "retry", "words"), ALL)
def test_row(name: str, failure: Failure, error: type[PrismError], retry: bool, words: str) -> None:
    row = next(row for row in ROWS if row.matches(failure, False))
    verdict = decide(failure, "object 'a'", "http://s3", listing=False)
    assert row.name == name
    assert (type(verdict.error), verdict.retry) == (error, retry)
    assert str(verdict.error).startswith("object 'a': http://s3")
    assert words in str(verdict.error)


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_without_listings_is_no_s3_server(status: int) -> None:
    verdict = decide(Failure(status, "NoSuchKey"), "listing", "http://s3", listing=True)
    assert isinstance(verdict.error, ConfigError)
    assert not verdict.retry
    assert "not an S3 server, or it lacks the bucket" in str(verdict.error)


def test_each_row_has_a_test() -> None:
    assert [row.name for row in ROWS if row.name not in CASES] == ["no listing"]


def _client_error(**response: object) -> ClientError:
    return ClientError(response, "GetObject")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            _client_error(
                Error={"Code": "PermanentRedirect"},
                ResponseMetadata={"HTTPStatusCode": 301, "HTTPHeaders": {"x-amz-bucket-region": "eu-west-1"}},
            ),
            Failure(301, "PermanentRedirect", "eu-west-1"),
        ),
        (
            _client_error(Error={"Code": "Bad", "Region": "eu-west-1"}, ResponseMetadata={"HTTPStatusCode": 400}),
            Failure(400, "Bad", "eu-west-1"),
        ),
        (RedirectRefusedError(302, ""), Failure(302)),
        (
            GenericError("Server returned non-2xx status code: 503 Slow: <Code>SlowDown</Code>"),
            Failure(503, "SlowDown"),
        ),
        (
            GenericError('request error\n\nDebug source:\nOs { code: 104, message: "Connection reset by peer" }'),
            Failure(reason="request error: Connection reset by peer"),
        ),
        (GenericError("tunnel error\n\nDebug source:\nProxyAuthRequired"), Failure(407)),
        (
            GenericError("tunnel error\n\nDebug source:\nTunnelUnsuccessful"),
            Failure(reason="the proxy on the way refuses the connection"),
        ),
        (
            ProxyConnectionError(proxy_url="http://p", error=ClientHttpProxyError(None, (), status=407)),  # type: ignore[arg-type]
            Failure(407),
        ),
        (
            ProxyConnectionError(proxy_url="http://p", error=ClientHttpProxyError(None, (), status=502, message="Bad")),  # type: ignore[arg-type]
            Failure(reason="the proxy on the way refuses the connection with 502 Bad"),
        ),
        (TimeoutError(), Failure(reason="no progress for too long")),
        (ConnectionResetError(), Failure(reason="ConnectionResetError")),
    ],
)
def test_what_exceptions_of_the_libraries_say(error: BaseException, expected: Failure) -> None:
    assert failure_of(error) == expected
