"""The examples in the client's docstrings do what they say, over a backend without a bucket."""

from __future__ import annotations

import doctest
import sys
from importlib import import_module

import pytest

from tests.support.fake_backend import in_memory

MODULES = ("_request", "_units", "aio", "client", "crops_arg")


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.skipif(sys.platform == "win32", reason="the examples show POSIX paths")
def test_examples(name, monkeypatch):
    monkeypatch.setattr("prismcache.client.aio.load_backend", lambda _, settings: in_memory(settings))
    result = doctest.testmod(import_module(f"prismcache.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
