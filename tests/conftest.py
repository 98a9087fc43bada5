"""Fixtures for all tests: buckets as published, S3 servers, faulty proxies, and an environment of their own.

What they need is imported when they are asked for: the torch tests run without zarr and aiohttp.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.cache_root import Lab
    from tests.support.faults import FaultProxy
    from tests.support.s3 import S3Server

_FOREIGN = ("PRISMCACHE_", "AWS_", "RCLONE_")
_PROXIES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}


# A shell starts a background job with SIGINT ignored, and an ignored signal stays ignored in every process that a test
# starts. A signal with a handler goes back to its default in a new program.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_STDERR = pytest.StashKey[int]()


def _end_process_after(seconds: float, config: pytest.Config) -> None:
    """End this process with the stacks of all its threads, unless told otherwise within so many seconds."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=config.stash[_STDERR])


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STDERR] = os.dup(2)  # while a test runs, pytest has a file in its place
    config.pluginmanager.register(Silence(config))


def _limited(item: pytest.Item) -> Generator[None, Any, Any]:
    """End the process if setup, call or teardown takes 1.25 times the test's timeout; xdist goes on with another.

    pytest-timeout raises an exception in the main thread, once: an event loop may swallow it, and code may wait on in a
    `finally`. At the first failure pytest-timeout and pytest cancel their timers, so a teardown would have none.
    """
    marker = item.get_closest_marker("timeout")
    _end_process_after(1.25 * float(marker.args[0] if marker else item.config.getini("timeout")), item.config)
    return (yield)


pytest_runtest_setup = pytest.hookimpl(wrapper=True, tryfirst=True)(_limited)
pytest_runtest_call = pytest.hookimpl(wrapper=True, tryfirst=True)(_limited)
pytest_runtest_teardown = pytest.hookimpl(wrapper=True, tryfirst=True)(_limited)


class Silence:
    """End the process if nothing is reported for five minutes: a controller, or a worker that gets no tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self) -> None:
        _end_process_after(300, self._config)

    def pytest_sessionfinish(self) -> None:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, sched: Any) -> None:
    """Go on without a test that ended its worker, and without the files that this worker had finished.

    xdist puts all of them in its queue again. It would end one worker after another, and wait for reports of no tests.
    """
    for file, tests in list(sched.workqueue.items()):
        tests.pop(crashitem, None)
        if all(tests.values()):
            del sched.workqueue[file]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Tests that are coroutine functions run on asyncio, as the product does."""
    return "asyncio"


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No settings, credentials or caches of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(_FOREIGN) or name.upper() in _PROXIES:
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name, folder in (
        ("CACHE", ".cache"),
        ("CONFIG", ".config"),
        ("DATA", ".local/share"),
        ("STATE", ".local/state"),
    ):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(home / folder))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def bucket_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a bucket of `standard_specs`, shared by all tests: to be read only."""
    from tests.support.bucket import make_bucket, standard_specs

    return make_bucket(tmp_path_factory.mktemp("s3"), standard_specs())


@pytest.fixture
def own_bucket_dir(bucket_dir: Path, tmp_path: Path) -> Path:
    """A copy of the shared bucket that the test may change."""
    return shutil.copytree(bucket_dir, tmp_path / "s3")


@pytest.fixture(scope="session")
def s3_server(bucket_dir: Path) -> Iterator[S3Server]:
    """A real S3 server over `bucket_dir`."""
    from tests.support.s3 import S3Server

    with S3Server(bucket_dir, dir_cache_seconds=86_400) as server:
        yield server


@pytest.fixture
def fault_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy without rules in front of `s3_server`."""
    from tests.support.faults import FaultProxy

    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def serve_s3() -> Iterator[Callable[[Path], S3Server]]:
    """Start an S3 server over a folder of the test's own; ended with the test."""
    from tests.support.s3 import S3Server

    with ExitStack() as stack:
        yield lambda folder: stack.enter_context(S3Server(folder))


@pytest.fixture
def serve_faulty_s3(serve_s3: Callable[[Path], S3Server]) -> Iterator[Callable[[Path], FaultProxy]]:
    """Start an S3 server over a folder of the test's own, and a proxy in front of it; ended with the test."""
    from tests.support.faults import FaultProxy

    with ExitStack() as stack:
        yield lambda folder: stack.enter_context(FaultProxy(serve_s3(folder).endpoint))


@pytest.fixture(scope="module")
def module_lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with the crops of the module's `SPECS` in its bucket."""
    from tests.support.labs import running_lab

    with running_lab(tmp_path_factory.mktemp("lab"), request.module.SPECS) as lab:
        yield lab


@pytest.fixture
def lab(module_lab: Lab, tmp_path: Path) -> Iterator[Lab]:
    """The module's lab without faults, and a cache folder of the test's own."""
    module_lab.proxy.clear()
    yield dataclasses.replace(module_lab, root=tmp_path / "root")
    module_lab.proxy.clear()
