"""The command where only the base install is there: it names the extra that is missing, and does what needs none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prismcache.schema import Split
from prismcache_service.cache import CropCache, CropName
from tests.support.stored_crops import store_crop

PROGRAM = """
import sys
for name in ("aiobotocore", "fastapi", "h5py", "isal", "numcodecs", "numpy", "sqlalchemy", "structlog", "zarr"):
    sys.modules[name] = None  # as if it were not installed
from prismcache.cli import main
main()
"""


def run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *words, "--root", str(root)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "words", ["ensure instance 0 --no-progress", "ensure instance all --no-progress", "ls", "info instance 0"]
)
def test_what_needs_the_pipeline_names_the_extra_and_nothing_else(tmp_path, words):
    done = run(tmp_path / "root", *words.split())
    assert (done.returncode, done.stdout) == (1, "")
    error, remedy = done.stderr.splitlines()
    assert error.startswith("error[missing_extra]: ")
    assert 'pip install "prismcache[service]"' in remedy


def test_what_is_cached_needs_no_extra(tmp_path):
    path = store_crop(CropCache(tmp_path), CropName(Split.INSTANCE, 0, None)).path
    assert run(tmp_path, "ensure", "instance", "0").stdout == f"{path}\n"
    assert run(tmp_path, "verify").stdout == f"ok        {path}\n"
    assert "instance/0" in run(tmp_path, "ls").stdout
    assert path in run(tmp_path, "info", "instance", "0").stdout
    assert run(tmp_path, "rm", "instance", "0").stdout == f"{path}\n"
