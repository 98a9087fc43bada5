"""Worker processes on this machine do what an engine does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from prismcache.errors import MemoryLimitError, WorkerError
from prismcache_service.engine import Engine
from prismcache_service.engine.local import engine as local
from prismcache_service.engine.local.engine import LocalEngine
from tests.conformance.engine import EngineConformance, ignore, make, task
from tests.support.cache_root import Lab
from tests.support.processes import Watched, environment, eventually, workers_of

pytestmark = pytest.mark.anyio


class TestLocalEngine(EngineConformance):
    """`LocalEngine`."""

    @asynccontextmanager
    async def open(self, lab: Lab, *, silence: float = 60.0) -> AsyncIterator[Engine]:
        engine = LocalEngine(lab.settings(workers=self.workers), silence=silence)
        try:
            yield engine
        finally:
            await engine.aclose()

    def running(self) -> list[Watched]:
        return workers_of(os.getpid())

    async def test_a_worker_is_used_again(self, lab: Lab) -> None:
        async with self.open(lab) as engine:
            await make(engine, task(0), ignore)
            first = self.running()
            await make(engine, task(1), ignore)
            assert self.running() == first
            assert len(first) == 1

    async def test_closing_does_not_wait_for_an_idle_worker_that_is_stopped(self, lab: Lab) -> None:
        async with self.open(lab) as engine:
            await make(engine, task(0), ignore)
            [worker] = self.running()
            os.kill(worker.pid, signal.SIGSTOP)
            async with asyncio.timeout(10):
                await engine.aclose()
            assert not worker.is_running

    async def test_no_worker_is_started_before_there_is_work(self, lab: Lab) -> None:
        async with self.open(lab):
            assert self.running() == []

    @pytest.mark.parametrize(
        ("program", "named"),
        [
            ("raise SystemExit('no such library')", "exit code 1; no such library"),
            ("import os; os.kill(os.getpid(), 11)", "signal SIGSEGV"),
            ("import os; os.kill(os.getpid(), 9)", r"signal SIGKILL \(out of memory\?\)"),
        ],
        ids=["exit", "segfault", "out of memory"],
    )
    async def test_a_worker_that_cannot_start_is_told_with_its_last_words(
        self, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, named: str
    ) -> None:
        script = tmp_path / "python"
        script.write_text(f"#!{sys.executable}\n{program}\n")
        script.chmod(0o755)
        monkeypatch.setattr(local.sys, "executable", str(script))

        async with self.open(lab) as engine:
            with pytest.raises(WorkerError, match=rf"crop_0\.zarr ended 3 worker processes.*{named}"):
                await make(engine, task(0), ignore)

    @pytest.mark.parametrize("fits", [1, 0], ids=["the first crop fits", "none fits"])
    def test_memory_that_earlier_crops_left_in_a_worker_costs_no_crop(
        self, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: int
    ) -> None:
        script = tmp_path / "python"
        script.write_text(
            f"#!{sys.executable}\n"
            "from prismcache_service.engine.local.worker import main\n"
            "from prismcache_service.pipeline import materialize\n"
            "real, asked = materialize.resident_bytes, []\n"
            "def grown():\n"
            "    asked.append(None)\n"
            f"    return real() + (10**9 if len(asked) > {fits} else 0)\n"
            "materialize.resident_bytes = grown\n"
            "main()\n"
        )
        script.chmod(0o755)
        monkeypatch.setattr(local.sys, "executable", str(script))

        async def main() -> None:
            async with self.open(lab) as engine:
                if not fits:
                    with pytest.raises(MemoryLimitError):
                        await make(engine, task(0), ignore)
                    return
                await make(engine, task(0), ignore)
                first = self.running()
                await make(engine, task(1), ignore)
                assert len(self.running()) == 1
                assert self.running() != first

        asyncio.run(main())

    def test_workers_end_with_the_process_that_started_them_however_it_ends(self, lab: Lab) -> None:
        program = (
            "import asyncio, sys\n"
            "from prismcache.config import Settings\n"
            "from prismcache_service.engine.local.engine import LocalEngine\n"
            "from tests.conformance.engine import ignore, make, task\n"
            "async def main():\n"
            "    engine = LocalEngine(Settings.load())\n"
            "    await make(engine, task(0), ignore)\n"
            "    print('made', flush=True)\n"
            "    await asyncio.sleep(60)\n"
            "asyncio.run(main())\n"
        )
        command = [sys.executable, "-c", program]
        root = Path(__file__).parents[2]
        with subprocess.Popen(
            command, env=environment(lab.settings()), cwd=root, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "made\n"
            workers = workers_of(process.pid)
            assert workers
            process.kill()
        eventually(lambda: not any(worker.is_running for worker in workers), "the orphaned workers end")
