"""The curl examples in docs/http-api.md run as they stand."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from prismcache.config import Settings
from tests.support.s3 import S3Server
from tests.support.service import Service, service_config

DOCUMENT = Path(__file__).parents[2] / "docs" / "http-api.md"


def shell_lines() -> list[str]:
    """Return the lines of the document's first curl block, without their prompts."""
    blocks = re.findall(r"```console\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    block = next(block for block in blocks if "curl" in block)
    return [line.removeprefix("$ ") for line in block.splitlines()]


@pytest.fixture
def service(s3_server: S3Server, tmp_path: Path) -> Service:
    settings = Settings.load({}, root=tmp_path / "cache", s3_endpoint_url=s3_server.endpoint)
    return Service(service_config(settings, tmp_path / "state"))


def test_the_curl_examples_run_as_they_stand(service: Service, tmp_path: Path) -> None:
    token = service.create_token("ada", "requester")
    with service:
        variables = os.environ | {"PRISMCACHE_URL": service.url, "PRISMCACHE_TOKEN": token}
        script = "\n".join(["set -eu", *(f"{line}\necho; echo ---" for line in shell_lines())])
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True, timeout=60
        )
        crops, _, _, job, events, _ = [part.strip() for part in done.stdout.split("---\n")[:6]]
    assert json.loads((tmp_path / "job.json").read_text())["state"] in {"queued", "running"}
    assert 0 in [info["crop"] for info in json.loads(crops)["crops"]]
    assert json.loads(job)["crops"][0]["crop"] == 0
    assert "event: finished" in events
    made = tmp_path / "cache" / "instance" / "crop_0.h5"
    assert hashlib.sha256((tmp_path / "crop_0.h5").read_bytes()).digest() == hashlib.sha256(made.read_bytes()).digest()
    assert (tmp_path / "crop_0.png").read_bytes().startswith(b"\x89PNG")
