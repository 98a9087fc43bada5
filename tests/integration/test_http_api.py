"""The HTTP API of a real service: jobs and how to follow them, crops, pins, leases, verification, state."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import httpx2
import pytest

from prismcache.schema import Job, JobEvent, Problem, ServiceStatus, State
from tests.support.cache_root import tiny_spec
from tests.support.fault_actions import Stall
from tests.support.processes import eventually
from tests.support.site import Site, running_site

CACHED, HELD, SEMANTIC = tiny_spec(0), tiny_spec(1), tiny_spec(0, "semantic")
UNKNOWN_ID = "0" * 32
CHUNK = re.compile(r"instance/crop_1\.zarr/labels/\d")


@pytest.fixture(scope="module")
def module_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A lab with its service. Crop 0 is cached from the start."""
    with running_site(tmp_path_factory.mktemp("api"), [CACHED, HELD, SEMANTIC]) as site:
        site.ensure()
        yield site


def refusal(site: Site, method: str, path: str, **options: Any) -> tuple[int, str]:
    """Status and code of a request that is refused."""
    response = site.http.request(method, path, **options)
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, Problem.model_validate(response.json()).code


@pytest.fixture
def site(module_site: Site) -> Iterator[Site]:
    yield module_site
    for page in module_site.http.get("/v1/jobs", params={"state": ["queued", "running"]}).json()["jobs"]:
        module_site.http.delete(f"/v1/jobs/{page['id']}")
    module_site.lab.proxy.clear()


@pytest.fixture
def held(site: Site) -> Iterator[Stall]:
    """Crop 1 is not cached, and its job gets no further than its first chunk until the stall is released."""
    site.http.delete("/v1/crops/instance/1")
    stall = Stall()
    site.lab.proxy.add(stall, CHUNK)
    yield stall
    stall.release()


def test_a_job_for_cached_crops_is_final_at_once(site: Site) -> None:
    response = site.http.post("/v1/jobs", json={"split": "instance", "crops": [0]})

    job = Job.model_validate(response.json())
    assert (response.status_code, job.state) == (200, State.DONE)
    assert job.crops[0].file is not None
    assert Path(job.crops[0].file.path) == site.lab.cached(CACHED)


def test_a_job_is_accepted_followed_and_finished(site: Site, held: Stall) -> None:
    response = site.http.post("/v1/jobs", json={"split": "instance", "crops": [1, 0]})
    job = Job.model_validate(response.json())
    assert (response.status_code, response.headers["location"]) == (202, f"jobs/{job.id}")
    assert [crop.crop for crop in job.crops] == [1, 0]

    held.release()

    done = site.finish(job)
    assert done.state is State.DONE
    assert done.revision > job.revision
    assert site.lab.cached(HELD).is_file()


def test_the_same_request_while_it_is_active_is_the_same_job(site: Site, held: Stall) -> None:
    assert site.submit(crops=[1]).id == site.submit(crops=[1]).id
    assert site.http.get("/v1/crops/instance/1").json()["state"] == "making"
    assert site.submit(crops=[1, 0]).id != site.submit(crops=[1]).id


def test_a_long_poll_waits_for_a_change_and_no_longer_than_asked(site: Site, held: Stall) -> None:
    job = site.submit(crops=[1])
    site.lab.proxy.wait_until(lambda proxy: any(CHUNK.search(seen.key) for seen in proxy.requests))

    began = time.monotonic()
    while True:  # other objects than the one that is held may still arrive
        known = site.http.get(f"/v1/jobs/{job.id}").json()["revision"]
        asked = time.monotonic()
        same = site.http.get(f"/v1/jobs/{job.id}", params={"wait": 0.3, "revision": known})
        if same.json()["revision"] == known:
            break
    assert 0.3 <= time.monotonic() - asked < 5

    threading.Timer(0.2, held.release).start()
    newer = site.http.get(f"/v1/jobs/{job.id}", params={"wait": 30})
    assert newer.json()["revision"] > known
    assert time.monotonic() - began < 40


