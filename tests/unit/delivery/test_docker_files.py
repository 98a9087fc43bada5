"""docker/compose.yaml, its example of settings and the Dockerfile agree with each other and with the package."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from prismcache_service.config import ServiceConfig

REPOSITORY = Path(__file__).parents[3]
COMPOSE = (REPOSITORY / "docker" / "compose.yaml").read_text()
EXAMPLE = (REPOSITORY / "docker" / ".env.example").read_text()
DOCKERFILE = (REPOSITORY / "docker" / "Dockerfile").read_text()
# Read by compose itself.
OF_COMPOSE = {"COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES"}


def test_image_and_tags_carry_the_packages_version() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert re.findall(r"^ARG VERSION=(.+)$", DOCKERFILE, re.MULTILINE) == [version]
    assert set(re.findall(r"prismcache(?:-demo)?:([\d.]+)", COMPOSE)) == {version}


def test_every_setting_of_the_example_is_used() -> None:
    passed_on = set(re.findall(r"^ +([A-Z_]+):$", COMPOSE, re.MULTILINE))
    used = set(re.findall(r"\$\{(\w+)", COMPOSE)) | passed_on | OF_COMPOSE
    assert set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", EXAMPLE, re.MULTILINE)) <= used


def test_what_is_handed_to_the_service_are_settings_of_it() -> None:
    handed = set(re.findall(r"^ +PRISMCACHE_(\w+): ", COMPOSE, re.MULTILINE))
    assert len(handed) > 10
    assert {name.lower() for name in handed} <= set(ServiceConfig.model_fields)


def test_what_reaches_a_bucket_elsewhere_reaches_the_containers_that_fetch() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    network = {f"{scheme}_PROXY" for scheme in ("HTTP", "HTTPS", "NO")}
    network |= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE", "SSL_CERT_FILE"}
    for name in ("prismcache", "worker"):
        given = services[name]["environment"]
        assert {key for key, value in given.items() if value is None} == network
        assert "/certificates" in [v["target"] for v in services[name]["volumes"] if isinstance(v, dict)]
    of_s3 = {f"PRISMCACHE_{name.upper()}" for name in ServiceConfig.model_fields if name.startswith("s3_")}
    assert of_s3 <= services["prismcache"]["environment"].keys()  # workers receive settings from the service


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, ""),
        ({"PRISMCACHE_TOKEN": "t"}, "http://prismcache:8765"),
        ({"PRISMCACHE_TOKEN": "t", "PRISMCACHE_PUBLIC_URL": "https://lab/prism"}, "https://lab/prism"),
        ({"PRISMCACHE_TOKEN": "t", "PRISMCACHE_URL": "http://other"}, "http://other"),
    ],
)
def test_a_command_in_the_container_knows_its_service_once_it_has_a_token(given: dict[str, str], url: str) -> None:
    shown = ["sh", "docker/entrypoint", "sh", "-c", 'umask; echo "$PRISMCACHE_URL"']
    said = subprocess.run(
        shown, check=True, cwd=REPOSITORY, env={"PATH": "/bin:/usr/bin"} | given, text=True, capture_output=True
    )
    assert said.stdout.split() == ["0002", *([url] if url else [])]
    assert "exec /opt/entrypoint " in (REPOSITORY / "docker" / "prismcache").read_text()  # for `compose exec`
    assert "COPY docker/prismcache /opt/commands/" in DOCKERFILE
    assert "PATH=/opt/commands:" in DOCKERFILE
