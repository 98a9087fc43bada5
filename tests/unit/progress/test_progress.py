"""Progress: plain lines with a clock of the test's own, bars on a console that is a string."""

from __future__ import annotations

import io
import sys
import threading
from unittest.mock import Mock

import pytest

from prismcache.errors import NoSpaceError
from prismcache.numbers import format_bytes, format_duration, format_rate
from prismcache.progress.bars import BarReporter
from prismcache.progress.reporter import CallbackReporter, LineReporter, SignOfLife, make_reporter
from prismcache.progress.text import Total, amount, total_of
from prismcache.schema import CropDownload, CropProgress, State
from tests.support.fake_backend import MB, broken, crop_file, job, queued, ready, running


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(stream: io.StringIO) -> list[str]:
    lines = stream.getvalue().splitlines()
    stream.seek(0)
    stream.truncate()
    return lines


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def lines(stream: io.StringIO, clock: Clock) -> LineReporter:
    return LineReporter(stream, clock)


def download(crop: int, done: int, state: State = State.RUNNING) -> CropDownload:
    """A file of 3 MB of which so many are here."""
    file = crop_file(crop) if state is State.DONE else None
    return CropDownload(crop=crop, state=state, bytes_done=done * MB, bytes_total=3 * MB, file=file)


def deriving(crop: CropProgress, done: int) -> CropProgress:
    """A crop of whose product `done` of 50 million voxels are computed."""
    return crop.model_copy(update={"voxels_done": done * MB, "voxels_total": 50 * MB})


READY_IN = "instance/0: ready in"
HALF = "instance/0: 50%, 50.0 MB of 100 MB, 50 of 100 objects"
STORIES = {
    "a crop starts and is ready": [
        (0, job(queued(0)), []),
        (0, job(running(0)), ["instance/0: started"]),
        (4, job(ready(0)), ["instance/0: ready in 4.0 s, 100 MB fetched at 25.0 MB/s, 3.0 MB on disk"]),
        (0, job(ready(0)), []),
    ],
    "another process makes the crop": [
        (0, job(running(0, total=0)), ["instance/0: started"]),
        (4, job(ready(0, total=0)), ["instance/0: ready in 4.0 s, made by another process, 3.0 MB on disk"]),
    ],
    "a line follows after three seconds, later after a tenth of the time so far": [
        (0, job(running(0)), ["instance/0: started"]),
        (2, job(running(0, 40)), []),
        (8, job(running(0, 50)), [f"{HALF}, 5.0 MB/s, 10 s left"]),
        (2, job(running(0, 50)), []),
        (88, job(running(0, 50)), [f"{HALF}, 500 kB/s, 1:40 min left"]),
        (9, job(running(0, 50)), []),
        (3, job(running(0, 50)), [f"{HALF}, 446 kB/s, 1:52 min left"]),
    ],
    "a cached crop is not mentioned": [(0, job(ready(0), queued(5)), []), (0, job(ready(0), ready(5)), [])],
    "crops fail and are cancelled": [
        (
            0,
            job(running(0), broken(5, NoSpaceError("no room"))),
            ["instance/0: started", "instance/5: failed: error[no_space]"],
        ),
        (0, job(CropProgress(crop=0, state=State.CANCELLED)), ["instance/0: cancelled"]),
    ],
    "a listing that is being read has no numbers": [
        (0, job(running(0, total=0)), ["instance/0: started"]),
        (60, job(running(0, total=0)), ["instance/0: 0%, reading the listing"]),
    ],
    "a download, begun earlier, has its own rate and end": [
        (0, job(running(0)), ["instance/0: started"]),
        (4, job(ready(0)), ["instance/0: ready in 4.0 s, 100 MB fetched at 25.0 MB/s, 3.0 MB on disk"]),
        (100, job(download(0, 1)), ["instance/0: downloading 3.0 MB"]),
        (10, job(download(0, 2)), ["instance/0: 67%, 2.0 MB of 3.0 MB downloaded, 100 kB/s, 10 s left"]),
        (10, job(download(0, 3, State.DONE)), ["instance/0: downloaded in 20 s, 3.0 MB at 100 kB/s"]),
        (0, job(ready(0)), []),
    ],
    "a product is made after its crop": [
        (0, job(running(0)), ["instance/0: started"]),
        (2, job(running(0, 100)), []),
        (8, job(deriving(running(0, 100), 12)), ["instance/0: 24%, 12.0 of 50.0 million voxels computed"]),
        (5, job(deriving(ready(0), 50)), ["instance/0: ready in 15 s, 100 MB fetched, 3.0 MB on disk"]),
    ],
    "a product is made from a cached crop": [
        (0, job(running(0, total=0)), ["instance/0: started"]),
        (2, job(deriving(ready(0, total=0), 50)), [f"{READY_IN} 2.0 s, made from the cached crop, 3.0 MB on disk"]),
    ],
    "the service had the crop": [
        (0, job(ready(0), ready(5)), []),
        (0, job(download(0, 0), ready(5)), ["instance/0: downloading 3.0 MB"]),
        (3, job(download(0, 3, State.DONE), ready(5)), ["instance/0: downloaded in 3.0 s, 3.0 MB at 1.0 MB/s"]),
    ],
}


