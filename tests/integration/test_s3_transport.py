"""The ways to a bucket: TLS, with certificates of the lab's own, and proxies, as the environment names them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prismcache import PrismClient
from prismcache.config import Settings
from prismcache.errors import ConfigError, SourceError, SourceUnreachableError
from prismcache.layout import SourceObject
from prismcache_service.pipeline.bucket.s3 import open_s3
from tests.support.cache_root import tiny_spec
from tests.support.certificates import HAVE_OPENSSL, make_certificate
from tests.support.crops import crop_folder, write_crop
from tests.support.forward_proxy import ForwardProxy
from tests.support.labs import running_lab
from tests.support.oracle import assert_crop_file_equals_oracle
from tests.support.s3 import S3Server

pytestmark = pytest.mark.skipif(not HAVE_OPENSSL, reason="no openssl to make certificates with")
SPEC = tiny_spec(0)
FOLDER = "instance/crop_0.zarr"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bucket")
    write_crop(folder, SPEC)
    return folder


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[S3Server]:
    with S3Server(folder, dir_cache_seconds=86_400) as server:
        yield server


@pytest.fixture(scope="module")
def secure(folder: Path, certificate: tuple[Path, Path]) -> Iterator[S3Server]:
    with S3Server(folder, dir_cache_seconds=86_400, certificate=certificate) as server:
        yield server


def _ensure(endpoint: str, root: Path, folder: Path) -> None:
    with PrismClient(root=root, s3_endpoint_url=endpoint, s3_object_timeout=5) as client:
        path = client.ensure("instance", [0], progress=False)[0]
    assert_crop_file_equals_oracle(Path(path), crop_folder(folder, SPEC))


def test_a_crop_comes_over_tls(secure, folder, certificate, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    assert secure.endpoint.startswith("https://")
    _ensure(secure.endpoint, tmp_path, folder)


def test_a_certificate_that_nobody_vouches_for_is_refused(secure, folder, tmp_path):
    with pytest.raises(SourceUnreachableError, match=r"[Cc]ertificate|SSL"):
        _ensure(secure.endpoint, tmp_path, folder)


@pytest.mark.parametrize("credentials", [None, "ada:pass%20word"])
def test_a_crop_comes_through_a_proxy(plain, folder, tmp_path, monkeypatch, credentials):
    with ForwardProxy(credentials and credentials.replace("%20", " ")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace(" ", "%20"))
        _ensure(plain.endpoint, tmp_path, folder)
    assert sum(first.startswith(f"GET {plain.endpoint}/e11bio-prism/ls") for first in proxy.requests) > 10


def test_a_crop_comes_through_a_tunnel(secure, folder, certificate, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    with ForwardProxy("ada:secret") as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        _ensure(secure.endpoint, tmp_path, folder)
    assert {first.split()[0] for first in proxy.requests} == {"CONNECT"}


@pytest.fixture(scope="module", params=["http", "https"])
def ipv6(
    request: pytest.FixtureRequest, folder: Path, certificate: tuple[Path, Path]
) -> Iterator[tuple[S3Server, tuple[Path, Path]]]:
    own = certificate if request.param == "https" else None
    with S3Server(folder, dir_cache_seconds=86_400, certificate=own, host="[::1]") as server:
        assert server.endpoint.startswith(f"{request.param}://[::1]:")
        yield server, certificate


@pytest.mark.parametrize("by_proxy", [False, True], ids=["directly", "through a proxy"])
def test_a_crop_comes_over_ipv6(ipv6, folder, tmp_path, monkeypatch, by_proxy):
    server, certificate = ipv6
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    with ForwardProxy("ada:secret", host="::1") as proxy:
        if by_proxy:
            monkeypatch.setenv(f"{server.endpoint.partition(':')[0]}_proxy", proxy.url)
        _ensure(server.endpoint, tmp_path, folder)
    assert bool(proxy.requests) == by_proxy
    assert all("[::1]:" in first for first in proxy.requests)  # with brackets, also in CONNECT


def test_hosts_that_need_no_proxy_are_asked_directly(plain, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    _ensure(plain.endpoint, tmp_path, folder)


@pytest.mark.parametrize(
    ("refusal", "words"), [(None, "refuses with 407"), ("502 Bad Gateway", "with 502"), ("403 Forbidden", "with 403")]
)
def test_a_proxy_that_refuses_is_an_error_that_leaves_nothing_open(secure, certificate, monkeypatch, refusal, words):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    settings = Settings.load({}, s3_endpoint_url=secure.endpoint, s3_object_timeout=0.5)
    item = SourceObject(key="raw/.zarray", size=10, etag="abc")

    async def refused() -> list[str]:
        said = []
        with ThreadPoolExecutor(1) as executor:
            async with open_s3(settings, executor) as source:
                for request in (
                    source.list_objects(FOLDER),
                    source.read_document(FOLDER, item),
                    source.read(FOLDER, item),
                ):
                    with pytest.raises(SourceError) as caught:
                        await request
                    said.append(str(caught.value))
        return said

    with ForwardProxy(None if refusal else "ada:secret", refusal=refusal) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url.replace("secret", "wrong"))
        asyncio.run(refused())
        before = len(list(Path("/proc/self/fd").iterdir()))
        said = asyncio.run(refused())
        assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert words in said[0]
    assert all("the proxy on the way refuses" in text for text in said), said


def test_another_kind_of_proxy_is_an_error_that_names_it(plain, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(ConfigError, match="socks5"):
        _ensure(plain.endpoint, tmp_path, folder)


def test_a_machine_without_certificates_reads_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with running_lab(tmp_path, [tiny_spec(0)]) as lab, PrismClient(settings=lab.settings(workers=1)) as client:
        assert [Path(path).name for path in client.ensure("instance", 0, progress=False)] == ["crop_0.h5"]
