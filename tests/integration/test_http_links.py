"""Links over HTTP and on the command line: read by real zarr, refused when they end, and never in a log."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from prismcache import PrismClient
from prismcache.cli.app import app
from prismcache_service.web.tokens import revoke_token, tokens_path
from tests.support.cache_root import Lab, tiny_spec
from tests.support.labs import running_lab
from tests.support.oracle import reference_crop
from tests.support.processes import eventually
from tests.support.service import Service, service_config

SPECS = [tiny_spec(0), tiny_spec(1)]
SECONDS = 1 / 3600  # in hours


@dataclass
class Site:
    lab: Lab
    service: Service
    clients: dict[str, httpx2.Client]
    tokens: dict[str, str]

    def link(self, name: str = "ada", **fields: Any) -> dict[str, Any]:
        response = self.clients[name].post("/v1/links", json={"split": "instance", "crop": 0} | fields)
        assert response.status_code == 201, response.text
        made: dict[str, Any] = response.json()
        return made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("http_links")
    with running_lab(folder, SPECS) as lab:
        settings = lab.settings(workers=1)
        service = Service(service_config(settings, folder / "state", min_free_bytes=0, log_format="json"))
        roles = {"ada": "admin", "rita": "requester", "rob": "requester", "leo": "reader"}
        tokens = {name: service.create_token(name, role) for name, role in roles.items()}
        with service:
            with PrismClient(url=service.url, token=tokens["ada"]) as client:
                client.ensure("instance", [0, 1], progress=False)
            clients = {name: service.client(token) for name, token in tokens.items()} | {"nobody": service.client()}
            yield Site(lab, service, clients, tokens)
            for client in clients.values():
                client.close()
            assert service.terminate() == 0
            assert "Traceback" not in service.log


@pytest.fixture
def run(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("PRISMCACHE_URL", site.service.url)
    monkeypatch.setenv("PRISMCACHE_TOKEN", site.tokens["rita"])
    return lambda *words: CliRunner().invoke(app, list(words))


def test_zarr_reads_a_linked_crop_without_a_token(site: Site) -> None:
    image = zarr.open_group(site.link()["url"], mode="r", zarr_format=2)
    assert np.array_equal(image["0"][:], reference_crop(site.lab.source(SPECS[0])).raw)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_a_link_admits_no_other_method(site: Site, method: str) -> None:
    path = f"/{site.link()['path']}/zarr/.zattrs"
    assert site.clients["nobody"].get(path).status_code == 200
    assert site.clients["nobody"].request(method, path).status_code == 404


def test_a_link_admits_to_one_crop_and_nothing_else(site: Site) -> None:
    zero, one, nobody = site.link(), site.link(crop=1), site.clients["nobody"]
    names = [nobody.get(f"/{link['path']}/zarr/.zattrs").json()["multiscales"][0]["name"] for link in (zero, one)]
    assert names == ["instance/crop_0", "instance/crop_1"]
    capability = zero["path"].rpartition("/")[2]
    for path in (
        "",
        "/",
        "/file",
        "/zarr/../../../crops/instance/1/zarr/.zattrs",
        "/zarr/..%2f..%2fcrop_1.h5",
        "/zarr/0/9.9.9.9",
    ):
        response = nobody.get(f"/v1/shared/{capability}{path}")
        assert response.status_code in {401, 404}, path  # 401: the client has made the path one of the API
    for headers in ({"Authorization": f"Bearer {capability}"}, {"Authorization": f"Bearer {site.tokens['leo']}"}):
        assert nobody.get(f"/v1/shared/{capability}/zarr/.zgroup", headers=headers).status_code == 200
    assert nobody.get("/v1/crops", headers={"Authorization": f"Bearer {capability}"}).status_code == 401


def test_a_link_that_has_ended_or_is_altered_is_not_found(site: Site) -> None:
    nobody = site.clients["nobody"]
    altered, revoked, short = site.link(), site.link(), site.link(hours=2 * SECONDS)
    wrong = altered["path"][:-1] + ("A" if altered["path"][-1] != "A" else "B")
    for path in (wrong, "v1/shared/prism_0", "v1/shared/" + "x" * 5000):
        assert nobody.get(f"/{path}/zarr/.zgroup").status_code == 404
    assert nobody.get(f"/{revoked['path']}/zarr/.zgroup").status_code == 200
    assert site.clients["ada"].delete(f"/v1/links/{revoked['id']}").status_code == 204
    response = nobody.get(f"/{revoked['path']}/zarr/.zgroup")
    assert (response.status_code, response.json()["code"]) == (404, "unknown_link")
    eventually(lambda: nobody.get(f"/{short['path']}/zarr/.zgroup").status_code == 404, "the link has expired")
    assert datetime.fromisoformat(short["expires_at"]) <= datetime.now(UTC)


def test_who_may_make_see_and_revoke_links(site: Site) -> None:
    clients = site.clients
    made = site.link("rita", note="<b>for Ada</b>")
    assert clients["leo"].post("/v1/links", json={"split": "instance", "crop": 0}).status_code == 403
    assert clients["nobody"].get("/v1/links").status_code == 401
    (seen,) = [link for link in clients["rita"].get("/v1/links").json()["links"] if link["id"] == made["id"]]
    assert (seen["note"], seen["owner"], seen.keys() & {"path", "url", "sha256"}) == ("<b>for Ada</b>", "rita", set())
    assert clients["rob"].get("/v1/links").json() == {"links": []}
    assert clients["rob"].delete(f"/v1/links/{made['id']}").json()["code"] == "unknown_link"
    assert made["id"] in {link["id"] for link in clients["ada"].get("/v1/links").json()["links"]}
    assert clients["ada"].delete(f"/v1/links/{made['id']}").status_code == 204


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"hours": 0}, 422),
        ({"hours": 1e9}, 422),
        ({"note": "two\nlines"}, 422),
        ({"token": "x"}, 422),
        ({"crop": 77}, 404),
    ],
)
def test_links_that_cannot_be_made(site: Site, fields: dict[str, Any], status: int) -> None:
    response = site.clients["ada"].post("/v1/links", json={"split": "instance", "crop": 0} | fields)
    assert response.status_code == status


def test_links_survive_a_restart_and_end_with_their_makers_token(site: Site) -> None:
    kept = site.link("ada")
    site.tokens["tim"] = site.service.create_token("tim", "requester")
    with site.service.client(site.tokens["tim"]) as tim:
        eventually(lambda: tim.get("/v1/links").status_code == 200, "the token is accepted")
        theirs = tim.post("/v1/links", json={"split": "instance", "crop": 0}).json()
    site.service.restart()
    with site.service.client() as nobody:
        for link in (kept, theirs):
            assert nobody.get(f"/{link['path']}/zarr/.zgroup").status_code == 200
        revoke_token(tokens_path(site.service.config), "tim")
        ended = f"/{theirs['path']}/zarr/.zgroup"
        eventually(lambda: nobody.get(ended).status_code == 404, "the link has ended with the token")
        assert nobody.get(f"/{kept['path']}/zarr/.zgroup").status_code == 200


def test_the_command_line_makes_lists_and_revokes_links(site: Site, run: Callable[..., Any]) -> None:
    made = run("link", "instance", "0", "--expires", "12h", "--note", "for Ada")
    assert made.exit_code == 0, made.output
    zarr_line, napari_line, *_ = made.stdout.splitlines()
    url = zarr_line.split()[1]
    assert napari_line == f"napari        napari --plugin napari-ome-zarr {url}"
    assert zarr.open_group(url, mode="r", zarr_format=2)["0"].shape[0] == SPECS[0].channels
    as_json = json.loads(run("links", "make", "instance", "1", "--json").stdout)
    for words in (("links",), ("links", "list")):
        rows = [line.split() for line in run(*words).stdout.splitlines()]
        assert [row[1] for row in rows] == ["crop", "instance/1", "instance/0"]
        assert rows[2][-3:] == ["rita", "for", "Ada"]
    ids = [link["id"] for link in json.loads(run("links", "list", "--json").stdout)["links"]]
    assert ids[0] == as_json["id"]
    assert run("links", "revoke", *ids).exit_code == 0
    assert site.clients["nobody"].get(url + "/.zgroup").status_code == 404
    gone = run("links", "revoke", ids[0])
    assert (gone.exit_code, "error[unknown_link]" in gone.stderr) == (1, True)
    for words in (("--expires", "99999d"), ("--expires", "soon"), ("--note", "two\nlines")):
        assert run("link", "instance", "0", *words).exit_code == 2


def test_view_opens_the_browser(site: Site, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    assert run("view", "instance", "0").exit_code == 0
    assert opened
    assert opened[0].startswith(site.service.url)


def test_no_capability_is_in_a_log_or_a_metric(site: Site) -> None:
    nobody = site.clients["nobody"]
    made = site.link()
    capability = made["path"].rpartition("/")[2]
    secret = capability[-43:]
    for path in (
        f"v1/shared/{capability}/zarr/.zgroup",
        f"v1/%73hared/{capability}/zarr/.zgroup",
        f"v1/shared/x{secret}/zarr/.zgroup",
        f"v1/shared/{capability}/nothing",
        f"nowhere/{capability}",
    ):
        nobody.get(f"/{path}")
    site.clients["ada"].delete(f"/v1/links/{made['id']}")
    metrics = site.clients["ada"].get("/metrics").text
    assert "/v1/shared/{capability}/zarr/{key:path}" in metrics
    assert secret not in metrics
    lines = [json.loads(line) for line in site.service.log.splitlines() if line.startswith("{")]
    audits = [(line["action"], line["by"], line["link"]) for line in lines if line.get("link") == made["id"]]
    assert audits == [("create link", "ada", made["id"]), ("revoke link", "ada", made["id"])]
    assert "/v1/shared/…" in {line.get("path") for line in lines}
    assert secret not in site.service.log


def test_chunks_count_by_bytes_and_not_as_requests(site: Site, tmp_path: Path) -> None:
    limits = {"rate_limit": 5, "zarr_byte_rate": 20_000, "min_free_bytes": 0}
    service = Service(service_config(site.lab.settings(), tmp_path / "state", **limits))
    token = service.create_token("ada", "requester")
    with service, service.client(token) as http, service.client() as nobody:
        path = http.post("/v1/links", json={"split": "instance", "crop": 0}).json()["path"]
        assert {http.get("/v1/crops/instance/0/zarr/.zgroup").status_code for _ in range(40)} == {200}
        began = time.monotonic()
        chunks = [nobody.get(f"/{path}/zarr/0/0.0.0.0") for _ in range(60)]
        allowed = 20_000 * (2 + time.monotonic() - began)  # twice the rate at once
    assert {chunk.status_code for chunk in chunks} == {200, 429}
    sent = sum(len(chunk.content) for chunk in chunks if chunk.status_code == 200)
    assert sent < allowed + len(chunks[0].content)