@pytest.mark.parametrize("name", STORIES)
def test_lines_tell(name, lines, stream, clock):
    for seconds, snapshot, said in STORIES[name]:
        clock.now += seconds
        lines.update(snapshot)
        assert written(stream) == said
    lines.close()


def test_a_log_that_is_closed_stops_nothing(lines, stream):
    stream.close()
    lines.update(job(running(0)))


def test_bars_go_from_bytes_to_voxels_when_a_product_begins(clock):
    terminal = Terminal()
    bars = BarReporter(terminal, clock, width=140)
    for snapshot in (running(0), running(0, 50), running(0, 100), deriving(running(0, 100), 0)):
        bars.update(job(snapshot))
        clock.now += 1
    terminal.truncate(0)
    bars.update(job(deriving(running(0, 100), 20)))
    assert bars._progress is not None
    bars._progress.refresh()
    drawn = terminal.getvalue()
    bars.close()
    assert "20.0 of 50.0 million voxels computed" in drawn
    assert "MB/s" not in drawn


def test_bars_show_a_download_and_keep_the_total_of_what_is_made(clock):
    terminal = Terminal()
    bars = BarReporter(terminal, clock, width=120)
    bars.update(job(ready(0), running(1), running(5)))
    bars.update(job(ready(0), ready(1), running(5)))
    bars.update(job(download(0, 1), ready(1), running(5)))
    clock.now += 1
    bars.update(job(download(0, 2), ready(1), running(5)))
    bars.update(job(download(0, 3, State.DONE), ready(1), running(5)))
    bars.update(job(ready(0), download(1, 2), running(5)))
    assert bars._progress is not None
    bars._progress.refresh()
    drawn = terminal.getvalue()
    bars.close()
    assert "2.0 MB of 3.0 MB downloaded" in drawn
    assert "1 of 2 crops" in drawn
    assert "instance/0: downloaded in 1.0 s, 3.0 MB at 2.0 MB/s" in drawn


def test_bars_show_crops_and_total_and_leave_lines(clock):
    terminal = Terminal()
    bars = BarReporter(terminal, clock, width=120)
    bars.update(job(ready(0), queued(1), queued(5)))
    assert terminal.getvalue() == "", "nothing runs yet"
    bars.update(job(ready(0), running(1), queued(5)))
    clock.now += 2
    bars.update(job(ready(0), running(1, 40), running(5, 10)))
    assert bars._progress is not None
    bars._progress.refresh()
    drawn = terminal.getvalue()
    for text in (
        "instance/1",
        "40.0 MB of 100 MB, 40 of 100 objects",
        "instance/5",
        "all",
        "0 of 2 crops, 50.0 MB of 200 MB",
    ):
        assert text in drawn
    assert "instance/0" not in drawn
    clock.now += 2
    bars.update(job(ready(0), ready(1), broken(5, NoSpaceError("no room"))))
    bars.close()
    bars.close()
    drawn = terminal.getvalue()
    assert "instance/1: ready in 4.0 s, 100 MB fetched at 25.0 MB/s, 3.0 MB on disk\n" in drawn
    assert "instance/5: failed: error[no_space]\n" in drawn


def test_one_crop_needs_no_total(clock):
    terminal = Terminal()
    bars = BarReporter(terminal, clock, width=120)
    bars.update(job(ready(0), running(1)))
    bars.close()
    assert "all" not in terminal.getvalue()


def test_a_total_is_about_right_before_every_size_is_known():
    crops = [running(0, 50), running(1, 10, 300), queued(5)]
    assert total_of(crops) == Total(0, 3, 60_000_000, 600_000_000, is_estimate=True)
    assert total_of([ready(0), broken(1, NoSpaceError(""))]) == Total(2, 2, 100_000_000, 100_000_000, is_estimate=False)
    assert total_of([queued(0)]) == Total(0, 1, 0, 0, is_estimate=True)
    assert amount(queued(0)) == "reading the listing"


