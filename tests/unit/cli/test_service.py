"""Commands for the lab's service: what they print, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from prismcache.cli.app import app
from prismcache.errors import NoSpaceError, SourceUnreachableError
from prismcache.numbers import format_bytes
from prismcache.schema import JobRequest, LeaseRequest, Split
from tests.support.fake_service import FakeService


@pytest.fixture
def service(monkeypatch):
    with FakeService() as running:
        monkeypatch.setenv("PRISMCACHE_URL", running.url)
        yield running


@pytest.fixture
def run() -> Callable[..., Any]:
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def submit(service: FakeService, *crops: int, **options: Any) -> str:
    return service.lab.submit(JobRequest(split=Split.INSTANCE, crops=crops, **options)).id


COMMANDS = [
    ("jobs",),
    ("watch", "x"),
    ("cancel", "x"),
    ("pin", "instance", "0"),
    ("unpin", "instance", "0"),
    ("evict", "instance", "0"),
    ("link", "instance", "0"),
    ("links",),
    ("links", "revoke", "x"),
    ("view", "instance", "0"),
]


@pytest.mark.parametrize("words", COMMANDS)
def test_without_a_service_each_says_so(run, words):
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "error[config_invalid]: no service is set\n  remedy: Set PRISMCACHE_URL" in result.stderr


@pytest.mark.parametrize("words", [("watch", "no-such"), ("cancel", "x y"), ("pin", "instance", "99")])
def test_what_does_not_exist_is_said(service, run, words):
    result = run(*words)
    assert result.exit_code == 1
    assert "error[unknown_" in result.stderr


def test_jobs(service, run):
    service.cache("instance", 0)
    done, open_ = submit(service, 0), submit(service, 1, 2, channels=(0, 2))
    rows = run("jobs").stdout.splitlines()
    assert rows[0].split()[:3] == ["job", "state", "split"]
    assert rows[1].split()[:7] == [open_[:6], "running", "instance", "0", "of", "2", "00,02"]
    assert rows[2].split()[:7] == [done[:6], "done", "instance", "1", "of", "1", "all"]
    found = json.loads(run("jobs", "--json", "--state", "done", "--split", "instance", "--mine").stdout)
    assert [job["id"] for job in found["jobs"]] == [done]


def test_jobs_goes_on_over_pages_up_to_the_limit(service, run):
    service.hold()
    ids = [submit(service, 0, priority=number % 10, strict=number >= 10) for number in range(12)]
    assert len(set(ids)) == 12
    service.forget_jobs()
    assert json.loads(run("jobs", "--json").stdout) == {"jobs": []}
    ids = [submit(service, 0, priority=number % 10, strict=number >= 10) for number in range(12)]
    found = json.loads(run("jobs", "--json", "--limit", "5").stdout)
    assert [job["id"] for job in found["jobs"]] == ids[:-6:-1]
    assert run("jobs", "--limit", "0").exit_code == 2


@pytest.mark.parametrize(("flag", "value"), [("--state", "lost"), ("--split", "Both")])
def test_jobs_of_a_kind_that_does_not_exist(service, run, flag, value):
    result = run("jobs", flag, value)
    assert result.exit_code == 2
    assert value in result.stderr


def test_watch_follows_a_job_to_its_end(service, run):
    job = submit(service, 0, 1)
    result = run("watch", job)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "instance/0: ready in" in result.stderr
    assert result.stderr.endswith(f"{job}: done, 2 of 2 crops\n")


def test_watch_and_cancel_take_the_beginning_of_an_id(service, run):
    done = submit(service, 0)
    assert run("watch", done[:6]).stderr.endswith(f"{done}: done, 1 of 1 crops\n")
    open_ = submit(service, 1)
    assert run("cancel", open_[:8]).stderr == f"{open_}: cancelled\n"


def test_watch_alone_takes_the_latest_job(service, run):
    assert "error[unknown_job]: the service has no jobs" in run("watch").stderr
    submit(service, 0)
    latest = submit(service, 1)
    assert run("watch").stderr.endswith(f"{latest}: done, 1 of 1 crops\n")


def test_watch_as_json_has_a_line_for_each_event(service, run):
    job = submit(service, 0)
    result = run("watch", job, "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["event"] for line in lines] == ["submitted", "job", "crop", "finished", "job"]
    assert lines[-1]["data"]["state"] == "done"
    assert lines[0]["data"]["seq"] == 1


def test_watch_of_a_job_that_fails(service, run):
    service.lab.failing[Split.INSTANCE, 1] = NoSpaceError("full")
    result = run("watch", submit(service, 0, 1))
    assert result.exit_code == 1
    assert "error[no_space]: full\n  remedy:" in result.stderr


def test_cancel(service, run):
    job = submit(service, 0)
    result = run("cancel", job)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"{job}: cancelled\n")
    assert json.loads(run("cancel", job, "--json").stdout)["state"] == "cancelled"


def test_pin_and_unpin(service, run):
    assert run("pin", "instance", "0-1").stdout == "instance/0: pinned\ninstance/1: pinned\n"
    assert service.lab.pins == {(Split.INSTANCE, 0), (Split.INSTANCE, 1)}
    assert json.loads(run("unpin", "instance", 0, "--json").stdout)["crops"][0]["pinned"] is False
    assert service.lab.pins == {(Split.INSTANCE, 1)}


def test_evict(service, run):
    paths = [str(service.cache("instance", crop)) for crop in (0, 1, 2)]
    assert run("evict", "instance", "0").stdout == f"{paths[0]}\n"
    assert [file["path"] for file in json.loads(run("evict", "instance", "all", "--json").stdout)["removed"]] == paths[
        1:
    ]
    assert run("evict", "instance", "0").stdout == ""


def test_evict_of_what_is_in_use_is_refused(service, run):
    service.cache("instance", 0)
    service.lab.lease(LeaseRequest(split=Split.INSTANCE, crops=(0,)))
    result = run("evict", "instance", "0")
    assert result.exit_code == 1
    assert "error[crop_in_use]" in result.stderr


@pytest.mark.parametrize("command", ["pin", "unpin", "evict"])
def test_crops_that_make_no_sense(service, run, command):
    assert run(command, "instance", "5-1").exit_code == 2
    assert run(command, "Both", "0").exit_code == 2


def test_clear_quarantine(service, run):
    result = run("clear-quarantine")
    assert (result.stdout, result.stderr) == ("", "deleted 0 files, 0 B\n")
    assert json.loads(run("clear-quarantine", "--json").stdout) == {"files": 0, "bytes": 0}


def test_status(service, run):
    service.cache("instance", 0)
    submit(service, 1)
    text = run("status").stdout
    assert "jobs        1 running, 0 queued\n" in text
    usage = json.loads(run("status", "--json").stdout)["usage"]
    assert usage["files"] == 1
    assert f"cache       1 file, {format_bytes(usage['used_bytes'])}, no quota\n" in text


def test_status_and_clear_quarantine_without_a_service_are_of_the_cache_folder(run, tmp_path):
    (tmp_path / ".prismcache/quarantine").mkdir(parents=True)
    found = json.loads(run("status", "--root", tmp_path, "--json").stdout)
    assert found["usage"]["files"] == 0
    assert found["engine"] == "local"
    assert run("clear-quarantine", "--root", tmp_path).stderr == "deleted 0 files, 0 B\n"


def test_an_error_of_the_service_is_two_lines(service, run, monkeypatch):
    def fail() -> None:
        raise SourceUnreachableError("the bucket is away")

    monkeypatch.setattr(service.lab, "all_jobs", fail)
    result = run("status")
    assert result.exit_code == 1
    assert result.stderr.startswith("error[source_unreachable]: the bucket is away\n  remedy: ")
