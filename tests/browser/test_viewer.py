"""The viewer in a real browser: its pixels are those of numpy's slice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prismcache import Crop
from tests.support import own_splits
from tests.support.dashboard import CACHED, pixels
from tests.support.site import Site, running_site

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-browser installs it").expect

VIEW = "view?split=instance&crop="


@pytest.mark.parametrize(("axis", "at"), [("z", 5), ("y", 7), ("x", 11)])
def test_slices_are_those_of_the_file(site: Site, page: Any, axis: str, at: int) -> None:
    page.goto(f"{site.service.url}/{VIEW}0&axis={axis}&at={at}&gain=1&labels=0&c=0,1,2")
    page.locator(f"#slice[data-at='{axis}{at}']").wait_for()
    with Crop(site.lab.root / "instance" / "crop_0.h5") as crop:
        expected = np.stack([np.take(crop.channel(c)[...], at, "zyx".index(axis)) for c in range(3)], axis=-1)
    assert np.array_equal(pixels(page), expected)
    brightness = page.get_by_label("Brightness")
    while page.locator("#slice").get_attribute("data-from") != "chunks":  # which arrive behind the first slice
        brightness.dispatch_event("input")
    assert np.array_equal(pixels(page), expected)


def test_the_first_slice_needs_one_small_request_a_channel_and_no_chunk(site: Site, page: Any) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.partition("/zarr/")[2]))
    page.goto(f"{site.service.url}/{VIEW}{CACHED}&axis=z&at=5")
    page.locator("#slice[data-at='z5'][data-from='service']").wait_for()
    slices = [f"slices/z/{name}.0.0" for name in ("raw/0.5", "raw/1.5", "raw/2.5", "labels/5")]
    assert sorted(key for key in asked if key.startswith("slices")) == sorted(slices)
    assert ".chunks" not in {key.rpartition("/")[2] for key in asked[: max(map(asked.index, slices))]}


def test_windows_are_those_of_the_facts_and_all_channels_are_added(site: Site, page: Any) -> None:
    path = site.ensure(crops=[4])
    page.goto(f"{site.service.url}/{VIEW}4&at=5&labels=0&c=all")
    page.locator("#slice[data-at='z5'][data-windows='none']").wait_for()
    expect(page.get_by_text("Not computed yet")).to_be_visible()
    page.get_by_role("button", name="Make a file").click()
    page.locator("#slice[data-windows='facts']").wait_for()
    with Crop(path) as crop:
        windows = [(each.percentiles[1], each.percentiles[99.9]) for each in crop.facts.channels]
        planes = [crop.channel(channel)[5].astype(float) for channel in range(3)]
        labels = crop.facts.labels
    expected = [255 * (plane - low) / (high - low) for plane, (low, high) in zip(planes, windows, strict=True)]
    assert np.abs(pixels(page) - np.stack(expected, axis=-1).clip(0, 255)).max() < 0.51  # rounded
    expect(page.get_by_text(f"{labels} labels, ")).to_be_visible()
    expect(page.get_by_role("table", name="Cached files")).to_contain_text("crop_4.facts.json")
    page.get_by_label("Windows from facts").uncheck()
    page.locator("#slice[data-windows='none']").wait_for()
    assert np.array_equal(pixels(page), np.stack(planes, axis=-1))


def test_a_crop_without_labels_is_shown_as_raw_alone(page: Any, tmp_path: Path) -> None:
    arrays = own_splits.synapse_arrays()
    with running_site(tmp_path, []) as site:
        own_splits.write_synapses(site.lab.bucket_dir, arrays)
        site.ensure(split="synapses")
        page.goto(f"{site.service.url}/view?split=synapses&crop=0&at=5&gain=1&c=1,,")
        page.locator("#slice[data-at='z5']").wait_for()
        expect(page.get_by_text("2 channels; 400 × 168 × 168 nm expanded")).to_be_visible()
        assert np.array_equal(pixels(page)[..., 0], arrays["ls_2channels_globalnorm"][0][1, 5])
        assert not pixels(page)[..., 1:].any()
        expect(page.get_by_text("This crop has no labels.")).to_be_visible()
        for absent in ("Labels", "What to make"):
            expect(page.get_by_label(absent)).to_have_count(0)


def test_keys_move_it_and_its_state_is_in_the_url(site: Site, page: Any) -> None:
    page.goto(f"{site.service.url}/{VIEW}{CACHED}&at=5&labels=1")
    canvas = page.locator("#slice[data-at='z5']")
    canvas.wait_for()
    canvas.focus()
    page.keyboard.press("ArrowUp")
    page.locator("#slice[data-at='z6']").wait_for()
    page.wait_for_url(re.compile("at=6"))
    page.reload()
    page.locator("#slice[data-at='z6']").wait_for()


def test_labels_and_original_ids_are_read_under_the_pointer(site: Site, page: Any) -> None:
    page.goto(f"{site.service.url}/{VIEW}{CACHED}&at=6")
    canvas = page.locator("#slice[data-at='z6']")
    canvas.wait_for()
    with Crop(site.lab.root / "instance" / "crop_0.h5") as crop:
        labels, ids = crop.labels[6], crop.labels_ids
    y, x = np.argwhere(labels)[0]
    box = canvas.bounding_box()
    height, width = labels.shape
    page.mouse.move(box["x"] + (x + 0.5) * box["width"] / width, box["y"] + (y + 0.5) * box["height"] / height)
    label = labels[y, x]
    expect(page.locator("#under")).to_contain_text(f"({y}, {x}): label {label}, id {ids[label]} in the bucket")


def test_a_crop_that_is_not_cached_is_said_to_be(site: Site, page: Any) -> None:
    page.goto(f"{site.service.url}/{VIEW}11")
    expect(page.get_by_role("status")).to_contain_text("error[not_cached]: ")
    expect(page.get_by_text("No file of this crop is cached.")).to_be_visible()
