"""No test holds up the whole run: see the hooks in `tests/conftest.py`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
TESTS = """
import time

import pytest


@pytest.fixture
def hangs():
    yield
    time.sleep(60)


def test_that_passes():
    pass


def test_that_fails_and_hangs_in_teardown(hangs):
    assert False


def test_that_swallows_the_timeout():
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass


def test_that_passes_too():
    pass
"""


def test_a_test_that_hangs_is_ended_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    plugins = ["--disable-plugin-autoload", "-pxdist", "-ppytest_timeout", "-ptests.conftest"]
    options = [f"--rootdir={tmp_path}", "-n1", "--dist=loadfile", "-otimeout=1", "-otimeout_func_only=true"]
    command = [sys.executable, "-m", "pytest", *plugins, *options]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"PYTHONPATH": str(REPOSITORY)}

    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)

    assert re.search(r"3 failed, 2 passed", done.stdout), done.stdout  # the call, and two processes
    for name in ("hangs", "test_that_swallows_the_timeout"):
        assert f"in {name}" in done.stderr  # where the process was
    assert done.returncode == 1
