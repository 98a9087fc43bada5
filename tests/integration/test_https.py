"""The service's own TLS and its public URL: certificates that come, go and are wrong, proxies in front, IPv6."""

from __future__ import annotations

import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from prismcache import PrismClient
from prismcache.config import Settings
from prismcache.errors import ConfigError
from prismcache_service.web.server import HEADER_SECONDS
from prismcache_service.web.tls import Certificate
from tests.support.cache_root import tiny_spec
from tests.support.certificates import HAVE_OPENSSL, make_certificate
from tests.support.labs import running_lab
from tests.support.processes import eventually
from tests.support.service import Service, service_config

needs_openssl = pytest.mark.skipif(not HAVE_OPENSSL, reason="no openssl to make certificates with")


def _settings(folder: Path) -> Settings:
    return Settings.load({}, root=folder / "root", s3_endpoint_url="http://127.0.0.1:9", s3_object_timeout=0.2)


def _service(folder: Path, **changes: Any) -> Service:
    return Service(service_config(_settings(folder), folder / "state", **changes))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("second"))


def _served(service: Service) -> str:
    """Return the certificate that a new connection gets, as PEM."""
    return ssl.get_server_certificate(("127.0.0.1", int(service.url.rpartition(":")[2])))


def _pem(certificate: Path) -> str:
    return ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(certificate.read_text()))


@needs_openssl
def test_a_crop_comes_over_the_services_tls_and_a_renewed_certificate_is_used(
    tmp_path: Path, pair: tuple[Path, Path], other: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [Path(shutil.copy(path, tmp_path)) for path in pair]
    with running_lab(tmp_path, [tiny_spec(0)]) as lab:
        config = service_config(
            lab.settings(workers=1), tmp_path / "state", min_free_bytes=0, tls_cert=own[0], tls_key=own[1]
        )
        with Service(config) as service:
            began = time.monotonic()
            silent = socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])))
            assert service.url.startswith("https://127.0.0.1:")
            assert _served(service) == _pem(pair[0])
            monkeypatch.setenv("SSL_CERT_FILE", str(pair[0]))
            with PrismClient(url=service.url, downloads=tmp_path / "downloads") as client:
                assert [Path(path).name for path in client.ensure("instance", 0, progress=False)] == ["crop_0.h5"]
            with pytest.raises(httpx2.RemoteProtocolError):  # not a traceback in the log, either
                httpx2.get(f"{service.url.replace('https', 'http')}/healthz")
            shutil.copy(other[1], own[1])  # for a moment the key is not the certificate's
            eventually(lambda: "certificate not renewed" in service.log, "the mismatch is logged")
            assert _served(service) == _pem(pair[0])
            shutil.copy(other[0], own[0])
            eventually(lambda: _served(service) == _pem(other[0]), "the renewed certificate is served")
            with silent:
                silent.settimeout(HEADER_SECONDS + 5)
                assert silent.recv(1) == b""  # a handshake that never begins is not waited for
                assert time.monotonic() - began > HEADER_SECONDS - 1
        assert "Traceback" not in service.log


def _expired(pair: tuple[Path, Path], folder: Path) -> tuple[Path, Path]:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    key = serialization.load_pem_private_key(pair[1].read_bytes(), None)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lab")])
    now = datetime.now(UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), 7, now - timedelta(days=9), now - timedelta(days=1))
    (folder / "old.pem").write_bytes(built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return folder / "old.pem", pair[1]


def _with_password(pair: tuple[Path, Path], folder: Path) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key(pair[1].read_bytes(), None)
    locked = s.BestAvailableEncryption(b"secret")
    (folder / "locked.pem").write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, locked))
    return pair[0], folder / "locked.pem"


def _damaged(pair: tuple[Path, Path], folder: Path) -> tuple[Path, Path]:
    (folder / "damaged.pem").write_text(pair[0].read_text().replace("M", "N", 5))
    return folder / "damaged.pem", pair[1]


