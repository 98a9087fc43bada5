"""The pictures in README, taken from the real pages; only ``make screenshots`` keeps them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prismcache import PrismClient
from prismcache.config import Settings
from tests.support.bucket import demo_bucket
from tests.support.s3 import S3Server
from tests.support.service import Service, service_config

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-browser installs it").expect

DOCS = Path(__file__).parents[2] / "docs"
SIZE = {"width": 1120, "height": 640}


def test_pictures_of_the_dashboard_and_the_viewer(page: Any, tmp_path: Path) -> None:
    with S3Server(demo_bucket(Path("build/demo/bucket"))) as server:
        settings = Settings.load({}, root=tmp_path / "root", s3_endpoint_url=server.endpoint)
        shown = Path("/lab/prism")
        config = service_config(settings, tmp_path / "state", min_free_bytes=0, advertised_root=shown)
        with Service(config) as service:
            with PrismClient(url=service.url, downloads=tmp_path / "downloads") as client:
                client.ensure("instance", [0, 5], progress=False)
                client.ensure("semantic", [0], progress=False)
            page.set_viewport_size(SIZE)
            page.goto(service.url)
            expect(page.locator("img.preview")).to_have_count(3, timeout=30_000)
            taken = {"dashboard.png": page.screenshot()}
            page.goto(f"{service.url}/view?split=instance&crop=0&labels=0.25")
            page.locator("#slice[data-at]").wait_for()
            taken["viewer.png"] = page.screenshot()
    for name, data in taken.items():
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert pixels.shape == (SIZE["height"], SIZE["width"], 3)
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100  # a picture, not an empty page
        with Image.open(DOCS / name) as kept:
            assert kept.size == (SIZE["width"], SIZE["height"])
        if os.environ.get("PRISM_SCREENSHOTS"):
            (DOCS / name).write_bytes(data)
