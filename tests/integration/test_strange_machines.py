"""The command line and a script on machines that lack what most have: a home folder, a terminal, UTF-8, a `main`."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.s3 import S3Server
from tests.support.users import User

REPOSITORY = Path(__file__).parents[2]
NOBODY = 54_321
"""A user id without a name, a home folder or anything else."""
XDG = dict.fromkeys([f"XDG_{name}_HOME" for name in ("CACHE", "CONFIG", "DATA", "STATE")])
NO_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
Changes = Mapping[str, str | None]


@pytest.fixture
def lab(s3_server: S3Server, tmp_path: Path) -> dict[str, str | None]:
    return {"PRISMCACHE_S3_ENDPOINT_URL": s3_server.endpoint, "PRISMCACHE_ROOT": str(tmp_path / "root")}


def run(*command: str, changes: Changes, shell: str = 'exec "$@"', **options: object) -> tuple[int, str, str]:
    """Run Python with a changed environment (None unsets a variable) from a shell line; exit code, stdout, stderr."""
    environment = {name: value for name, value in {**os.environ, **changes}.items() if value is not None}
    done = subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, *command],
        env=environment, capture_output=True, timeout=60, check=False, **options,
    )  # fmt: skip
    out, err = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    assert "Traceback" not in out + err
    return done.returncode, out, err


@pytest.mark.parametrize(
    ("changes", "shell"),
    [
        ({"HOME": None, "TMPDIR": "/nonexistent", "TERM": None, "PYTHONOPTIMIZE": "2", **NO_UTF8, **XDG}, 'exec "$@"'),
        ({"HOME": "/dev/null", "COLUMNS": "20", **XDG}, 'mkdir gone; cd gone; rmdir ../gone; exec "$@" <&-'),
        ({}, 'umask 777; exec "$@"'),
    ],
    ids=["nothing set", "nothing there", "umask 777"],
)
def test_ensure_needs_no_more_than_a_root(lab, changes: Changes, shell: str, tmp_path: Path) -> None:
    code, out, err = run(
        "-m", "prismcache", "ensure", "instance", "0", changes=lab | changes, shell=shell, cwd=tmp_path
    )
    assert (code, out) == (0, f"{lab['PRISMCACHE_ROOT']}/instance/crop_0.h5\n"), err


def test_a_user_without_a_home_folder_is_told_to_name_a_root_and_needs_nothing_else(lab, tmp_path: Path) -> None:
    user = User(NOBODY, "022", tmp_path)
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        folder.chmod(folder.stat().st_mode | 0o111)
    changes = lab | XDG | {"HOME": None}
    command = f"exec {shlex.join(user.command('-m', 'prismcache', 'ls', 'instance'))}"
    code, out, err = run(changes=changes | {"PRISMCACHE_ROOT": None}, shell=command, cwd=tmp_path)
    assert (code, out) == (2, ""), err
    assert "error[config_invalid]: setting 'root' is unusable: ~/prismcache lies in your home folder" in err
    assert "remedy: Change PRISMCACHE_ROOT" in err
    code, out, err = run(changes=changes, shell=command, cwd=tmp_path)
    assert (code, "instance/0" in out) == (0, True), err


@pytest.mark.parametrize(
    ("changes", "words", "says"),
    [
        ({"PRISMCACHE_ROOT": None, "HOME": "/proc", **XDG}, "ensure instance 0", "/proc/.cache/prismcache"),
        ({"PRISMCACHE_ROOT": "/dev/null"}, "ensure instance 0", "/dev/null"),
        ({"HOME": "/proc", **XDG}, "token create ada", "/proc/.local/state/prismcache"),
        ({"HOME": "/dev/null", **XDG}, "serve --port 0", "/dev/null/.local/state/prismcache"),
        ({"PRISMCACHE_ROOT": "/proc"}, "serve --port 0", "/proc"),
    ],
    ids=str,
)
def test_a_folder_that_cannot_be_written_is_named_with_a_remedy(lab, changes: Changes, words: str, says: str) -> None:
    code, out, err = run("-m", "prismcache", *words.split(), changes=lab | changes)
    assert (code > 0, out) == (True, ""), err
    assert err.count(says) >= 1
    assert "  remedy: " in err


@pytest.mark.parametrize("words", ["ensure --help", "info instance 0", "doctor", "ensure train 0"])
def test_every_text_can_be_shown_in_ascii(lab, words: str) -> None:
    code, out, err = run("-m", "prismcache", *words.split(), changes=lab | {"PYTHONIOENCODING": "ascii"})
    assert code == (2 if "train" in words else 0), err
    assert out + err


def test_an_old_python_is_named_with_the_version_that_is_needed(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$2" in *version_info*) exit 1;; *python_version*) echo 3.9.1;; esac\n')
    old.chmod(0o755)
    done = subprocess.run(["sh", ".ci/venv", old, tmp_path / "venv"], cwd=REPOSITORY, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"is Python 3.9.1; prismcache needs 3.11 or newer: make PYTHON=" in done.stderr


SCRIPT = """
import multiprocessing, os
multiprocessing.set_start_method("spawn")
from prismcache import PrismClient
print(PrismClient().ensure("instance", 0, progress=False)[0])
"""


@pytest.mark.parametrize("how", ["file", "stdin", "-c"])
def test_a_script_needs_no_main_guard(lab, how: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = {"file": ("script.py",), "stdin": ("-",), "-c": ("-c", SCRIPT)}[how]
    with (tmp_path / "script.py").open() as source:
        code, out, err = run(*command, changes=lab, cwd=tmp_path, stdin=source)
    assert (code, out, err) == (0, f"{lab['PRISMCACHE_ROOT']}/instance/crop_0.h5\n", "")
