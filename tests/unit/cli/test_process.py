"""The command as a process: Ctrl-C, a reader that goes away, colours, a terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
PROGRAM = """
import sys
import prismcache.client.aio
from tests.support.fake_backend import FakeBackend, broken, job, running
from prismcache import NoSpaceError
from prismcache.cli import app as cli
backend = FakeBackend({script})
prismcache.client.aio.load_backend = lambda settings: backend
cli.main()
"""


def start(script: str, *words: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(script=script), *words],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment(), **options},
    )


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process")
def test_ctrl_c_exits_130_with_one_line():
    with start("[job(running(0))]", "ensure", "instance", "0") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "instance/0: started\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert err == "interrupted; no half-written file counts as cached\n"


def test_a_reader_that_goes_away_is_no_traceback():
    with start("[]", "ls", "--json", stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert (process.wait(20), err) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("words", [("ensure", "instance", "0"), ("ls",), ("ls", "--json")], ids=" ".join)
def test_a_full_disk_behind_stdout_is_no_traceback(words):
    with Path("/dev/full").open("w") as full, start("[]", *words, stdout=full) as process:
        assert process.stderr is not None
        err = process.stderr.read()
    assert process.wait(20) == 1
    assert err == (
        "error[storage_error]: standard output cannot be written: No space left on device\n"
        "  remedy: Write the output to another place; crops that were fetched stay cached.\n"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("words", ["ensure instance 0", "ls", "ensure None 0"])
def test_a_command_without_stdout_or_stderr_ends_as_ever(closed, words):
    program = [sys.executable, "-c", PROGRAM.format(script="[]"), *words.split()]
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20, env=environment())
    assert done.returncode == (2 if "None" in words else 0)
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("no_color", [True, False])
def test_errors_are_red_only_where_that_is_wanted(no_color):
    wanted = {"TERM": "xterm-256color"} | ({"NO_COLOR": "1"} if no_color else {})
    shown = at_a_terminal("[NoSpaceError('full')]", "ensure", "instance", "0", **wanted)
    assert ("\x1b[31m\x1b[1merror[no_space]:\x1b[0m full" in shown) is not no_color
    assert "error[no_space]:" in shown


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_bars_show_in_a_terminal_and_paths_stay_on_stdout():
    script = "[job(running(0, 10)), job(running(0, 60)), job(broken(0, NoSpaceError('full')))]"
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", at_a_terminal(script, "ensure", "instance", "0", TERM="xterm"))
    assert "instance/0: failed: error[no_space]\r\n" in shown
    assert "objects" in shown
    assert "Traceback" not in shown


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("columns", ["80", "40"])
def test_a_narrow_terminal_cuts_nothing_of_the_table(columns):
    shown = at_a_terminal("[]", "ls", TERM="xterm", COLUMNS=columns)
    assert "instance/0  3x300x650x650   200x500x500   400x168x168  1.6 GB  all 3.0 MB\r\n" in shown
    assert "…" not in shown


def at_a_terminal(script: str, *words: str, **changes: str) -> str:
    """What a command writes to a terminal on stderr."""
    import pty

    ours, theirs = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
    changes = {"PYTHONPATH": environment()["PYTHONPATH"], "COLUMNS": "120"} | changes
    with start(script, *words, stdout=theirs, stderr=theirs, env=inherited | changes) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # Linux's way to say that the other side is closed
                break
            if not data:
                break
            shown += data
        process.wait(20)
    os.close(ours)
    return shown.decode()


def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "prismcache", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("prismcache ")


def test_a_token_is_made_and_listed_by_processes_of_their_own(tmp_path):
    """Nothing of the service is imported before the command asks for it."""
    env = environment() | {
        "PRISMCACHE_STATE_FOLDER": str(tmp_path / "state"),
        "PRISMCACHE_ROOT": str(tmp_path / "root"),
    }
    command = [sys.executable, "-m", "prismcache", "token"]
    made = subprocess.run([*command, "create", "ada"], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (made.returncode, made.stdout[:6]) == (0, "prism_")
    listed = subprocess.run([*command, "list"], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (listed.returncode, "ada" in listed.stdout) == (0, True)