def test_cancelling_stops_a_job_and_leaves_nothing(site: Site, held: Stall) -> None:
    job = site.submit(crops=[1])

    assert site.http.delete(f"/v1/jobs/{job.id}").json()["state"] == "cancelled"
    assert site.http.delete(f"/v1/jobs/{job.id}").json()["state"] == "cancelled"
    assert not site.lab.cached(HELD).exists()


def test_jobs_are_listed_by_state_split_and_page(site: Site) -> None:
    for crops in ([0, 7], [0, 8], [0, 9]):
        assert site.finish(site.submit(crops=crops)).state is State.FAILED

    def ids(**params: Any) -> list[str]:
        return [job["id"] for job in site.http.get("/v1/jobs", params=params).raise_for_status().json()["jobs"]]

    failed = ids(state="failed", split="instance", owner="me")
    assert len(failed) >= 3
    assert ids(state="failed", split="semantic") == []
    page = site.http.get("/v1/jobs", params={"state": "failed", "limit": 2}).json()
    assert [job["id"] for job in page["jobs"]] == failed[:2]
    assert ids(state="failed", cursor=page["next_cursor"]) == failed[2:]
    assert set(failed) <= set(ids(state=["failed", "done"]))


class Stream:
    """Server-sent events as they come: (id or None, kind, data)."""

    def __init__(self, site: Site, job_id: str, **headers: str) -> None:
        with site.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
            self.headers = response.headers
            text = "".join(response.iter_text()).replace("\r\n", "\n")
        self.events = [self._parse(block) for block in text.split("\n\n") if block and not block.startswith(":")]

    @staticmethod
    def _parse(block: str) -> tuple[int | None, str, Any]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        return int(fields["id"]) if "id" in fields else None, fields["event"], json.loads(fields["data"])

    @property
    def recorded(self) -> list[JobEvent]:
        return [JobEvent.model_validate(data) for seq, _, data in self.events if seq is not None]


def test_events_tell_a_job_s_way_to_its_end(site: Site, held: Stall) -> None:
    job = site.submit(crops=[1])
    threading.Timer(0.3, held.release).start()

    stream = Stream(site, job.id)

    assert stream.headers["content-type"].startswith("text/event-stream")
    kinds = [event.kind for event in stream.recorded]
    assert (kinds[0], kinds[-2:]) == ("submitted", ["crop", "finished"])
    assert [seq for seq, _, _ in stream.events if seq is not None] == sorted({e.seq for e in stream.recorded})
    snapshots = [Job.model_validate(data) for seq, kind, data in stream.events if kind == "job"]
    assert snapshots[-1].state is State.DONE
    assert all(seq is None for seq, kind, _ in stream.events if kind == "job")
    for n, event in enumerate(stream.recorded):
        assert Stream(site, job.id, **{"Last-Event-ID": str(event.seq)}).recorded == stream.recorded[n + 1 :]


def test_a_client_that_leaves_a_stream_or_a_poll_stops_nothing(site: Site, held: Stall) -> None:
    job = site.submit(crops=[1])
    for path in (f"/v1/jobs/{job.id}/events", f"/v1/jobs/{job.id}?wait=60"):
        with pytest.raises(httpx2.TimeoutException), site.service.client(timeout=0.3) as impatient:
            impatient.get(path)

    held.release()

    assert site.finish(job).state is State.DONE


