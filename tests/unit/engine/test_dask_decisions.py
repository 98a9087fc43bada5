"""What the Dask engine decides without a cluster: a crop's key, and whose settings count."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from prismcache.config import Settings
from prismcache.errors import ConfigError, MissingExtraError
from prismcache.schema import Split
from prismcache_service import factory
from prismcache_service.cache import CropName
from prismcache_service.config import ServiceConfig
from prismcache_service.engine import CropTask
from prismcache_service.engine.dask.engine import DaskEngine
from prismcache_service.engine.dask.messages import (
    differences,
    settings_json,
    task_key,
    versions,
)
from prismcache_service.engine.dask.worker import own_settings
from prismcache_service.engine.local.engine import LocalEngine

TASK = CropTask(CropName(Split.INSTANCE, 3, (0, 2)), "token")


def test_versions_name_all_that_decides_about_bytes() -> None:
    found = versions()
    assert {"python", "prismcache", "distributed", "file format", "isal", "h5py", "numpy", "zarr"} <= found.keys()
    assert "not installed" not in found.values()


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"python": "3.11", "isal": "1.8.0"}, ""),
        ({"python": "3.11", "isal": "1.8.0", "more": "1"}, ""),
        ({"python": "3.12", "isal": "1.8.0"}, "python 3.12 (service: 3.11)"),
        ({"isal": "1.7.2"}, "python unknown (service: 3.11), isal 1.7.2 (service: 1.8.0)"),
    ],
)
def test_differences_name_both_sides(theirs: dict[str, str], said: str) -> None:
    assert differences({"python": "3.11", "isal": "1.8.0"}, theirs) == said


def test_a_key_is_the_same_for_the_same_file_whoever_asks() -> None:
    settings = Settings.load({}, root="/lab/prism")
    same = Settings.load({}, root="/lab/prism", memory_limit="1GB", s3_concurrency=4)
    key = task_key(TASK, settings)
    assert key == task_key(CropTask(TASK.name, "another token"), same)
    assert key.startswith("prismcache-instance-crop_3.ch00_02.h5-")


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        (CropTask(CropName(Split.SEMANTIC, 3, (0, 2)), "token"), {}),
        (CropTask(CropName(Split.INSTANCE, 3), "token"), {}),
        (CropTask(TASK.name, "token", strict=True), {}),
        (TASK, {"root": "/elsewhere"}),
        (TASK, {"s3_bucket": "mirror"}),
        (TASK, {"s3_endpoint_url": "http://mirror"}),
    ],
)
def test_a_key_differs_for_whatever_may_give_another_file(task: CropTask, changes: dict[str, Any]) -> None:
    settings = Settings.load({}, **({"root": "/lab/prism"} | changes))
    assert task_key(task, settings) != task_key(TASK, Settings.load({}, root="/lab/prism"))


def test_a_worker_takes_the_services_settings_but_for_its_own_mount(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Settings.load({}, root="/lab/prism", s3_bucket="mirror", memory_limit="500MB", token="secret")
    assert "secret" not in settings_json(service)
    assert own_settings(settings_json(service)) == service.model_copy(update={"token": None})
    monkeypatch.setenv("PRISMCACHE_ROOT", "/mnt/prism")
    monkeypatch.setenv("PRISMCACHE_DECODE_THREADS", "3")
    monkeypatch.setenv("PRISMCACHE_S3_BUCKET", "another")
    found = own_settings(settings_json(service))
    assert (found.root, found.decode_threads) == (Path("/mnt/prism"), 3)
    assert (found.s3_bucket, found.memory_limit) == ("mirror", 500_000_000)


def test_the_engine_is_a_setting_and_dask_needs_a_scheduler(tmp_path: Path) -> None:
    def load(**changes: str) -> ServiceConfig:
        return ServiceConfig.load({}, root=tmp_path / "root", state_folder=tmp_path / "state", **changes)

    assert isinstance(factory.engine_of(load()), LocalEngine)
    assert isinstance(factory.engine_of(load(engine="dask", dask_scheduler="tcp://storage.lab:8786")), DaskEngine)
    with pytest.raises(ConfigError, match="PRISMCACHE_DASK_SCHEDULER"):
        load(engine="dask")
    with pytest.raises(ConfigError, match="'engine'"):
        load(engine="ray")


def test_without_the_extra_the_engine_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServiceConfig.load(
        {}, root=tmp_path / "r", state_folder=tmp_path, engine="dask", dask_scheduler="tcp://x:1"
    )
    monkeypatch.delitem(sys.modules, "prismcache_service.engine.dask.engine", raising=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match="distributed") as caught:
        factory.engine_of(config)
    assert "prismcache[dask]" in caught.value.remedy