def test_what_is_shown_follows_the_stream(monkeypatch, clock):
    monkeypatch.setenv("TERM", "xterm")

    def shown(progress: bool | None, stream: io.StringIO) -> object:
        reporter = make_reporter(progress, stream)
        reporter.close()
        return reporter.reporter

    assert isinstance(shown(None, Terminal()), BarReporter)
    assert isinstance(shown(None, io.StringIO()), LineReporter)
    assert isinstance(shown(True, io.StringIO()), BarReporter)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(shown(None, Terminal()), LineReporter)
    monkeypatch.setattr("sys.stderr", None)
    for progress in (None, False, True):
        quiet = make_reporter(progress)
        quiet.update(job(running(0)))
        quiet.close()
    seen = []
    reporter = make_reporter(seen.append)
    assert isinstance(reporter, CallbackReporter)
    reporter.update(job(ready(0, crop_file(0))))
    assert len(seen) == 1


def test_figures():
    assert [format_bytes(n) for n in (0, 999, 1000, 99_940, 99_960, 999_499, 999_500, 1.64e9, 2.5e15, 4e18)] == [
        "0 B", "999 B", "1.0 kB", "99.9 kB", "100 kB", "999 kB", "1.0 MB", "1.6 GB", "2.5 PB", "4000 PB",
    ]  # fmt: skip
    assert [format_duration(s) for s in (0, 9.94, 9.96, 59.94, 59.96, 3599, 3600, 7500)] == [
        "0.0 s", "9.9 s", "10 s", "60 s", "1:00 min", "59:59 min", "1:00 h", "2:05 h",
    ]  # fmt: skip
    assert format_rate(5_000_000, 0) == "5.0 GB/s"


@pytest.mark.parametrize(
    ("snapshot", "line"),
    [
        (None, "no response yet after {} s; still trying"),
        (job(queued(0)), "no crop has started after {} s; the job waits for its turn"),
    ],
)
def test_a_sign_of_life_is_written_while_nothing_is_heard_ever_more_rarely(stream, clock, snapshot, line):
    reporter = SignOfLife(LineReporter(stream, clock), 3600)
    if snapshot is not None:
        reporter.update(snapshot)
        written(stream)
    for count in range(1, 8):
        reporter.tick(count)
    reporter.close()
    reporter.tick(8)
    assert written(stream) == [line.format(3600 * count) for count in (1, 2, 4)]


def test_a_crop_of_which_nothing_is_fetched_is_said_to_be_running(stream, clock):
    reporter = SignOfLife(LineReporter(stream, clock), 3600)
    reporter.update(job(running(0, total=0)))
    for count in (1, 2):
        clock.now += 3
        reporter.tick(count)
    reporter.close()
    assert written(stream) == [
        "instance/0: started",
        "nothing is fetched yet after 3600 s; still trying",
        "instance/0: 0%, reading the listing",
    ]


def test_the_first_sign_of_life_comes_by_itself():
    said = threading.Event()
    reporter = SignOfLife(CallbackReporter(print), 0.01)
    reporter.reporter = Mock(say=lambda line: said.set())
    assert said.wait(20)
    reporter.close()


def test_while_nothing_new_is_heard_of_a_crop_its_last_snapshot_is_shown_again(stream, clock):
    reporter = SignOfLife(LineReporter(stream, clock), 3600)
    reporter.update(job(running(0, 10)))
    clock.now += 5
    reporter.tick(1)
    reporter.close()
    assert written(stream) == [
        "instance/0: started",
        "instance/0: 10%, 10.0 MB of 100 MB, 10 of 100 objects",
    ]


class Kernel:
    """Stands in for IPython in a notebook: keeps what a cell's output shows."""

    kernel = object()

    def __init__(self) -> None:
        self.shown: list[object] = []

    def get_ipython(self) -> Kernel:
        return self

    def display(self, shown: object, *, display_id: bool) -> Kernel:
        assert display_id
        self.shown.append(shown)
        return self

    def update(self, shown: object) -> None:
        self.shown[-1] = shown


def test_a_notebook_shows_one_output_that_is_updated_in_place(monkeypatch, capsys, clock):
    kernel = Kernel()
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", kernel)
    reporter = make_reporter(None, clock=clock)
    reporter.update(job(queued(0)))
    assert kernel.shown == []
    reporter.update(job(running(0)))
    clock.now += 10
    reporter.update(job(running(0, 50)))
    [shown] = kernel.shown
    line = "instance/0: 50%, 50.0 MB of 100 MB, 50 of 100 objects, 5.0 MB/s, 10 s left"
    assert shown._repr_html_() == f'<div><progress max="1" value="0.500"></progress> {line}</div>'
    assert repr(shown) == line
    reporter.update(job(running(0, 51)))
    assert kernel.shown == [shown], "a moment later is too soon for the browser"
    clock.now += 10
    reporter.update(job(ready(0)))
    reporter.close()
    [shown] = kernel.shown
    assert shown._repr_html_() == "<div>instance/0: ready in 20 s, 100 MB fetched at 5.0 MB/s, 3.0 MB on disk</div>"
    assert capsys.readouterr().err == ""
