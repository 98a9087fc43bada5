"""The dashboard, the API and the zarr face behind nginx: TLS, a sub-path, and buffering on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prismcache import PrismClient
from tests.support.cache_root import tiny_spec
from tests.support.labs import running_lab
from tests.support.nginx import LACKING, Nginx
from tests.support.service import Service, service_config

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-browser installs it").expect


@pytest.mark.skipif(LACKING is not None, reason=str(LACKING))
def test_the_dashboard_works_below_a_sub_path(tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_lab(tmp_path, [tiny_spec(0), tiny_spec(1)]) as lab:
        config = service_config(lab.settings(workers=1), tmp_path / "state", min_free_bytes=0)
        with Service(config) as service, Nginx(tmp_path, service.url) as proxy:
            monkeypatch.setenv("SSL_CERT_FILE", str(proxy.certificate))
            with PrismClient(url=proxy.url, downloads=tmp_path / "downloads") as client:
                assert [Path(path).name for path in client.ensure("instance", 0, progress=False)] == ["crop_0.h5"]

            context = browser.new_context(ignore_https_errors=True)
            page = context.new_page()
            page.goto(f"{proxy.url}/")
            crop = page.get_by_role("row", name="instance/1")
            crop.get_by_role("button", name="Fetch").click()
            expect(crop.get_by_role("link", name="View")).to_be_visible(timeout=20_000)
            crop.get_by_role("link", name="View").click()
            page.locator("#slice[data-at]").wait_for()
            page.get_by_role("link", name="Jobs").click()
            expect(page.get_by_role("table", name="Ended jobs")).to_contain_text("done")
            assert page.url == f"{proxy.url}/jobs"
            context.close()
