"""``prismcache doctor``: each check's verdict and remedy, and the command on real folders and a real service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prismcache.cli.app import app
from prismcache.cli.checks import (
    Finding,
    Verdict,
    check_clock,
    check_locks,
    check_mount,
    check_root,
    check_umask,
    check_versions,
)
from prismcache.schema import CropFile, Split
from tests.support.fake_service import FakeService
from tests.support.s3 import S3Server

HERE = Path("/lab/prism")


@pytest.fixture
def run() -> Callable[..., Any]:
    return lambda *words: CliRunner().invoke(app, ["doctor", *(str(word) for word in words)])


def verdicts(result: Any) -> dict[str, str]:
    return {check["check"]: check["verdict"] for check in json.loads(result.stdout)["checks"]}


@pytest.mark.parametrize(
    ("finding", "verdict", "detail"),
    [
        (check_root(HERE, None, 5 * 10**12), Verdict.OK, "/lab/prism, 5.0 TB free"),
        (check_root(HERE, None, 10**8), Verdict.WARNING, "100 MB free"),
        (check_root(HERE, "/lab cannot be written", 10**12), Verdict.FAILED, "/lab cannot be written"),
        (check_umask(0o700, 0o077), Verdict.OK, "0077, the root is yours"),
        (check_umask(0o2775, 0o002), Verdict.OK, "shared with its group"),
        (check_umask(0o2775, 0o027), Verdict.WARNING, "0027, but the root is shared with its group"),
        (check_locks(HERE, True, 0.002, 0.1), Verdict.OK, "2 ms"),
        (check_locks(HERE, False, 0.002, 0), Verdict.FAILED, "two processes can create the same file"),
        (check_locks(HERE, True, 3.0, 0), Verdict.WARNING, "one file took 3.0 s"),
        (check_locks(HERE, True, 0.1, -7200), Verdict.WARNING, "clock is -7200 s from"),
        (check_clock("S3", None), Verdict.SKIPPED, "did not send its time"),
        (check_clock("S3", 1.2), Verdict.OK, "+1 s"),
        (check_clock("S3", -900), Verdict.WARNING, "-900 s"),
        (check_mount(None, None), Verdict.SKIPPED, "crops are downloaded"),
        (check_mount(HERE, None), Verdict.SKIPPED, "no crop yet"),
        (check_versions("1.0", None, has_service_extra=False), Verdict.OK, "without the extra service"),
        (check_versions("1.0", "1.0", has_service_extra=True), Verdict.OK, "prismcache 1.0"),
        (check_versions("1.0", "1.1", has_service_extra=True), Verdict.WARNING, "the service is 1.1"),
    ],
)
def test_each_check_has_a_verdict_and_a_remedy_unless_all_is_well(finding: Finding, verdict, detail) -> None:
    assert finding.verdict is verdict
    assert detail in finding.detail
    assert bool(finding.remedy) is (verdict in {Verdict.WARNING, Verdict.FAILED})


def test_a_mount_shows_the_services_files_or_fails(tmp_path: Path) -> None:
    file = CropFile(
        split=Split.INSTANCE, crop=0, channels=(0,), path="/srv/prism/instance/crop_0.h5", size=3, sha256="0" * 64
    )
    assert check_mount(tmp_path, file).verdict is Verdict.FAILED
    (tmp_path / "instance").mkdir()
    (tmp_path / "instance/crop_0.h5").write_bytes(b"abc")
    assert check_mount(tmp_path, file).verdict is Verdict.OK


def test_a_healthy_folder_and_bucket_pass(run, s3_server: S3Server, tmp_path: Path) -> None:
    result = run("--root", tmp_path, "--s3-endpoint-url", s3_server.endpoint, "--json")
    found = verdicts(result)
    assert result.exit_code == 0
    assert (found["locks"], found["bucket"], found["versions"]) == ("ok", "ok", "ok")
    assert list(tmp_path.glob("*doctor*")) == []


def test_a_bucket_that_cannot_be_reached_exits_1_with_the_reason_and_a_remedy(run, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("prismcache.cli.checks._ASK_S", 1.0)
    result = run("--root", tmp_path, "--s3-endpoint-url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "failed   bucket    e11bio-prism at http://127.0.0.1:9: " in result.stdout
    assert "onnect" in result.stdout.split("127.0.0.1:9: ")[1], "refused, not merely slow"
    assert "remedy: Check the network" in result.stdout


def test_a_service_is_asked_for_its_time_token_mount_and_version(run, monkeypatch, tmp_path: Path) -> None:
    with FakeService() as service:
        monkeypatch.setenv("PRISMCACHE_URL", service.url)
        service.cache("instance", 0)
        found = verdicts(run("--json"))
        assert (found["service"], found["mount"]) == ("ok", "skipped")
        monkeypatch.setenv("PRISMCACHE_ROOT", str(tmp_path))
        result = run("--json")
        assert (result.exit_code, verdicts(result)["mount"]) == (1, "failed")
