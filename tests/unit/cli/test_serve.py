"""``serve`` and ``token``: what is handed to the service's own functions, and what is printed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import prismcache_service.web.server
from prismcache.cli.app import app
from prismcache_service.config import ServiceConfig


@pytest.fixture
def run(tmp_path, monkeypatch) -> Callable[..., Any]:
    monkeypatch.setenv("PRISMCACHE_STATE_FOLDER", str(tmp_path / "state"))
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def served(monkeypatch) -> list[ServiceConfig]:
    configs: list[ServiceConfig] = []
    monkeypatch.setattr(prismcache_service.web.server, "serve", configs.append)
    return configs


def test_serve_takes_settings_from_options_and_environment(run, served, monkeypatch, tmp_path):
    monkeypatch.setenv("PRISMCACHE_MAX_BYTES", "5GB")
    options = ("--root", tmp_path / "cache", "--port", 0, "--host", "::1", "--log-format", "json", "--insecure")
    result = run("serve", *options, "--min-free-bytes", "1MB", "--advertised-root", "/lab/prism")
    assert (result.exit_code, result.stderr) == (0, "")
    [config] = served
    assert (config.root, config.port, config.host, config.max_bytes) == (tmp_path / "cache", 0, "::1", 5_000_000_000)
    assert (config.insecure, config.log_format, config.min_free_bytes) == (True, "json", 1_000_000)
    assert config.advertised_root == Path("/lab/prism")


def test_serve_without_options(run, served):
    assert run("serve").exit_code == 0
    assert served == [ServiceConfig.load()]


def test_every_option_of_serve_is_a_setting_of_the_service(run):
    from prismcache.cli.options import SERVE_OPTIONS, TOKEN_OPTIONS

    assert (SERVE_OPTIONS.keys() | TOKEN_OPTIONS.keys()) <= ServiceConfig.model_fields.keys()


def test_a_setting_that_makes_no_sense_is_named(run, served):
    result = run("serve", "--port", 99_999)
    assert result.exit_code == 2
    assert "error[config_invalid]: setting 'port' is unusable" in result.stderr
    assert served == []


def test_a_token_is_made_listed_and_revoked(run):
    made = run("token", "create", "anna")
    assert re.fullmatch(r"prism_\S{40,}\n", made.stdout)
    assert "it is not shown again\na running service notices this within 2 s" in made.stderr
    other = json.loads(run("token", "create", "bert", "--role", "admin", "--json").stdout)
    assert (other["name"], other["role"]) == ("bert", "admin")
    listed = run("token", "list")
    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [["anna", "requester"], ["bert", "admin"]]
    assert other["token"] not in listed.stdout
    assert run("token", "revoke", "anna").stdout == ""
    assert json.loads(run("token", "revoke", "bert", "--json").stdout) == {"revoked": "bert"}
    assert json.loads(run("token", "list", "--json").stdout) == {"tokens": []}


def test_a_token_comes_with_the_public_url(run, monkeypatch):
    monkeypatch.setenv("PRISMCACHE_PUBLIC_URL", "https://lab.example/prism/")
    assert "PRISMCACHE_URL to https://lab.example/prism;" in run("token", "create", "anna").stderr
    assert json.loads(run("token", "create", "bert", "--json").stdout)["url"] == "https://lab.example/prism"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--public-url", "lab.example", "write scheme, host and path"),
        ("--public-url", "https://lab.example/?a=1", "write scheme, host and path"),
        ("--trusted-proxies", "proxy.lab", "write addresses or networks"),
        ("--tls-key", "key.pem", "tls_key needs PRISMCACHE_TLS_CERT"),
    ],
)
def test_what_cannot_be_a_url_proxies_or_a_certificate_is_refused(run, served, option, value, words):
    result = run("serve", option, value)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert served == []


def test_tokens_may_lie_elsewhere(run, tmp_path):
    run("token", "create", "anna", "--tokens-file", tmp_path / "mine.json")
    assert "anna" in (tmp_path / "mine.json").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("create", "anna", "--expires", "soon"),
        ("create", "a b"),
        ("create", "anna", "--role", "king"),
        ("revoke", "nobody"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_said(run, words):
    result = run("token", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.match(r"error\[(config_invalid|invalid_request)\]", result.stderr)
    assert "remedy: " in result.stderr