def test_what_is_unknown_is_said_to_be(site: Site) -> None:
    for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
        assert refusal(site, method, f"/v1/jobs/{UNKNOWN_ID}{path}") == (404, "unknown_job")
    assert refusal(site, "GET", "/v1/crops/instance/77") == (404, "unknown_crop")
    assert refusal(site, "GET", "/v1/crops/instance/77/file") == (404, "not_cached")
    assert refusal(site, "PUT", "/v1/crops/instance/77/pin") == (404, "unknown_crop")
    assert refusal(site, "PUT", f"/v1/leases/{UNKNOWN_ID}") == (404, "unknown_lease")
    assert refusal(site, "GET", "/v1/crops/indoor") == (422, "unknown_split")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"split"', b'{"split": "instance", "crops": [1.5]}', b"[" * 60_000,
        b'{"split": "instance", "priority": NaN}', b'{"split": "instance", "priority": 1e999}',
        b'{"split": "instance", "crops": [' + b"9" * 50_000 + b"]}", b'{"split": "instance", "crops": [true]}',
        b'{"split": "instance", "\\ud800": 1}', b"\xff\xfe\x00", b'{"split": "instance", "crops": ["0"]}',
    ],
    ids=lambda body: repr(body[:40]),
)  # fmt: skip
def test_bodies_that_are_no_request_are_refused(site: Site, body: bytes) -> None:
    status, code = refusal(site, "POST", "/v1/jobs", content=body, headers={"Content-Type": "application/json"})

    assert (status in {400, 422}, code) == (True, "invalid_request")


def test_a_body_of_another_type_is_refused_with_advice(site: Site) -> None:
    response = site.http.post("/v1/jobs", content=b'{"split": "instance"}', headers={"Content-Type": "text/plain"})

    assert response.status_code == 422
    assert "application/json" in response.json()["remedy"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs?wiat=3", "/v1/jobs?limit=0", "/v1/jobs?limit=+1", "/v1/jobs?limit=1_0", "/v1/jobs?cursor=x",
        f"/v1/jobs/{UNKNOWN_ID}?wait=61", f"/v1/jobs/{UNKNOWN_ID}?wait=nan", f"/v1/jobs/{UNKNOWN_ID}?wait=-1",
        "/v1/crops/instance/-1", "/v1/crops/instance/01", "/v1/crops/instance/1.0", "/v1/crops/instance/1000000",
        "/v1/crops/instance/%D9%A3", "/v1/crops/instance/true", "/v1/crops/instance/0/file?channels=",
        "/v1/crops/instance/0/file?channels=2-1", "/v1/crops?refresh=perhaps", "/v1/jobs/..",
    ],
)  # fmt: skip
def test_parameters_that_make_no_sense_are_refused(site: Site, path: str) -> None:
    status, code = refusal(site, "GET", path)

    assert (status in {404, 422}, code) == (True, "invalid_request")


def test_the_catalog_shows_what_is_published_and_what_is_cached(site: Site) -> None:
    crops = site.http.get("/v1/crops", params={"refresh": True}).json()["crops"]
    assert [(crop["split"], crop["crop"]) for crop in crops] == [("instance", 0), ("instance", 1), ("semantic", 0)]

    crop = site.http.get("/v1/crops/instance/0").json()
    assert crop["raw_shape"] == [3, 20, 48, 48]
    assert crop["files"][0]["path"] == str(site.lab.cached(CACHED))
    assert crop["last_used_at"] is not None
    assert (crop["state"], crop["raw_dtype"], crop["labels_dtype"]) == ("cached", "uint8", "uint32")
    with h5py.File(site.lab.cached(CACHED)) as file:
        assert crop["files"][0]["source_fingerprint"] == file.attrs["source_fingerprint"]
        assert (file["raw/ch_00"].dtype, file["labels"].dtype) == (crop["raw_dtype"], crop["labels_dtype"])
    assert [crop["split"] for crop in site.http.get("/v1/crops/semantic").json()["crops"]] == ["semantic"]


def test_a_pinned_crop_stays_until_it_is_unpinned(site: Site) -> None:
    assert site.http.put("/v1/crops/instance/0/pin").json()["pinned"] is True
    assert site.http.put("/v1/crops/instance/0/pin").json()["pinned"] is True
    assert refusal(site, "DELETE", "/v1/crops/instance/0") == (409, "crop_in_use")

    assert site.http.delete("/v1/crops/instance/0/pin").json()["pinned"] is False

    removed = site.http.delete("/v1/crops/instance/0").json()["files"]
    assert [file["crop"] for file in removed] == [0]
    assert not site.lab.cached(CACHED).exists()
    assert site.http.delete("/v1/crops/instance/0").json()["files"] == []
    assert site.finish(site.submit(crops=[0])).state is State.DONE


