"""The profile `monitoring` of docker/compose.yaml: Prometheus reads the running service and knows the alert rules.

In an image of Debian's Prometheus, laid out as the published one, which needs a registry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.compose import Stack, free_port
from tests.support.docker_engine import REPOSITORY, Engine
from tests.support.processes import eventually

pytestmark = [pytest.mark.compose, pytest.mark.timeout(300)]

MONITORING = REPOSITORY / "docker" / "monitoring"
IMAGE = "prismcache-prometheus:test"
DOCKERFILE = """
ARG BASE_IMAGE=python:3.13-slim
FROM ${BASE_IMAGE}
RUN cd /tmp && apt-get update -qq && apt-get -o APT::Sandbox::User=root download -qq prometheus \\
 && dpkg-deb --extract prometheus_*.deb . && mv usr/bin/prometheus /bin/ && rm -rf /tmp/* \\
 && install -d -o nobody -g nogroup /prometheus
USER nobody
WORKDIR /prometheus
ENTRYPOINT ["/bin/prometheus"]
"""


@pytest.fixture(scope="module")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "Dockerfile").write_text(DOCKERFILE)
    base = [] if engine.base_image is None else ["--build-arg", f"BASE_IMAGE={engine.base_image}"]
    engine.docker("build", "--network", "host", *base, "--tag", IMAGE, str(folder))
    return IMAGE


@pytest.fixture
def watched(engine: Engine, image: str, tmp_path: Path) -> Iterator[tuple[Stack, str]]:
    """A service that Prometheus watches, and where that is published."""
    port, token = free_port(), tmp_path / "token"
    settings = {
        "COMPOSE_PROFILES": "demo,monitoring", "PRISM_PROMETHEUS_IMAGE": image, "PRISM_PROMETHEUS_PORT": str(port),
        "PRISM_PROMETHEUS_TOKEN": str(token),
    }  # fmt: skip
    with Stack(engine, tmp_path, settings, ("s3", "prismcache", "prometheus")) as stack:
        token.write_text(stack.create_token("prometheus", "reader") + "\n")
        stack.start()
        yield stack, f"http://127.0.0.1:{port}/api/v1"


def test_prometheus_reads_the_service_and_can_write_nothing_but_its_figures(watched: tuple[Stack, str]) -> None:
    stack, api = watched

    def ask(path: str, **query: str) -> Any:
        return httpx2.get(f"{api}/{path}", params=query, trust_env=False).raise_for_status().json()["data"]

    def shown(expression: str) -> list[str]:
        return [found["value"][1] for found in ask("query", query=expression)["result"]]

    def reads() -> bool:
        try:
            return shown("up") == ["1"]
        except httpx2.TransportError:
            return False

    eventually(reads, "the service is read with the token", deadline=60)
    rules = {rule["name"]: rule["health"] for group in ask("rules")["groups"] for rule in group["rules"]}
    assert rules.keys() == set(re.findall(r"alert: (\w+)", (MONITORING / "alerts.yml").read_text()))
    dashboard = json.loads((MONITORING / "grafana" / "dashboards" / "prismcache.json").read_text())
    stats = [panel["targets"][0]["expr"] for panel in dashboard["panels"] if panel["type"] == "stat"]
    assert [len(shown(expression)) for expression in stats] == [1] * len(stats)
    container = stack.container("prometheus")
    assert stack.writable(container) == {"/prometheus"}
    assert stack.inspect(container, "{{.Config.User}} {{.HostConfig.CapDrop}}") == "nobody [ALL]"
