"""The pages Crops, Jobs and Storage in a real browser, on a real service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.dashboard import CACHED, MARKUP, UNREADABLE, row
from tests.support.fault_actions import Stall, Status
from tests.support.service import Service, service_config
from tests.support.site import Site

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-browser installs it").expect


def test_a_crop_is_fetched_and_can_then_be_viewed(site: Site, page: Any) -> None:
    page.goto(site.service.url)
    expect(row(page, CACHED).get_by_role("link", name="View instance/0")).to_be_visible()
    expect(row(page, 3).get_by_role("link")).to_have_count(0)

    row(page, 3).get_by_role("button", name="Fetch instance/3").click()
    expect(row(page, 3).get_by_role("link", name="View instance/3")).to_be_visible()
    expect(row(page, 3).get_by_text("cached", exact=True)).to_be_visible()
    assert (site.lab.root / "instance" / "crop_3.h5").is_file()


def test_a_crop_is_pinned_verified_and_evicted(site: Site, page: Any) -> None:
    path = site.ensure(crops=[6])
    page.goto(site.service.url)
    crop = row(page, 6)
    crop.get_by_role("button", name="Verify").click()
    expect(page.get_by_role("status")).to_contain_text("crop_6.h5: ok")
    crop.get_by_role("button", name="Pin").click()
    expect(crop.get_by_role("button", name="Unpin")).to_be_visible()
    expect(crop.get_by_role("button", name="Evict")).to_have_count(0)
    crop.get_by_role("button", name="Unpin").click()
    crop.get_by_role("button", name="Evict").click()
    expect(crop.get_by_role("button", name="Fetch")).to_be_visible()
    assert not path.exists()


def test_a_row_says_what_is_cached_of_a_crop_and_can_be_found(site: Site, page: Any) -> None:
    site.ensure(crops=[4], context=[4, 8, 8])
    site.ensure(crops=[4], channels=[0, 1])
    site.ensure(crops=[4], product="avg_barcodes")
    page.goto(site.service.url)
    for content in (
        "raw, labels",
        "raw, labels, channels 0–1",
        "raw, labels, 4 × 8 × 8 voxels of context",
        "average barcodes",
    ):
        expect(row(page, 4).get_by_text(re.compile(rf"^\d\S* k?B {re.escape(content)}$"))).to_be_visible()
    page.get_by_label("Find").fill("instance/4")
    expect(page.get_by_role("rowheader")).to_have_text(["instance/4"])
    expect(page.get_by_text("1 of 13 crops")).to_be_visible()


def test_an_error_of_the_bucket_is_shown_as_the_command_line_states_it(site: Site, page: Any) -> None:
    site.lab.proxy.add(Status(403), key="crop_5.zarr/raw/")
    page.goto(site.service.url)
    row(page, 5).get_by_role("button", name="Fetch").click()
    expect(row(page, 5)).to_contain_text("error[source_denied]: ")
    expect(row(page, 5).get_by_role("button", name="Fetch")).to_be_visible()


def test_a_running_job_is_cancelled(site: Site, page: Any) -> None:
    site.lab.proxy.add(Stall(), key="crop_2.zarr/raw/")
    page.goto(site.service.url)
    row(page, 2).get_by_role("button", name="Fetch").click()
    expect(row(page, 2).get_by_role("progressbar")).to_be_visible()
    page.get_by_role("link", name="Jobs").click()
    page.get_by_role("button", name=re.compile("Cancel")).click()
    expect(page.get_by_text("No job is waiting or running.")).to_be_visible()
    expect(page.get_by_role("table", name="Ended jobs")).to_contain_text("instance/2: cancelled")


def test_rates_are_those_of_the_last_second(site: Site, page: Any) -> None:
    page.goto(f"{site.service.url}/jobs")
    found = page.evaluate(
        "async () => { const { Rates } = await import('./static/1/rates.js'); const seen = new Rates();"
        " return [[5, 0], [50, 999], [2005, 1000], [2010, 1500], [2105, 2000]].map(([n, ms]) => seen.of('a', n, ms)); }"
    )
    assert found == [None, None, 2000, 2000, 100]


def test_a_service_that_is_killed_and_restarted_under_the_open_page(site: Site, page: Any) -> None:
    page.goto(site.service.url)
    expect(row(page, 1)).to_be_visible()
    site.service.kill()
    expect(page.get_by_role("status")).to_contain_text("does not respond")
    site.service.start()
    expect(page.get_by_role("status")).to_be_hidden()
    row(page, 1).get_by_role("button", name="Fetch").click()
    expect(row(page, 1).get_by_role("link", name="View")).to_be_visible()


def test_signing_in_and_what_a_role_may_do(site: Site, page: Any, tmp_path: Path) -> None:
    config = service_config(site.lab.settings(workers=1), tmp_path / "state", min_free_bytes=0)
    service = Service(config)
    reader = service.create_token("ada", "reader")
    with service:
        page.goto(service.url)
        page.get_by_label("Token").fill("prism_wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("status")).to_contain_text("error[unauthorized]")
        page.get_by_label("Token").fill(reader)
        page.get_by_role("button", name="Sign in").click()
        expect(row(page, CACHED).get_by_role("link", name="View")).to_be_visible()
        expect(page.get_by_role("button", name=re.compile("Fetch|Pin|Evict|Verify"))).to_have_count(0)
        assert reader not in page.url
        row(page, CACHED).get_by_role("link", name="View").click()
        page.locator("#slice[data-at]").wait_for()
        expect(page.get_by_role("button", name="Make")).to_have_count(0)
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Token")).to_be_visible()
        assert reader not in service.log


def test_seven_tabs_of_one_browser_are_all_live(site: Site, page: Any) -> None:
    tabs = [page, *(page.context.new_page() for _ in range(6))]
    for tab in tabs:
        tab.goto(site.service.url)
        expect(row(tab, 8)).to_be_visible()
    row(tabs[-1], 8).get_by_role("button", name="Fetch").click()
    for tab in tabs:
        expect(row(tab, 8).get_by_role("link", name="View")).to_be_visible()


@pytest.mark.parametrize("has_clipboard", [True, False], ids=["https", "plain http"])
def test_lines_are_copied_that_work_as_they_are(site: Site, page: Any, has_clipboard: bool) -> None:
    if not has_clipboard:
        page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.goto(site.service.url)
    row(page, CACHED).get_by_role("button", name="Copy the Python line").click()
    expect(page.get_by_role("status")).to_contain_text("Copied: from prismcache import PrismClient")
    page.evaluate("document.body.append(Object.assign(document.createElement('textarea'), { id: 'pasted' }))")
    page.locator("#pasted").focus()
    page.keyboard.press("Control+V")
    names: dict[str, Any] = {}
    exec(page.locator("#pasted").input_value(), names)  # noqa: S102 - that is what a reader does with it
    assert [Path(path).name for path in names["paths"]] == ["crop_0.h5"]
    row(page, CACHED).get_by_role("button", name="Copy the command").click()
    command = f"prismcache ensure instance 0 --url {site.service.url}"
    expect(page.get_by_role("status")).to_have_text(f"Copied: {command}")


def test_storage_shows_what_was_fetched_and_what_would_be_deleted_next(site: Site, page: Any) -> None:
    site.ensure()
    page.goto(f"{site.service.url}/storage")
    expect(page.get_by_text("Cached files")).to_be_visible()
    expect(page.get_by_role("table", name="Crops that are deleted next")).to_contain_text("instance/")
    for days in ("1", "90"):
        page.get_by_label("Period").select_option(days)
        expect(
            page.get_by_role("img", name=re.compile(r"Bytes fetched over time: \d.* from the bucket"))
        ).to_be_visible()
        expect(page.get_by_role("img", name=re.compile(r"Hit rate over time: \d+ % of \d+ crops"))).to_be_visible()
        size = page.get_by_role("img", name=re.compile(r"Cache size over time: \d.*B now"))
        assert size.locator("rect").count() >= 1
    answer = site.http.get("/v1/history").json()
    assert answer["seconds"] == 300
    assert sum(each["hits"] for each in answer["figures"]) >= 1
    assert answer["figures"][-1]["used_bytes"] >= (site.lab.root / "instance" / "crop_0.h5").stat().st_size


def test_markup_in_names_errors_and_notes_stays_text(site: Site, page: Any) -> None:
    def with_markup(value: Any) -> Any:
        if isinstance(value, dict):
            texts = {"detail", "remedy", "owner", "path", "version", "engine", "name"}
            changed = {key: f"{MARKUP}{item}" if key in texts else with_markup(item) for key, item in value.items()}
            return changed | ({"notes": [MARKUP]} if "notes" in value else {})
        return [with_markup(item) for item in value] if isinstance(value, list) else value

    def answer(route: Any) -> None:
        response = route.fetch()
        is_json = "json" in response.headers["content-type"]
        route.fulfill(response=response, **({"json": with_markup(response.json())} if is_json else {}))

    page.goto(site.service.url)
    expect(row(page, UNREADABLE)).to_contain_text(MARKUP)  # as the bucket has it
    page.route("**/v1/**", answer)
    for path in ("", "jobs", "storage", "view?split=instance&crop=0", "view?split=instance&crop=99"):
        page.goto(f"{site.service.url}/{path}")
        expect(page.get_by_text(MARKUP).first).to_be_visible()
        assert page.locator("b, img[src='x']").count() == 0
        assert page.evaluate("window.hacked") is None
    page.unroute_all(behavior="ignoreErrors")


def test_the_keyboard_is_enough_and_keeps_its_place(site: Site, page: Any) -> None:
    page.goto(site.service.url)
    expect(row(page, 10)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    fetch = row(page, 10).get_by_role("button", name="Fetch")
    for _ in range(100):
        if fetch.evaluate("button => button === document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(row(page, 10).get_by_role("link", name="View")).to_be_visible()


PAGES = ["", "jobs", "storage", "view?split=instance&crop=0"]


def test_pages_fit_a_narrow_window_and_load_nothing_unsafe(site: Site, page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    for path in PAGES:
        page.goto(f"{site.service.url}/{path}")
        page.locator("#page h2, #page table").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        policy = site.http.get(f"/{path}").headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_accessibility_fault(site: Site, page: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    for path in PAGES:
        page.goto(f"{site.service.url}/{path}")
        page.locator("#page h2, #page table").first.wait_for()
        is_dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
        assert is_dark == (scheme == "dark")
        found = axe.run(page).response["violations"]
        assert [(path, fault["id"], fault["help"]) for fault in found] == []
