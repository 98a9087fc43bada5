"""Two users of one machine share a cache folder of their group, whatever their umask is."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from prismcache import PrismClient
from tests.support.cache_root import Lab, quarantined, tiny_spec, unfinished
from tests.support.labs import running_lab
from tests.support.processes import environment
from tests.support.service import Service, service_config
from tests.support.users import GROUP, User

SPECS = [tiny_spec(0), tiny_spec(1)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may search; `tmp_path` lies in one that pytest keeps closed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def lab(folder: Path) -> Iterator[Lab]:
    """A lab whose cache folder is one of the group: setgid, and writable for the group."""
    with running_lab(folder, SPECS) as lab:
        lab.root.mkdir()
        os.chown(lab.root, -1, GROUP)
        lab.root.chmod(0o2770)
        yield lab


def _run(user: User, lab: Lab, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        user.command("-m", "prismcache", *arguments),
        env=environment(lab.settings(), user.environment | variables),
        cwd=user.home, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_user_finds_and_replaces_what_the_other_made(lab: Lab, folder: Path) -> None:
    ada, bob = User(4001, "022", folder), User(4002, "027", folder)
    _run(ada, lab, "ensure", "instance", "0")
    lab.proxy.clear()
    _run(bob, lab, "ensure", "instance", "0")
    assert not lab.fetched(SPECS[0])
    lab.cached(SPECS[0]).write_bytes(b"damaged")
    _run(bob, lab, "ensure", "instance", "0", "1")
    _run(ada, lab, "ensure", "instance", "0", "1")
    assert {lab.cached(spec).stat().st_uid for spec in SPECS} == {bob.number}
    assert (unfinished(lab.root), len(quarantined(lab.root))) == ([], 1)
    _run(ada, lab, "verify")
    _run(ada, lab, "rm", "instance", "1")
    _run(ada, lab, "clear-quarantine")
    assert not lab.cached(SPECS[1]).exists()
    assert quarantined(lab.root) == []


def test_a_service_and_a_user_share_the_folder(lab: Lab, folder: Path) -> None:
    operator, bob = User(4001, "022", folder), User(4002, "027", folder)
    config = service_config(lab.settings(), operator.home / "state")
    command = operator.command("-m", "prismcache_service.web.server")
    with Service(config, env=operator.environment, command=command) as service:
        made = _run(bob, lab, "ensure", "instance", "0", PRISMCACHE_URL=service.url)
        assert made == f"{lab.cached(SPECS[0])}\n"
        _run(bob, lab, "verify")  # without the service: reads the service's file
        _run(bob, lab, "ensure", "instance", "1")
        lab.proxy.clear()
        with PrismClient(lab.root, url=service.url) as client:
            client.ensure("instance", [0, 1], progress=False)
            assert not lab.fetched(SPECS[1])
            client.remove("instance", 1)
        assert not lab.cached(SPECS[1]).exists()
        assert unfinished(lab.root) == []
