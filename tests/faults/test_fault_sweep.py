"""Each system call on the cache folder fails, in turn: never a wrong file, and the next call completes.

A few calls are chosen with a fixed seed. ``PRISMCACHE_SWEEP=all`` takes every call, with one error after the other.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from prismcache import Crop, PrismClient, StorageError, Verdict
from prismcache.config import Settings
from prismcache_service.cache.making_lock import LIFE_S
from tests.support.cache_root import Lab, quarantined, tiny_spec, unfinished
from tests.support.disk_faults import DiskFaults, faulty_environment
from tests.support.labs import running_lab
from tests.support.oracle import assert_crop_file_equals_oracle
from tests.support.processes import environment
from tests.support.service import Service, service_config

SPEC = tiny_spec(0)
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EACCES)
EVERYTHING = os.environ.get("PRISMCACHE_SWEEP") == "all"
FOR_EVER = 1_000_000


def _verify(client: PrismClient, path: Path) -> None:
    assert [result.verdict for result in client.verify("instance", 0)] == [Verdict.OK], f"{path} was called damaged"


def _read(_: PrismClient, path: Path) -> None:
    with Crop(path) as crop:
        assert crop.raw[:].any()
        assert crop.original_labels[:].any()


OPERATIONS: dict[str, Callable[[PrismClient, Path], Any]] = {
    "make": lambda client, _: client.ensure("instance", 0, progress=False),
    "hit": lambda client, _: client.ensure("instance", 0, progress=False),
    "verify": _verify,
    "catalog": lambda client, _: client.catalog(),
    "read": _read,
}


class Sweep:
    """One operation of one client, repeated with faults; each `round` returns what it found wrong."""

    def __init__(self, client: PrismClient, faults: DiskFaults, root: Path, operation: str) -> None:
        self._client, self._faults, self._root, self._operation = client, faults, root, operation
        [self._path] = map(Path, client.ensure("instance", 0, progress=False))
        self._right = self._digest()

    def _digest(self) -> str:
        return hashlib.sha256(self._path.read_bytes()).hexdigest()

    def run(self, times: int, few: int) -> list[dict[str, Any]]:
        """Return the rounds: each of the calls that the operation makes fails, or `few` that are chosen by chance."""
        calls = self.round(FOR_EVER, 1, errno.EIO)["calls"]
        chance = random.Random(f"{self._operation} {times}")
        every = range(1, calls + 1)
        chosen = every if EVERYTHING else sorted(chance.sample(every, min(few, calls)))
        return [self.round(number, times, ERRORS[number % len(ERRORS)]) for number in chosen]

    def round(self, number: int, times: int, error: int) -> dict[str, Any]:
        """Let the calls from `number` on fail once, and say what came of it."""
        if self._operation == "make":
            self._client.remove("instance", 0)
        before = self._path.stat().st_ino if self._path.exists() else None
        code, trouble, start = "", [], time.monotonic()
        self._faults.fail(number, times, error)
        try:
            OPERATIONS[self._operation](self._client, self._path)
        except StorageError as raised:
            code = raised.code
        except Exception as raised:  # noqa: BLE001 - what the test is looking for
            code, trouble = "untyped", [f"{type(raised).__name__}: {raised}"]
        calls, failed, what = self._faults.stop()
        is_published = self._path.exists()
        if (not code or is_published) and self._digest() != self._right:
            trouble.append("a wrong file")
        begun = time.monotonic()
        self._client.ensure("instance", 0, progress=False)
        if time.monotonic() - begun >= LIFE_S:
            trouble.append("the next call waited for a lock")
        if self._digest() != self._right:
            trouble.append("a wrong file afterwards")
        if before not in {None, self._path.stat().st_ino}:
            trouble.append("a good file was fetched again")
        trouble += [f"{name} in quarantine" for name in quarantined(self._root)]
        if self._operation == "make" and not is_published:  # so the next call made the crop, and swept before
            trouble += [f"{name} was left" for name in unfinished(self._root)]
        return {
            "call": number, "error": errno.errorcode[error], "what": what, "calls": calls, "failed": failed,
            "code": code, "trouble": trouble, "seconds": time.monotonic() - start,
        }  # fmt: skip


def main(*plans: str) -> None:
    """Print the rounds of an embedded client; run in a process with the library loaded."""
    settings = Settings.load()
    with PrismClient(settings=settings) as client:
        print(json.dumps(_rounds(client, DiskFaults(), settings.root, plans)))  # noqa: T201 - read by the test


def _rounds(
    client: PrismClient, faults: DiskFaults, root: Path, plans: Sequence[str], few: int = 6
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for plan in plans:
        operation, _, how = plan.partition(":")
        rounds = Sweep(client, faults, root, operation).run(FOR_EVER if how else 1, few)
        found += [{"plan": plan} | each for each in rounds]
    return found


def _embedded(lab: Lab, tmp_path: Path, role: str, plans: Sequence[str]) -> list[dict[str, Any]]:
    program = "import sys; from tests.faults.test_fault_sweep import main; main(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, *plans],
        env=environment(lab.settings(), faulty_environment(tmp_path, lab.root, role)),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    rounds: list[dict[str, Any]] = json.loads(done.stdout)
    return rounds


def _through_a_service(lab: Lab, tmp_path: Path, plans: Sequence[str]) -> list[dict[str, Any]]:
    faulty = faulty_environment(tmp_path, lab.root, "caller")
    config = service_config(lab.settings(), tmp_path / "state")
    with Service(config, env=faulty) as service, PrismClient(lab.root, url=service.url) as client:
        # A few seconds each: the service asks the client to come again later.
        return _rounds(client, DiskFaults(faulty["FAULT_PLAN"]), lab.root, plans, few=3)


@pytest.mark.timeout(3600 if EVERYTHING else 120)
@pytest.mark.parametrize(
    ("role", "plans"),
    [
        ("worker", ["make", "make:from then on"]),
        ("caller", ["make", "make:from then on", "hit", "hit:from then on", "verify", "catalog", "read"]),
        ("service", ["make", "hit", "verify", "catalog"]),
    ],
    ids=["worker", "caller", "service"],
)
def test_a_failing_call_is_a_typed_error_at_most(tmp_path: Path, role: str, plans: list[str]) -> None:
    with running_lab(tmp_path, [SPEC]) as lab:
        rounds = (
            _through_a_service(lab, tmp_path, plans) if role == "service" else _embedded(lab, tmp_path, role, plans)
        )
        if EVERYTHING:
            (tmp_path / "rounds.json").write_text(json.dumps(rounds, indent=1))
        assert [each for each in rounds if each["trouble"]] == []
        assert {each["plan"] for each in rounds if each["failed"]} == {*plans}
        assert_crop_file_equals_oracle(lab.cached(SPEC), lab.source(SPEC))
