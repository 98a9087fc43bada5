"""Neuroglancer itself, as the service serves it, in a real browser: pixels, original ids, no other host."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prismcache import Crop, PrismClient
from tests.browser.conftest import FLAGS, watched_page
from tests.support import own_splits
from tests.support.cache_root import tiny_spec
from tests.support.labs import running_lab
from tests.support.nginx import LACKING, Nginx
from tests.support.service import Service, service_config

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-browser installs it")
pytestmark = pytest.mark.skipif(find_spec("neuroglancer") is None, reason="needs the extra `viewer`")

SPEC = tiny_spec(0)
SYNAPSES = own_splits.synapse_arrays()
# WebGL without a graphics card.
_WEBGL = [
    *(flag for flag in FLAGS if flag != "--disable-gpu"),
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
_LAYERS = "viewer.layerManager.managedLayers"
_READY = f"() => window.viewer && {_LAYERS}.length && viewer.isReady() && {_LAYERS}.every((each) => each.isReady())"
_ERRORS = f"() => {_LAYERS}.flatMap((each) => each.layer.dataSources.map((s) => s.loadState?.error?.message))"
# The value of a layer at a place, (X, Y, Z) in voxels of the world; null until its chunk has come.
_VALUE = """([name, place]) => {
  const { layer } = viewer.layerManager.getLayerByName(name);
  const value = layer.getValueAt(Float32Array.from(place), { pickedRenderLayer: null });
  return value === null || value === undefined ? null : JSON.stringify(value, (_, found) =>
    typeof found === "bigint" ? String(found) : found);
}"""


@pytest.fixture(scope="module")
def webgl(launch: Callable[[list[str]], Any]) -> Iterator[Any]:
    started = launch(_WEBGL)
    yield started
    started.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    """A service with tokens, the facts of instance/0, and a synapse crop; and a token."""
    folder = tmp_path_factory.mktemp("neuroglancer")
    with running_lab(folder, [SPEC]) as lab:
        own_splits.write_synapses(lab.bucket_dir, SYNAPSES)
        started = Service(service_config(lab.settings(workers=1), folder / "state", min_free_bytes=0))
        token = started.create_token("ada", "requester")
        with started:
            with PrismClient(url=started.url, token=token) as client:
                client.ensure("instance", 0, progress=False)
                client.ensure("instance", 0, product="facts", progress=False)
                client.ensure("synapses", 0, progress=False)
            yield started, token


@pytest.fixture
def made(service: tuple[Service, str]) -> dict[str, Any]:
    started, token = service
    with started.client(token) as http:
        found: dict[str, Any] = http.post("/v1/links", json={"split": "instance", "crop": 0}).json()
    return found


@pytest.fixture
def page(webgl: Any) -> Iterator[Any]:
    with watched_page(webgl, viewport={"width": 600, "height": 500}, ignore_https_errors=True) as (opened, hosts):
        yield opened
    assert len(hosts) == 1, "the page asked no host"


def cached(service: Service) -> Crop:
    return Crop(service.config.root / "instance" / "crop_0.h5")


def open_crop(page: Any, url: str) -> None:
    page.goto(url)
    wait_for_crop(page)


def wait_for_crop(page: Any) -> None:
    page.wait_for_function(_READY)
    assert [text for text in page.evaluate(_ERRORS) if text] == []


def pixels(page: Any) -> np.ndarray:
    """What the middle of the canvas shows, (Y, X, 3) uint8."""
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        shown = np.asarray(picture.convert("RGB"))
    return shown[150:400, 50:250]


def test_the_dashboard_shares_a_crop_and_opens_it_in_neuroglancer(service: tuple[Service, str], page: Any) -> None:
    page.goto(f"{service[0].url}/view?split=instance&crop=0")
    page.get_by_label("Token").fill(service[1])
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Share instance/0").click()
    playwright.expect(page.locator("#notice")).to_contain_text(f"{service[0].url}/v1/shared/prism_")
    page.get_by_role("button", name="View instance/0 in Neuroglancer").click()
    wait_for_crop(page)
    assert service[1] not in page.url
    assert len(np.unique(pixels(page).reshape(-1, 3), axis=0)) > 100  # a picture, and not black

    with cached(service[0]) as crop:
        place = tuple(size // 2 for size in crop.shape)
        raw, label = crop.raw[(slice(None), *place)], crop.original_labels[place]
        world = [o / v + at for o, v, at in zip(crop.offset, crop.voxel_size, place, strict=True)][::-1]
        sizes = [size * 1e-9 for size in crop.voxel_size[::-1]]
    for name, expected in (("instance/crop_0", [int(value) for value in raw]), ("labels", str(label))):
        value = page.wait_for_function(_VALUE, arg=[name, world]).json_value()
        assert value == str(expected).replace(" ", "") if isinstance(expected, list) else expected in value
    state = page.evaluate("() => viewer.state.toJSON()")
    assert [state["dimensions"][axis][0] for axis in "xyz"] == pytest.approx(sizes)
    assert state["layers"][0]["source"]["url"].startswith(f"zarr2://{service[0].url}/v1/shared/prism_")


def test_the_shader_has_the_windows_of_the_facts(service: tuple[Service, str], made: dict[str, Any], page: Any) -> None:
    open_crop(page, made["neuroglancer_url"])
    shader = page.evaluate("() => viewer.state.toJSON().layers[0].shader")
    with cached(service[0]) as crop:
        windows = crop.facts.windows()
    assert shader.count("#uicontrol float ch_") == len(windows) == SPEC.channels
    for channel, (low, high) in windows.items():
        part = f"sum.{'rgb'[channel % 3]} += ch_{channel:02d} * max(0.0, (float(toRaw(getDataValue({channel})))"
        assert f"{part} - {float(low)}) / {float(high - low)})" in shader


def test_a_synapse_crop_has_its_arrays_as_hidden_layers(service: tuple[Service, str], page: Any) -> None:
    with service[0].client(service[1]) as http:
        made = http.post("/v1/links", json={"split": "synapses", "crop": 0}).json()
    open_crop(page, made["neuroglancer_url"])
    arrays = {name: each for name, each in SYNAPSES.items() if name.startswith("psd95")}
    layers = page.evaluate(f"() => {_LAYERS}.map((each) => [each.name, each.visible])")
    assert layers == [["synapses/crop_0", True], *([name, False] for name in arrays)]
    page.evaluate(f"() => {_LAYERS}.forEach((each) => each.setVisible(true))")
    place = (10, 20, 20)
    world = [o / v + at for o, v, at in zip(own_splits.RAW_OFFSET, (400, 168, 168), place, strict=True)][::-1]
    for name, (voxels, start) in arrays.items():
        expected = voxels[tuple(at - first for at, first in zip(place, start, strict=True))]
        value = page.wait_for_function(_VALUE, arg=[name, world]).json_value()
        if voxels.dtype == np.float32:
            assert np.ravel(json.loads(value)) == pytest.approx([expected])
        else:
            assert str(expected) in value


def test_the_page_needs_wasm_and_workers_and_no_more(service: tuple[Service, str]) -> None:
    with service[0].client() as http:
        page = http.get("/neuroglancer/v/1/")
        policy = page.headers["content-security-policy"]
        assert [part for part in policy.split() if "unsafe" in part] == ["'wasm-unsafe-eval';"]
        assert http.get("/neuroglancer/").headers["location"] == "v/1/"
        for name in ("nothing.js", "../pages.py", "index.html/x"):
            assert http.get(f"/neuroglancer/v/1/{name}").status_code == 404


@pytest.mark.skipif(LACKING is not None, reason=str(LACKING))
def test_it_works_below_a_sub_path_of_a_proxy(
    service: tuple[Service, str], made: dict[str, Any], page: Any, tmp_path: Path
) -> None:
    with Nginx(tmp_path, service[0].url) as proxy:
        open_crop(page, f"{proxy.url}/{made['path']}/neuroglancer")
        assert f"zarr2://{proxy.url}/{made['path']}" in page.evaluate(
            "() => viewer.state.toJSON().layers[0].source.url"
        )
        assert len(np.unique(pixels(page).reshape(-1, 3), axis=0)) > 100