BAD_FILES = {
    "absent": (lambda pair, folder: (folder / "gone.pem", pair[1]), r"certificate .*gone.pem cannot be read: No such"),
    "no key": (lambda pair, folder: (pair[0], pair[0]), r"certificate.pem holds no private key"),
    "no certificate": (lambda pair, folder: (pair[1], pair[1]), r"key.pem holds no certificate"),
    "damaged": (_damaged, r"damaged.pem and the private key .* cannot be used"),
    "password": (_with_password, r"locked.pem has a password"),
    "expired": (_expired, r"old.pem: certificate has expired"),
}


@needs_openssl
@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_clients_could_not_use_are_refused_with_a_remedy(
    case: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    make, words = BAD_FILES[case]
    with pytest.raises(ConfigError, match=words) as caught:
        Certificate(*make(pair, tmp_path))
    assert caught.value.remedy


@needs_openssl
def test_a_key_of_another_certificate_is_refused_before_the_port_is_opened(
    pair: tuple[Path, Path], other: tuple[Path, Path], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:  # opening the port would be another error
        service = _service(tmp_path, tls_cert=pair[0], tls_key=other[1], port=taken.getsockname()[1])
        with pytest.raises(RuntimeError, match=r"key.pem does not belong to the certificate") as caught:
            service.start()
    assert "issued together" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_the_public_url_is_printed_published_and_its_path_may_be_passed_on(tmp_path: Path) -> None:
    url = "https://lab.example/prism"
    with _service(tmp_path, public_url=f"{url}/", insecure=True) as service, service.client() as http:
        assert service.log == f"prismcache serves {service.url} as {url}\n"
        for path in ("/openapi.json", "/prism/openapi.json"):
            assert http.get(path).json()["servers"] == [{"url": url}]
        assert http.get("/prismatic/healthz").status_code == 404


def test_a_public_url_opens_nothing_without_tokens(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"'lab.example' can be reached from other machines"):
        _service(tmp_path, public_url="https://lab.example").start()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 422),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://localhost:8443"}, 422),
        ({"Origin": "https://localhost:8443", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "evil.example"}, 403),
    ],
)
def test_without_tokens_pages_of_other_sites_change_nothing(
    local: httpx2.Client, headers: dict[str, str], status: int
) -> None:
    assert local.post("/v1/jobs", json={"split": "x"}, headers=headers).status_code == status


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    folder = tmp_path_factory.mktemp("local")
    with _service(folder, public_url="https://localhost:8443") as service, service.client() as http:
        yield http


@pytest.mark.parametrize("trusted", ["", "127.0.0.0/8"])
def test_clients_behind_a_trusted_proxy_are_limited_one_by_one(tmp_path: Path, trusted: str) -> None:
    service = _service(tmp_path, host="::", trusted_proxies=trusted, failed_auth_limit=2)
    service.create_token("ada", "reader")

    def tried(address: str) -> int:
        headers = {"Authorization": "Bearer wrong", "X-Forwarded-For": f"10.9.9.9, {address}"}
        return http.get("/v1/jobs", headers=headers).status_code

    with service, httpx2.Client(base_url=service.url.replace("[::]", "127.0.0.1"), trust_env=False) as http:
        statuses = [tried("10.0.0.1") for _ in range(3)] + [tried("10.0.0.2")]
    assert statuses == ([401, 401, 429, 401] if trusted else [401, 401, 429, 429])
    assert ("10.0.0.2" in service.log) == bool(trusted)


def test_a_service_on_every_address_serves_a_crop_over_ipv6_and_ipv4(tmp_path: Path) -> None:
    with running_lab(tmp_path, [tiny_spec(0)]) as lab:
        settings = lab.settings(workers=1)
        with Service(
            service_config(settings, tmp_path / "state", min_free_bytes=0, host="::", insecure=True)
        ) as service:
            assert service.url.startswith("http://[::]:")
            with PrismClient(url=service.url.replace("[::]", "[::1]"), downloads=tmp_path / "downloads") as client:
                assert [Path(path).name for path in client.ensure("instance", 0, progress=False)] == ["crop_0.h5"]
            assert httpx2.get(f"{service.url.replace('[::]', '127.0.0.1')}/healthz").status_code == 200
