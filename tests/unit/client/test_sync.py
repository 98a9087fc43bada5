"""PrismClient: its thread, Ctrl-C, forks, pickles; the flow itself is shown with AsyncPrismClient."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest

from prismcache import (
    ConfigError,
    MissingChunksWarning,
    NoSpaceError,
    PrismClient,
    RequestError,
    Settings,
    UnknownSplitError,
)
from tests.support.fake_backend import FakeBackend, broken, crop_file, in_memory, job, ready, running
from tests.support.processes import eventually

CROP_0, CROP_5 = "/lab/prism/instance/crop_0.h5", "/lab/prism/instance/crop_5.h5"
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[FakeBackend]:
    """What clients load instead of the pipeline, in order."""
    loaded: list[FakeBackend] = []

    def load(settings: Settings) -> FakeBackend:
        backend = in_memory(settings)
        assert isinstance(backend, FakeBackend)
        loaded.append(backend)
        return backend

    monkeypatch.setattr("prismcache.client.aio.load_backend", load)
    return loaded


def our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prismcache"]


def test_paths_come_in_the_order_asked_with_duplicates():
    with PrismClient(backend=FakeBackend()) as client:
        assert client.ensure("instance", [5, 0, 5], progress=False) == [CROP_5, CROP_0, CROP_5]
        assert list(client.iter_ensure("instance", [5, 0, 5], progress=False)) == [CROP_5, CROP_5, CROP_0]
        assert client.ensure_files("instance", 0, progress=False) == [crop_file(0)]


def test_nothing_starts_before_it_is_needed():
    before = our_threads()
    client = PrismClient(backend=FakeBackend())
    assert client.ensure("instance", [], progress=False) == []
    for wrong, kind in (("Train", UnknownSplitError), (3, UnknownSplitError)):
        with pytest.raises(kind):
            client.ensure(wrong, 0)
    with pytest.raises(RequestError):
        client.ensure("instance", "some")
    assert our_threads() == before
    client.close()


def test_a_thread_lives_as_long_as_its_client(embedded):
    before = len(our_threads())
    with PrismClient("/lab/prism") as client:
        client.catalog()
        client.catalog()
        assert len(our_threads()) == before + 1
    assert len(our_threads()) == before
    client.catalog()
    assert len(our_threads()) == before + 1
    del client
    gc.collect()
    eventually(lambda: len(our_threads()) == before, "the thread of a collected client ends")
    assert [backend.closed for backend in embedded] == [True, True]


def test_collecting_a_client_waits_for_nothing_that_its_loop_needs(embedded, monkeypatch):
    """The collector may run in a thread that holds a lock of logging or of a thread pool."""
    needed = threading.Lock()

    async def close(backend: FakeBackend) -> None:
        with needed:
            backend.closed = True

    monkeypatch.setattr(FakeBackend, "aclose", close)
    client = PrismClient("/lab/prism")
    client.catalog()
    with needed:
        del client
        gc.collect()
        assert not embedded[0].closed
    eventually(lambda: embedded[0].closed, "the backend is closed")


def test_a_given_backend_is_not_closed():
    backend = FakeBackend()
    with PrismClient(backend=backend) as client:
        client.catalog()
    assert not backend.closed


def test_threads_share_one_client(embedded):
    with PrismClient("/lab/prism") as client:
        found: list[list[str]] = []
        threads = [
            threading.Thread(target=lambda: found.append(client.ensure("instance", 0, progress=False)), daemon=True)
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == [[CROP_0]] * 8
        assert len(embedded) == 1


def test_works_inside_a_running_loop():
    async def cell() -> list[str]:
        with PrismClient(backend=FakeBackend()) as client:
            return client.ensure("instance", 0, progress=False)

    assert asyncio.run(cell()) == [CROP_0]


def test_callbacks_run_in_the_callers_thread():
    seen = []
    with PrismClient(backend=FakeBackend([job(running(0)), job(ready(0))])) as client:
        client.ensure("instance", 0, progress=lambda _: seen.append(threading.get_ident()))
    assert seen == [threading.get_ident()] * 2


def test_a_callback_that_fails_cancels():
    backend = FakeBackend([job(running(0))])
    with PrismClient(backend=backend) as client, pytest.raises(ZeroDivisionError):
        client.ensure("instance", 0, progress=lambda _: 1 / 0)
    assert backend.cancelled == ["job-1"]


def test_leaving_the_loop_early_cancels_what_remains():
    backend = FakeBackend([job(ready(0), running(5))])
    with PrismClient(backend=backend) as client:
        paths = client.iter_ensure("instance", [0, 5], progress=False)
        assert next(paths) == CROP_0
        assert backend.cancelled == []
        paths.close()
    assert backend.cancelled == ["job-1"]


def test_an_abandoned_iterator_cancels_from_the_loops_own_thread_too():
    backend = FakeBackend([job(ready(0), running(5))])
    client = PrismClient(backend=backend)
    paths = client.iter_ensure("instance", [0, 5], progress=False)
    next(paths)
    abandoned = [paths]
    del paths

    async def collect() -> None:
        abandoned.clear()

    client._owner.running().loop.run(collect)
    while not backend.cancelled:
        time.sleep(0.001)
    client.close()


def test_a_client_collected_in_its_own_thread_stops_it(embedded):
    client = PrismClient("/lab/prism")
    client.catalog()
    loop = client._owner.running().loop
    abandoned = [client]
    del client

    async def collect() -> None:
        abandoned.clear()

    loop.run(collect)
    loop._thread.join(10)
    assert not loop._thread.is_alive()
    assert embedded[0].closed


def test_errors_keep_their_class_and_notes():
    failures = job(broken(0, NoSpaceError("full")), broken(5, NoSpaceError("full too")))
    with (
        PrismClient(backend=FakeBackend([failures])) as client,
        pytest.raises(NoSpaceError, match=r"^full\b") as caught,
    ):
        client.ensure("instance", [0, 5], progress=False)
    assert caught.value.__notes__[1:] == ["also failed: crop instance/5: error[no_space]: full too"]


def test_absent_chunks_are_warned_of_in_the_callers_name():
    backend = FakeBackend([job(ready(0, crop_file(0, missing_chunks=1)))])
    with PrismClient(backend=backend) as client, pytest.warns(MissingChunksWarning, match="1 chunk is") as caught:
        client.ensure("instance", 0, progress=False)
    assert caught[0].filename == __file__


def test_pickles_as_its_settings(embedded):
    with PrismClient("/lab/prism", token="secret", workers=3) as client:
        client.catalog()
        copy = pickle.loads(pickle.dumps(client))
        assert copy.settings == client.settings
        assert "secret" not in repr(copy)
        assert copy.ensure("instance", 0, progress=False) == [CROP_0]
        copy.close()
    assert len(embedded) == 2
    assert pickle.loads(pickle.dumps(PrismClient(backend=FakeBackend())))._owner._backend is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_worker_starts_anew(embedded):
    client = PrismClient("/lab/prism")
    given = PrismClient(backend=FakeBackend())
    client.catalog()
    given.catalog()
    child = os.fork()
    if child == 0:
        # A hang must end the child; pytest-timeout's own handler would raise, and the child go on as a second pytest.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        try:
            code = _in_the_fork(client, given, embedded)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.ensure("instance", 0, progress=False) == [CROP_0], "the parent's own thread is untouched"
    client.close()
    given.close()


def _in_the_fork(client: PrismClient, given: PrismClient, embedded: list[FakeBackend]) -> int:
    """The number of the first thing that went wrong; 0 if nothing did."""
    if client.ensure("instance", 0, progress=False) != [CROP_0]:
        return 1
    client.close()
    try:
        given.catalog()
    except ConfigError:
        del given
        gc.collect()  # the parent's thread is not here to be stopped, and must not be waited for
    else:
        return 2
    return 0 if [backend.closed for backend in embedded] == [False, True] else 3


INTERRUPTED = """
import sys, threading
from prismcache import PrismClient
from tests.support.fake_backend import FakeBackend, job, ready, running

