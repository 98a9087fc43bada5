"""A real browser: Debian's chromium, or the one that ``PRISM_CHROMIUM`` names, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.dashboard import running_dashboard
from tests.support.site import Site

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-browser installs it")
playwright.expect.set_options(timeout=60_000)

CHROMIUM = os.environ.get("PRISM_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[[list[str]], playwright.Browser]]:
    """Start a browser with flags; playwright's driver can run only once in a thread."""
    if CHROMIUM is None or not Path(CHROMIUM).exists():
        pytest.skip("no chromium: `sh .ci/install-chromium` as root on Debian, or name one with PRISM_CHROMIUM")
    with playwright.sync_playwright() as driver:
        yield lambda flags: driver.chromium.launch(executable_path=CHROMIUM, args=flags)


@pytest.fixture(scope="session")
def browser(launch: Callable[[list[str]], playwright.Browser]) -> Iterator[playwright.Browser]:
    started = launch(FLAGS)
    yield started
    started.close()


@pytest.fixture(scope="session")
def shared_site(browser: playwright.Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_dashboard(tmp_path_factory.mktemp("browser")) as site:
        yield site


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    yield shared_site
    shared_site.lab.proxy.clear()


@contextmanager
def watched_page(browser: playwright.Browser, **options: Any) -> Iterator[tuple[playwright.Page, set[str]]]:
    """Open a page of a fresh profile, with the hosts that it asks.

    At the end, fail if that was more than one host, or if the console has shown an error.
    """
    context = browser.new_context(**options)
    opened = context.new_page()
    opened.set_default_timeout(30_000)
    problems: list[str] = []
    hosts: set[str] = set()
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    context.on("request", lambda request: hosts.add(request.url.split("/")[2]) if request.url[:4] == "http" else None)
    opened.problems = problems
    yield opened, hosts
    context.close()
    assert len(hosts) <= 1, f"the page asked more than one host: {hosts}"
    # A response that is an error is shown to the reader, and by the browser in its console.
    assert [text for text in problems if not text.startswith("Failed to load resource")] == []


@pytest.fixture
def page(browser: playwright.Browser) -> Iterator[playwright.Page]:
    with watched_page(browser, permissions=["clipboard-read", "clipboard-write"]) as (opened, _):
        yield opened
