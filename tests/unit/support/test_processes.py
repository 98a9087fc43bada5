"""Processes that tests start behave as a user's, wherever the tests run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import subprocess, sys
import tests.conftest
show = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
subprocess.run([sys.executable, "-c", show], check=True)
"""


def test_a_process_hears_ctrl_c_although_the_tests_run_in_the_background() -> None:
    # As a shell starts a background job: with SIGINT ignored.
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
