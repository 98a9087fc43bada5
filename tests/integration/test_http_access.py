"""Who may do what: every operation with every role, tokens that come and go, and services that must not be open."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from prismcache.config import Settings
from prismcache_service.web.tokens import Role, revoke_token, tokens_path
from tests.support.processes import eventually
from tests.support.service import Service, service_config

UNKNOWN_ID = "0" * 32
JSON = {"split": "instance", "crops": [0]}

# Method, path, body, least role (None: public). Nothing is cached or published, so what is allowed may still be a 404.
OPERATIONS: list[tuple[str, str, Any, Role | None]] = [
    ("GET", "/healthz", None, None),
    ("GET", "/readyz", None, None),
    ("GET", "/docs", None, None),
    ("GET", "/openapi.json", None, None),
    ("GET", "/metrics", None, Role.READER),
    ("GET", "/v1/status", None, Role.READER),
    ("GET", "/v1/me", None, Role.READER),
    ("GET", "/v1/events", None, Role.READER),
    ("GET", "/v1/history", None, Role.READER),
    ("GET", "/v1/jobs", None, Role.READER),
    ("GET", f"/v1/jobs/{UNKNOWN_ID}", None, Role.READER),
    ("GET", f"/v1/jobs/{UNKNOWN_ID}/events", None, Role.READER),
    ("GET", "/v1/crops", None, Role.READER),
    ("GET", "/v1/crops/instance", None, Role.READER),
    ("GET", "/v1/crops/instance/0", None, Role.READER),
    ("GET", "/v1/crops/instance/0/file", None, Role.READER),
    ("HEAD", "/v1/crops/instance/0/file", None, Role.READER),
    ("GET", "/v1/crops/instance/0/preview.png", None, Role.READER),
    ("GET", "/v1/crops/instance/0/zarr/.zattrs", None, Role.READER),
    ("HEAD", "/v1/crops/instance/0/zarr/.zattrs", None, Role.READER),
    ("POST", "/v1/jobs", JSON, Role.REQUESTER),
    ("DELETE", f"/v1/jobs/{UNKNOWN_ID}", None, Role.REQUESTER),
    ("POST", "/v1/leases", JSON, Role.REQUESTER),
    ("PUT", f"/v1/leases/{UNKNOWN_ID}", None, Role.REQUESTER),
    ("DELETE", f"/v1/leases/{UNKNOWN_ID}", None, Role.REQUESTER),
    ("POST", "/v1/links", {"split": "instance", "crop": 0}, Role.REQUESTER),
    ("GET", "/v1/links", None, Role.REQUESTER),
    ("DELETE", f"/v1/links/{UNKNOWN_ID}", None, Role.REQUESTER),
    ("GET", "/v1/shared/prism_0/zarr/.zattrs", None, None),
    ("HEAD", "/v1/shared/prism_0/zarr/.zattrs", None, None),
    ("GET", "/v1/shared/prism_0/neuroglancer", None, None),
    ("PUT", "/v1/crops/instance/0/pin", None, Role.ADMIN),
    ("DELETE", "/v1/crops/instance/0/pin", None, Role.ADMIN),
    ("DELETE", "/v1/crops/instance/0", None, Role.ADMIN),
    ("DELETE", "/v1/quarantine", None, Role.ADMIN),
    ("POST", "/v1/verify", {"split": "instance"}, Role.ADMIN),
]


def _settings(folder: Path) -> Settings:
    """Settings with a bucket that refuses connections at once."""
    return Settings.load({}, root=folder / "root", s3_endpoint_url="http://127.0.0.1:9", s3_object_timeout=0.2)


@pytest.fixture(scope="module")
def tokens() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tokens: dict[str, str]) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("http_access")
    started = Service(service_config(_settings(folder), folder / "state", failed_auth_limit=100_000, log_format="json"))
    for name, role in (("rita", "reader"), ("ruth", "requester"), ("rose", "requester"), ("ada", "admin")):
        tokens[name] = started.create_token(name, role)
    with started:
        yield started
        assert started.terminate() == 0


@pytest.fixture(scope="module")
def clients(service: Service, tokens: dict[str, str]) -> Iterator[dict[str, httpx2.Client]]:
    found = {name: service.client(token) for name, token in tokens.items()} | {"nobody": service.client()}
    yield found
    for client in found.values():
        client.close()


def test_the_matrix_has_every_operation(service: Service, clients: dict[str, httpx2.Client]) -> None:
    paths = clients["nobody"].get("/openapi.json").json()["paths"]
    generic = dict.fromkeys(("job_id", "lease_id", "link_id"), UNKNOWN_ID)
    generic |= {"split": "instance", "crop": "0", "key": ".zattrs", "capability": "prism_0"}
    documented = {(method.upper(), path.format(**generic)) for path, methods in paths.items() for method in methods}

    assert documented == {(m, p) for m, p, _, _ in OPERATIONS} - {("GET", "/docs"), ("GET", "/openapi.json")}


@pytest.mark.parametrize(("method", "path", "body", "least"), OPERATIONS, ids=lambda value: str(value)[:40])
def test_each_role_may_do_what_it_includes_and_no_more(
    clients: dict[str, httpx2.Client], method: str, path: str, body: Any, least: Role | None
) -> None:
    for name, role in (("nobody", None), ("rita", Role.READER), ("ruth", Role.REQUESTER), ("ada", Role.ADMIN)):
        with clients[name].stream(method, path, json=body) as response:  # /v1/events has no end
            status = response.status_code
        if least is not None and role is None:
            assert status == 401
        elif least is not None and role is not None and not role.includes(least):
            assert status == 403
        else:
            assert status not in {401, 403}


def test_a_refusal_says_how_to_authenticate(clients: dict[str, httpx2.Client]) -> None:
    response = clients["nobody"].get("/v1/jobs")

    assert (response.headers["www-authenticate"], response.json()["code"]) == ("Bearer", "unauthorized")
    assert clients["nobody"].get("/nowhere").status_code == 401


@pytest.mark.parametrize("header", ["", "Bearer", "Basic {}", "{}", "Bearer {}x", "bearer  x{}", "Bearer {} {}"])
def test_what_is_no_valid_token_is_refused_even_where_none_is_needed(
    service: Service, tokens: dict[str, str], header: str
) -> None:
    with service.client() as http:
        headers = {"Authorization": header.format(tokens["ada"], tokens["ada"])}
        assert http.get("/v1/jobs", headers=headers).status_code == 401
        assert http.get("/healthz", headers=headers).status_code == 401


def test_a_token_counts_once_in_one_header(service: Service, tokens: dict[str, str]) -> None:
    valid = ("Authorization", f"Bearer {tokens['ada']}")
    with service.client() as http:
        assert http.get("/v1/jobs", headers=[valid]).status_code == 200
        assert http.get("/v1/jobs", headers=[valid, valid]).status_code == 401
        assert http.get("/v1/jobs", params={"token": tokens["ada"]}).status_code == 401


def test_only_admins_cancel_the_jobs_of_others(clients: dict[str, httpx2.Client]) -> None:
    job = clients["ruth"].post("/v1/jobs", json=JSON).json()
    assert job["owner"] == "ruth"

    refused = clients["rose"].delete(f"/v1/jobs/{job['id']}")

    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert clients["ruth"].delete(f"/v1/jobs/{job['id']}").status_code == 200
    job = clients["ruth"].post("/v1/jobs", json=JSON).json()
    assert clients["ada"].delete(f"/v1/jobs/{job['id']}").status_code == 200


def test_me_is_who_asks(clients: dict[str, httpx2.Client]) -> None:
    for name in ("ruth", "rose"):
        clients[name].post("/v1/jobs", json={"split": "semantic", "crops": [0]})
    for name in ("ruth", "rose"):
        owners = {job["owner"] for job in clients[name].get("/v1/jobs", params={"owner": "me"}).json()["jobs"]}
        assert owners == {name}


def test_a_lease_belongs_to_its_token(clients: dict[str, httpx2.Client]) -> None:
    path = "/v1/" + clients["ruth"].post("/v1/leases", json=JSON).headers["location"]

    assert clients["rose"].put(path).json()["code"] == "unknown_lease"
    clients["rose"].delete(path)
    assert clients["ruth"].put(path).status_code == 200


def test_only_who_has_a_token_learns_why_it_is_not_ready(clients: dict[str, httpx2.Client]) -> None:
    public, told = (clients[name].get("/readyz").json()["checks"] for name in ("nobody", "rita"))

    assert public["source"] == "failing"
    assert "127.0.0.1:9" in told["source"]


def test_a_running_service_notices_tokens_that_are_made_and_revoked(service: Service) -> None:
    token = service.create_token("temp", "reader")

    def status() -> int:
        with service.client(token) as http:
            return http.get("/v1/jobs").status_code

    assert status() == 401
    eventually(lambda: status() == 200, "the token is accepted")
    revoke_token(tokens_path(service.config), "temp")
    eventually(lambda: status() == 401, "the token is refused")


def test_no_token_is_in_the_log(service: Service, tokens: dict[str, str]) -> None:
    assert '"event": "request"' in service.log
    assert '"caller": "ruth"' in service.log
    assert all(token.removeprefix("prism_") not in service.log for token in tokens.values())


def test_the_log_says_who_changed_what(service: Service, clients: dict[str, httpx2.Client]) -> None:
    job = clients["ruth"].post("/v1/jobs", json={"split": "semantic", "crops": [7]}).json()["id"]
    clients["ada"].delete(f"/v1/jobs/{job[:31]}")  # the start of an id is enough
    clients["ada"].put("/v1/crops/instance/3/pin")
    clients["ada"].delete("/v1/crops/instance/3/pin")
    clients["ada"].delete("/v1/crops/instance/3")
    clients["ada"].post("/v1/verify", json={"split": "instance", "crops": [3]})
    clients["ada"].delete("/v1/quarantine")

    lines = [json.loads(line) for line in service.log.splitlines() if '"event": "audit"' in line]
    changes = [(line["action"], line["by"], line.get("crop") or line.get("job")) for line in lines if "by" in line]
    assert [change for change in changes if change[1] == "ada"][-6:] == [
        ("cancel", "ada", job),
        ("pin", "ada", "instance/3"),
        ("unpin", "ada", "instance/3"),
        ("evict", "ada", "instance/3"),
        ("verify", "ada", None),
        ("clear quarantine", "ada", None),
    ]
    assert all(line["request"] for line in lines if "by" in line)


def test_a_token_has_a_rate_and_others_are_not_held_up(tmp_path: Path) -> None:
    service = Service(service_config(_settings(tmp_path), tmp_path / "state", rate_limit=5))
    hasty, calm = (service.create_token(name, "reader") for name in ("hasty", "calm"))
    with service, service.client(hasty) as fast, service.client(calm) as slow:
        responses = [fast.get("/v1/jobs") for _ in range(30)]

        refused = [response for response in responses if response.status_code == 429]
        assert responses[0].status_code == 200
        assert refused
        assert all(a.json()["code"] == "busy" and int(a.headers["retry-after"]) >= 1 for a in refused)
        assert slow.get("/v1/jobs").status_code == 200
        time.sleep(0.5)
        assert fast.get("/v1/jobs").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_without_tokens_it_starts_on_loopback_only(tmp_path: Path, host: str) -> None:
    config = service_config(_settings(tmp_path), tmp_path / "state", host=host)

    with pytest.raises(RuntimeError, match="can be reached from other machines") as caught:
        Service(config).start()
    assert "Traceback" not in str(caught.value)


@pytest.fixture(scope="module")
def open_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("http_open")
    with Service(service_config(_settings(folder), folder / "state")) as started:
        yield started


@pytest.mark.parametrize(
    ("host", "allowed"),
    [("localhost:1", True), ("127.0.0.1", True), ("[::1]:80", True), ("evil.com", False), ("127.0.0.1.evil.com", False),
     ("evil.com:8765@127.0.0.1", True), ("", False), ("[", False)],
)  # fmt: skip
def test_without_tokens_only_requests_for_localhost_are_served(open_service: Service, host: str, allowed: bool) -> None:
    with open_service.client() as http:
        status = http.get("/v1/jobs", headers={"Host": host}).status_code

    assert (status == 200) is allowed
    assert status in {200, 400, 403}


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
)
def test_without_tokens_pages_of_other_sites_change_nothing(open_service: Service, site: str, status: int) -> None:
    with open_service.client() as http:
        response = http.delete("/v1/crops/instance/0", headers={"Sec-Fetch-Site": site})

    assert response.status_code == status


def test_the_first_token_closes_an_open_service(tmp_path: Path) -> None:
    with Service(service_config(_settings(tmp_path), tmp_path / "state")) as service, service.client() as http:
        assert http.get("/v1/jobs").status_code == 200
        service.create_token("ada", "admin")
        eventually(lambda: http.get("/v1/jobs").status_code == 401, "a token is asked for")
