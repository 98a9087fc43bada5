"""A bucket that wants signed requests: the usual AWS chain signs for it, when asked to, and only then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prismcache import PrismClient, PrismError
from prismcache.errors import SourceDeniedError, SourceError
from tests.support.cache_root import tiny_spec
from tests.support.crops import crop_folder, write_crop
from tests.support.oracle import assert_crop_file_equals_oracle
from tests.support.s3 import S3Server

KEY, SECRET = "lab", "not-a-secret"
SPEC = tiny_spec(0)


@pytest.fixture(scope="module")
def private_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, Path]]:
    folder = tmp_path_factory.mktemp("private")
    write_crop(folder, SPEC)
    with S3Server(folder, dir_cache_seconds=86_400, credentials=(KEY, SECRET)) as server:
        yield server, folder


def _ensure(endpoint: str, root: Path, *, anonymous: bool) -> str:
    with PrismClient(root=root, s3_endpoint_url=endpoint, s3_anonymous=anonymous) as client:
        return client.ensure("instance", [0], progress=False)[0]


def _credentials(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)


def test_credentials_of_the_environment_sign_listings_and_bodies(private_bucket, tmp_path, monkeypatch):
    server, folder = private_bucket
    _credentials(monkeypatch, SECRET)
    path = _ensure(server.endpoint, tmp_path, anonymous=False)
    assert_crop_file_equals_oracle(Path(path), crop_folder(folder, SPEC))


def test_with_wrong_ones_the_bucket_refuses(private_bucket, tmp_path, monkeypatch):
    _credentials(monkeypatch, "wrong")
    with pytest.raises(SourceDeniedError) as caught:
        _ensure(private_bucket[0].endpoint, tmp_path, anonymous=False)
    assert caught.value.remedy


def test_anonymous_requests_are_not_signed_even_where_there_are_credentials(private_bucket, tmp_path, monkeypatch):
    _credentials(monkeypatch, SECRET)
    with pytest.raises(SourceError, match="responds 400"):  # rclone; AWS says 403
        _ensure(private_bucket[0].endpoint, tmp_path, anonymous=True)


def test_no_credentials_at_all_is_an_error_that_says_so(private_bucket, tmp_path):
    with pytest.raises(PrismError, match=r"[Cc]redentials"):
        _ensure(private_bucket[0].endpoint, tmp_path, anonymous=False)
