"""``python -m tests.bench.viewer``: the dashboard's viewer on a full-size crop, timed in a real browser."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from prismcache import PrismClient
from prismcache.config import Settings
from tests.bench.process import cpu_of
from tests.support.bucket import make_bucket
from tests.support.crops import full_size_spec
from tests.support.s3 import S3Server
from tests.support.service import Service, service_config

_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_LOADS = 9
_SLICES = 100
# Resolves when the canvas shows the slice; a frame is awaited so that the pixels are on the screen.
_SCROLL = """async (count) => {
  const canvas = document.getElementById("slice");
  const slider = document.getElementById("at");
  const first = Number(slider.value);
  const start = performance.now();
  for (let i = 1; i <= count; i += 1) {
    slider.value = first + i;
    slider.dispatchEvent(new Event("input"));
    while (canvas.dataset.at !== `z${first + i}`) await new Promise(requestAnimationFrame);
  }
  return (performance.now() - start) / count;
}"""
_FIRST = """() => [
  performance.getEntriesByName('first slice')[0].startTime,
  performance.getEntriesByType('navigation')[0].loadEventEnd,
]"""


def main() -> None:
    """Print the time to the first slice and the slices a second."""
    bucket = make_bucket(Path("build/bench/viewer"), [full_size_spec()])
    with tempfile.TemporaryDirectory() as folder, S3Server(bucket) as server:
        settings = Settings.load({}, root=Path(folder, "root"), s3_endpoint_url=server.endpoint)
        with Service(service_config(settings, Path(folder, "state"), min_free_bytes=0)) as service:
            with PrismClient(url=service.url, downloads=Path(folder, "downloads"), root=settings.root) as client:
                client.ensure("instance", 0, progress=False)
            with sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=_FLAGS)
                cold = _fresh_load(browser, service.url)
                before = cpu_of(service.pid)
                loads = [_fresh_load(browser, service.url) for _ in range(_LOADS)]
                cpu = (cpu_of(service.pid) - before) / _LOADS
                page = browser.new_page()
                _first_slice(page, service.url)
                each = page.evaluate(_SCROLL, _SLICES)
                browser.close()
    first, loaded = (statistics.median(each) for each in zip(*loads, strict=True))
    print("ms from the start of the navigation, in a fresh profile:")
    print(f"the first crop that the service shows: page loaded {cold[1]:.0f}, first slice {cold[0]:.0f}")
    print(
        f"medians of {_LOADS}: page loaded {loaded:.0f}, first slice {first:.0f}; CPU of the service {1000 * cpu:.0f}"
    )
    print(f"scrolling through {_SLICES} slices, three channels and labels: {1000 / each:.1f} slices/s")


def _fresh_load(browser: Browser, url: str) -> tuple[float, float]:
    """Return what `_first_slice` does, for a profile of its own whose page fetches nothing more afterwards."""
    with browser.new_context() as profile:
        return _first_slice(profile.new_page(), url)


def _first_slice(page: Page, url: str) -> tuple[float, float]:
    """Return ms from the start of the navigation to the first slice, and to the end of the page's load event."""
    page.goto(f"{url}/view?split=instance&crop=0&axis=z&at=20")
    page.locator("#slice[data-at]").wait_for()
    first, loaded = page.evaluate(_FIRST)
    return first, loaded


if __name__ == "__main__":
    main()