def test_a_leased_crop_stays_until_it_is_released(site: Site) -> None:
    response = site.http.post("/v1/leases", json={"split": "instance", "crops": [0]})
    path = f"/v1/{response.headers['location']}"  # relative to /v1/leases
    assert (response.status_code, path) == (201, f"/v1/leases/{response.json()['id']}")
    assert site.http.put(path).json() == response.json()
    assert site.http.get("/v1/crops/instance/0").json()["leases"] == 1
    assert refusal(site, "DELETE", "/v1/crops/instance/0") == (409, "crop_in_use")

    released = site.http.delete(path)

    assert (released.status_code, released.content) == (204, b"")
    assert refusal(site, "PUT", path) == (404, "unknown_lease")
    assert site.http.get("/v1/crops/instance/0").json()["leases"] == 0


def test_verify_finds_and_mends_what_is_wrong(site: Site) -> None:
    path = site.lab.cached(CACHED)
    right = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))

    def verdicts(**body: Any) -> list[str]:
        response = site.http.post("/v1/verify", json={"split": "instance", "crops": [0]} | body)
        return [result["verdict"] for result in response.raise_for_status().json()["results"]]

    assert verdicts() == ["corrupt"]
    assert verdicts(repair=True) == ["repaired"]
    assert verdicts() == ["ok"]
    assert path.read_bytes() == right

    usage = site.http.get("/v1/status").json()["usage"]
    assert (usage["quarantine_files"], usage["quarantine_bytes"]) == (1, len(right))
    assert f'prismcache_cache_bytes{{kind="quarantine"}} {float(len(right))}' in site.http.get("/metrics").text
    assert site.http.delete("/v1/quarantine").json() == {"files": 1, "bytes": len(right)}
    assert site.http.delete("/v1/quarantine").json() == {"files": 0, "bytes": 0}


def test_status_health_and_readiness(site: Site) -> None:
    status = ServiceStatus.model_validate(site.http.get("/v1/status").json())
    assert (status.engine, status.workers) == ("local", 1)
    assert status.usage.used_bytes > 0

    assert site.http.get("/healthz").json() == {"status": "ok"}
    assert site.http.head("/healthz").status_code == 200
    ready = site.http.get("/readyz")
    assert (ready.status_code, ready.json()["ready"], set(ready.json()["checks"].values())) == (200, True, {"ok"})


def test_metrics_name_routes_and_not_paths(site: Site) -> None:
    site.http.get("/v1/crops/instance/77")
    assert site.submit(crops=[0]).state is State.DONE  # a hit

    text = site.http.get("/metrics").text

    assert 'handler="/v1/crops/{split}/{crop}",method="GET",status="404"' in text
    assert 'prismcache_http_problems_total{code="unknown_crop"}' in text
    assert "instance/77" not in text
    for name in (
        'prismcache_cache_bytes{kind="used"}', "prismcache_crop_hits_total", "prismcache_crop_misses_total",
        "prismcache_fetched_bytes_total", 'prismcache_task_duration_seconds_count{outcome="done"}',
    ):  # fmt: skip
        line = next(line for line in text.splitlines() if line.startswith(name + " "))
        assert float(line.split()[1]) > 0, line


def test_the_documents_are_complete_and_need_no_other_machine(site: Site) -> None:
    document = site.http.get("/openapi.json").json()
    page = site.http.get("/docs").text

    assert "<script" not in page
    assert "http://" not in page.replace("http://127.0.0.1", "")
    for path, methods in document["paths"].items():
        assert path in page
        for operation in methods.values():
            assert operation["summary"]
    for name in ("Problem", "Job", "JobEvent", "CropInfo"):
        assert name in document["components"]["schemas"]


def test_every_response_has_an_id_that_the_log_has_too(site: Site) -> None:
    response = site.http.get("/v1/jobs", headers={"X-Request-ID": "from-a-proxy"})

    assert response.headers["x-request-id"] == "from-a-proxy"
    eventually(lambda: "from-a-proxy" in site.service.log, "the request is in the log")
