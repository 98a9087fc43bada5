"""Prometheus's and Grafana's files: checked by promtool, and against the figures that the service really shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from prismcache.errors import error_classes
from prismcache.schema import ServiceStatus, Usage
from prismcache_service.web.metrics import Metrics

FOLDER = Path(__file__).parents[3] / "docker" / "monitoring"
DASHBOARD = FOLDER / "grafana" / "dashboards" / "prismcache.json"
SOURCE = FOLDER / "grafana" / "provisioning" / "datasources" / "prometheus.yaml"
# Shown by the instrumentator, once there was a request.
HTTP = {"prismcache_http_requests_total", "prismcache_http_request_duration_seconds_bucket"}


def promtool(folder: Path, *arguments: str) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool: `sh .ci/install-promtool` as root on Debian, or install Prometheus")
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def panels() -> Iterator[dict[str, object]]:
    yield from json.loads(DASHBOARD.read_text())["panels"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = shutil.copytree(FOLDER, tmp_path / "monitoring")
    (copy / "token").write_text("prism_of-a-reader")
    return copy


def test_promtool_accepts_the_configuration_with_its_rules_and_token(folder: Path) -> None:
    assert "9 rules found" in promtool(folder, "check", "config", "prometheus.yml")


def test_each_alert_fires_when_it_should_and_only_then(folder: Path) -> None:
    assert "SUCCESS" in promtool(folder, "test", "rules", "alerts.test.yml")


def test_every_alert_is_tested() -> None:
    alerts = set(re.findall(r"alert: (\w+)", (FOLDER / "alerts.yml").read_text()))
    healthy, *failing = (FOLDER / "alerts.test.yml").read_text().split("- name: ")[1:]
    assert alerts == set(re.findall(r"alertname: (\w+)", healthy))
    assert {name for name in alerts if name not in "".join(failing)} == set()


def test_promtool_can_read_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())]
    (tmp_path / "dashboard.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool(tmp_path, "check", "rules", "dashboard.yml")


def test_rules_and_panels_name_figures_that_the_service_shows() -> None:
    figures = Metrics()
    figures.task_ended(1.0)
    usage = Usage(
        used_bytes=1, reserved_bytes=0, files=1, max_bytes=None, min_free_bytes=0, free_bytes=1, total_bytes=2
    )
    counts = dict.fromkeys(("workers", "jobs_queued", "jobs_running", "crops_queued", "crops_running"), 0)
    text = figures.expose(ServiceStatus(version="1", engine="local", usage=usage, **counts)).decode()
    shown = set(re.findall(r"^(prismcache_\w+)", text, re.MULTILINE)) | HTTP
    asked = set(re.findall(r"\bprismcache_\w+", (FOLDER / "alerts.yml").read_text() + "\n".join(expressions())))
    assert len(asked) > 12
    assert asked <= shown


def test_alerts_name_error_codes_that_exist_and_count_from_the_first() -> None:
    patterns = re.findall(r'code=~?"([^"]+)"', (FOLDER / "alerts.yml").read_text())
    for alternative in "|".join(patterns).split("|"):
        assert any(re.fullmatch(alternative, code) for code in error_classes()), alternative
    figures = Metrics()
    assert figures.registry.get_sample_value("prismcache_errors_total", {"code": "no_space"}) == 0


def test_the_dashboard_asks_the_source_that_is_provisioned() -> None:
    uid = re.findall(r"uid: (\w+)", SOURCE.read_text())
    assert [panel["datasource"]["uid"] for panel in panels()] == uid * len(list(panels()))
    assert len({panel["id"] for panel in panels()}) == len(list(panels()))
