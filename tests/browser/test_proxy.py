"""The dashboard, the API and the zarr face behind nginx: TLS, a sub-path, and buffering on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prismcache import PrismClient
from tests.support.dashboard import row
from tests.support.nginx import LACKING, Nginx
from tests.support.site import Site

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-browser installs it").expect


@pytest.mark.skipif(LACKING is not None, reason=str(LACKING))
def test_the_dashboard_works_below_a_sub_path(
    site: Site, browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Nginx(tmp_path, site.service.url) as proxy:
        monkeypatch.setenv("SSL_CERT_FILE", str(proxy.certificate))
        with PrismClient(url=proxy.url, downloads=tmp_path / "downloads") as client:
            assert [Path(path).name for path in client.ensure("instance", 0, progress=False)] == ["crop_0.h5"]

        context = browser.new_context(ignore_https_errors=True)
        page = context.new_page()
        page.goto(f"{proxy.url}/")
        crop = row(page, 7)
        crop.get_by_role("button", name="Fetch").click()
        expect(crop.get_by_role("link", name="View")).to_be_visible()
        crop.get_by_role("link", name="View").click()
        page.locator("#slice[data-at]").wait_for()
        page.get_by_role("link", name="Jobs").click()
        expect(page.get_by_role("table", name="Ended jobs")).to_contain_text("done")
        assert page.url == f"{proxy.url}/jobs"
        page.get_by_role("link", name="Storage").click()
        expect(page.get_by_role("img", name="Cache size")).to_be_visible()
        context.close()
