"""Importing the client loads nothing heavy; a pipeline that is not installed is a typed error."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import prismcache
from prismcache import MissingExtraError, Settings
from prismcache.backend import load_backend

HEAVY = ("aiobotocore", "asyncio", "h5py", "numcodecs", "numpy", "prismcache_service", "rich", "torch", "typer", "zarr")


def loaded_after(statement: str) -> set[str]:
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import prismcache", set()),
        ("from prismcache import PrismClient, AsyncPrismClient, Settings; PrismClient()", set()),
        ("import prismcache.cli", {"typer"}),
        ("import prismcache_service.embedded", {"asyncio", "prismcache_service"}),
    ],
)
def test_importing_brings_in_nothing_heavy(statement, allowed):
    assert loaded_after(statement) & set(HEAVY) <= allowed


def test_the_package_and_the_command_load_without_pydantic():
    assert "pydantic" not in loaded_after("import prismcache")
    assert "pydantic" not in loaded_after("import prismcache.cli")


def test_every_public_name_is_there():
    for name in prismcache.__all__:
        assert getattr(prismcache, name) is getattr(prismcache, name)
    assert dir(prismcache) == sorted(prismcache.__all__)
    assert {cls.__name__ for cls in prismcache.errors.error_classes().values()} <= set(prismcache.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = prismcache.nothing


def test_a_tree_that_is_not_installed_has_a_version_too(monkeypatch):
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    monkeypatch.delitem(vars(prismcache), "__version__", raising=False)
    assert prismcache.__version__ == "0+unknown"
    monkeypatch.undo()
    vars(prismcache).pop("__version__", None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("No module named 'zarr'", name="zarr"), "needs the module 'zarr'"),
        (ImportError("broken library"), "broken library"),
    ],
)
def test_a_missing_extra_is_named(error, words, monkeypatch):
    def fail(module: str) -> None:
        raise error

    monkeypatch.setattr("prismcache.backend.import_module", fail)
    with pytest.raises(MissingExtraError, match=words) as caught:
        load_backend(Settings.load({}))
    assert caught.value.remedy == 'pip install "prismcache[service]"'
