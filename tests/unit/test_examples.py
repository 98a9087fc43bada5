"""Every example in a docstring of the client runs, and returns what the docstring shows."""

from __future__ import annotations

import doctest
import sys
from importlib import import_module
from pathlib import Path

import pytest

import prismcache
from tests.support.fake_backend import in_memory

PACKAGE = Path(prismcache.__file__).parent
ELSEWHERE = ("adapters/", "crop/crop.py", "torch/dataset.py", "torch_em.py")  # need torch, a viewer or a cached crop
MODULES = sorted(
    path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("path", [path for path in MODULES if not path.startswith(ELSEWHERE)])
@pytest.mark.skipif(sys.platform == "win32", reason="the examples show POSIX paths")
def test_examples(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.startswith("client/"):
        monkeypatch.setattr("prismcache.client.aio.load_backend", in_memory)
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    result = doctest.testmod(import_module(f"prismcache.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
