"""A worker process's own decisions, without the process."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prismcache._testing_files import crop_arrays, write_crop
from prismcache.config import Settings
from prismcache.schema import CropFile, Problem, Product, Split
from prismcache_service.cache import CropCache, CropName
from prismcache_service.engine import CropTask, News
from prismcache_service.engine.local.worker import Outbox, Worker
from prismcache_service.pipeline import products

pytestmark = pytest.mark.anyio

NAME = CropName(Split.INSTANCE, 0, product=Product.UNLABELLED)


@pytest.mark.parametrize("meanwhile", ["nothing", "replaced", "removed"])
async def test_a_product_is_published_only_if_its_crop_is_still_the_one_that_it_was_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    cache, make_product = CropCache(tmp_path), products.make_product
    write_crop(tmp_path, Split.INSTANCE, 0, crop_arrays(Split.INSTANCE, 0, None))

    def make(*arguments: Any) -> products.MadeProduct:
        made = make_product(*arguments)
        if meanwhile == "replaced":
            write_crop(tmp_path, Split.INSTANCE, 0, crop_arrays(Split.INSTANCE, 1, None))
        elif meanwhile == "removed":
            cache.remove(CropName(Split.INSTANCE, 0))
        return made

    monkeypatch.setattr(products, "make_product", make)
    lines, materializer = io.BytesIO(), SimpleNamespace(tidy=lambda: None)
    worker = Worker(Settings.load({}, root=tmp_path), Outbox(lines), materializer)  # type: ignore[arg-type]
    await worker.work(CropTask(NAME, "a1"))
    outcome = News.model_validate_json(lines.getvalue().splitlines()[-1]).outcome
    assert isinstance(outcome, CropFile) is cache.path(NAME).exists() is (meanwhile == "nothing")
    if isinstance(outcome, Problem):
        assert (outcome.code, "changed while unlabelled was made" in outcome.detail) == ("not_cached", True)
    assert list(cache.path(NAME).parent.glob(".*")) == []
