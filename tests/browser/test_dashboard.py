"""The dashboard in a real browser, on a real service."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from prismcache import Crop, PrismClient
from tests.support.cache_root import Lab, tiny_spec
from tests.support.fault_actions import Stall, Status
from tests.support.labs import running_lab
from tests.support.service import Service, service_config

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-browser installs it").expect

expect.set_options(timeout=20_000)
SPECS = [tiny_spec(0), tiny_spec(1), tiny_spec(2), tiny_spec(3), tiny_spec(0, "semantic")]


@dataclass
class Site:
    lab: Lab
    service: Service
    http: httpx2.Client


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A service with instance/0 in its cache."""
    with running_lab(tmp_path, SPECS) as lab:
        config = service_config(lab.settings(workers=1, s3_object_timeout=4.0), tmp_path / "state", min_free_bytes=0)
        with Service(config) as service, service.client() as http:
            with PrismClient(url=service.url) as client:
                client.ensure("instance", 0, progress=False)
            yield Site(lab, service, http)


def row(page: Any, name: str) -> Any:
    return page.get_by_role("row", name=name)


def test_a_crop_is_fetched_and_can_then_be_viewed(site: Site, page: Any) -> None:
    page.goto(site.service.url)
    expect(row(page, "instance/0").get_by_role("link", name="View instance/0")).to_be_visible()
    expect(row(page, "instance/3").get_by_role("link")).to_have_count(0)

    row(page, "instance/3").get_by_role("button", name="Fetch instance/3").click()
    expect(row(page, "instance/3").get_by_role("link", name="View instance/3")).to_be_visible()
    expect(row(page, "instance/3").get_by_text("cached", exact=True)).to_be_visible()
    assert (site.lab.root / "instance" / "crop_3.h5").is_file()


def test_a_crop_is_pinned_verified_and_evicted(site: Site, page: Any) -> None:
    page.goto(site.service.url)
    crop = row(page, "instance/0")
    crop.get_by_role("button", name="Verify").click()
    expect(page.get_by_role("status")).to_contain_text("crop_0.h5: ok")
    crop.get_by_role("button", name="Pin", exact=False).first.click()
    expect(crop.get_by_role("button", name="Unpin")).to_be_visible()
    expect(crop.get_by_role("button", name="Evict")).to_have_count(0)
    crop.get_by_role("button", name="Unpin").click()
    crop.get_by_role("button", name="Evict").click()
    expect(crop.get_by_role("button", name="Fetch")).to_be_visible()
    assert not (site.lab.root / "instance" / "crop_0.h5").exists()


def test_an_error_of_the_bucket_is_shown_as_the_command_line_states_it(site: Site, page: Any) -> None:
    site.lab.proxy.add(Status(403), key="crop_2.zarr/raw/")
    page.goto(site.service.url)
    row(page, "instance/2").get_by_role("button", name="Fetch").click()
    expect(row(page, "instance/2")).to_contain_text("error[source_denied]: ")
    expect(row(page, "instance/2").get_by_role("button", name="Fetch")).to_be_visible()


def test_a_running_job_is_cancelled(site: Site, page: Any) -> None:
    site.lab.proxy.add(Stall(), key="crop_2.zarr/raw/")
    page.goto(site.service.url)
    row(page, "instance/2").get_by_role("button", name="Fetch").click()
    expect(row(page, "instance/2").get_by_role("progressbar")).to_be_visible()
    page.get_by_role("link", name="Jobs").click()
    page.get_by_role("button", name=re.compile("Cancel")).click()
    expect(page.get_by_text("No job is waiting or running.")).to_be_visible()
    expect(page.get_by_role("table", name="Ended jobs")).to_contain_text("cancelled")


def test_a_service_that_restarts_under_the_open_page(site: Site, page: Any) -> None:
    page.goto(site.service.url)
    expect(row(page, "instance/1")).to_be_visible()
    site.service.kill()
    expect(page.get_by_role("status")).to_contain_text("does not respond")
    site.service.start()
    expect(page.get_by_role("status")).to_be_hidden()
    row(page, "instance/1").get_by_role("button", name="Fetch").click()
    expect(row(page, "instance/1").get_by_role("link", name="View")).to_be_visible()


def test_signing_in_and_what_a_role_may_do(site: Site, page: Any) -> None:
    reader = site.service.create_token("ada", "reader")
    site.service.terminate()
    site.service.start()
    page.goto(site.service.url)
    page.get_by_label("Token").fill("prism_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("status")).to_contain_text("error[unauthorized]")
    page.get_by_label("Token").fill(reader)
    page.get_by_role("button", name="Sign in").click()
    expect(row(page, "instance/0").get_by_role("link", name="View")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("Fetch|Pin|Evict|Verify"))).to_have_count(0)
    assert reader not in page.url
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    assert reader not in site.service.log


def pixels(page: Any) -> np.ndarray:
    """The canvas as (Y, X, 3) uint8."""
    found = page.evaluate(
        "() => { const c = document.getElementById('slice');"
        " return [c.height, c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]; }"
    )
    return np.array(found[2], np.uint8).reshape(found[0], found[1], 4)[..., :3]


@pytest.mark.parametrize(("axis", "at"), [("z", 5), ("y", 7), ("x", 11)])
def test_the_viewer_shows_the_voxels_of_the_file(site: Site, page: Any, axis: str, at: int) -> None:
    page.goto(f"{site.service.url}/view?split=instance&crop=0&axis={axis}&at={at}&gain=1&labels=0&c=0,1,2")
    page.locator(f"#slice[data-at='{axis}{at}']").wait_for()
    with Crop(site.lab.root / "instance" / "crop_0.h5") as crop:
        expected = np.stack([np.take(crop.channel(c)[...], at, "zyx".index(axis)) for c in range(3)], axis=-1)
    assert np.array_equal(pixels(page), expected)


def test_the_viewer_moves_and_keeps_its_state_in_the_url(site: Site, page: Any) -> None:
    page.goto(f"{site.service.url}/view?split=instance&crop=0&at=5&labels=1")
    canvas = page.locator("#slice[data-at='z5']")
    canvas.wait_for()
    canvas.focus()
    page.keyboard.press("ArrowUp")
    page.locator("#slice[data-at='z6']").wait_for()
    assert "at=6" in page.url
    page.reload()
    page.locator("#slice[data-at='z6']").wait_for()
    with Crop(site.lab.root / "instance" / "crop_0.h5") as crop:
        labels, ids = crop.labels[6], crop.labels_ids
    y, x = np.argwhere(labels)[0]
    box = page.locator("#slice").bounding_box()
    height, width = labels.shape
    page.mouse.move(box["x"] + (x + 0.5) * box["width"] / width, box["y"] + (y + 0.5) * box["height"] / height)
    label = labels[y, x]
    expect(page.locator("#under")).to_contain_text(f"({y}, {x}): label {label}, id {ids[label]} in the bucket")


def test_storage_and_a_narrow_window(site: Site, page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    for path in ("", "jobs", "storage"):
        page.goto(f"{site.service.url}/{path}")
        page.locator("#page > *").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(page.get_by_text("Cached files")).to_be_visible()
    assert site.http.get("/").headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in site.http.get("/").headers["content-security-policy"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_accessibility_fault(site: Site, page: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    for path in ("", "jobs", "storage", "view?split=instance&crop=0"):
        page.goto(f"{site.service.url}/{path}")
        page.locator("#page > *").first.wait_for()
        found = axe.run(page).response["violations"]
        assert [(path, fault["id"], fault["help"]) for fault in found] == []
