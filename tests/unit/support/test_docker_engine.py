"""What the tests' Docker engine leaves behind when it is killed does not keep the next one from starting."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.docker_engine import ENGINE_PIDS, engine_of, forget_dead_engine


def record(folder: Path, pid: int) -> list[Path]:
    files = [folder / name for name in ENGINE_PIDS]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(pid))
    return files


def test_process_ids_that_belong_to_others_now_are_forgotten(tmp_path: Path) -> None:
    files = record(tmp_path, os.getpid())
    assert engine_of(tmp_path) is None
    forget_dead_engine(tmp_path)
    assert [file.exists() for file in files] == [False, False]
    forget_dead_engine(tmp_path)