backend = FakeBackend([job(ready(0), running(5))])
with PrismClient(backend=backend) as client:
    try:
        for path in client.iter_ensure("instance", [0, 5], progress=False):
            print(path, flush=True)
    except KeyboardInterrupt:
        print("interrupted", backend.cancelled, flush=True)
print("closed", [thread.name for thread in threading.enumerate()], flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process")
def test_ctrl_c_cancels_and_closes_without_a_hang():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True, env=environment, cwd=REPOSITORY
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == CROP_0 + "\n"
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
    assert rest.splitlines() == ["interrupted ['job-1']", "closed ['MainThread']"]


UNCLOSED = """
import asyncio, sys
import prismcache.client.aio
from prismcache import PrismError
from tests.support.fake_backend import FakeBackend, broken, job, ready, running

class Backend(FakeBackend):
    async def aclose(self):
        await asyncio.to_thread(print, "closed")  # which fails once the interpreter ends

    async def cancel(self, job):
        await asyncio.to_thread(print, "cancelled")

prismcache.client.aio.load_backend = lambda settings: Backend(script)
script = []
"""
PROGRAMS = {
    "cached": "client = prismcache.PrismClient('/lab/prism'); print(client.ensure('instance', 0)[0])",
    "an exception is kept": """
script = [job(broken(0, PrismError('failed')))]
try:
    prismcache.PrismClient('/lab/prism').ensure('instance', 0, progress=False)
except PrismError as error:
    kept = error
    print(error)
""",
    "an iterator is kept": """
script = [job(ready(0), running(5))]
client = prismcache.PrismClient('/lab/prism')
paths = client.iter_ensure('instance', [0, 5], progress=False)
print(next(paths))
""",
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_an_unclosed_client_ends_with_the_process_in_silence(tmp_path, case):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", UNCLOSED + PROGRAMS[case]],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["failed" if case == "an exception is kept" else CROP_0]


def test_a_traceback_has_no_frames_of_the_event_loop():
    client = PrismClient(backend=FakeBackend([job(broken(0, NoSpaceError("full")))]))
    with client, pytest.raises(NoSpaceError) as caught:
        client.ensure("instance", 0, progress=False)
    ours = {frame.name for frame in traceback.extract_tb(caught.tb)} - {"<dictcomp>"}  # a frame before Python 3.12
    assert ours == {"test_a_traceback_has_no_frames_of_the_event_loop", "ensure", "_arranged", "_files"}
    assert caught.value.__cause__ is None
