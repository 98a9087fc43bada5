"""Crops that the product made in the environment that it is developed in, and what they must hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():  # what these deprecate of each other while they are imported is not ours to mend
    warnings.simplefilter("ignore")
    for stack in ("gunpowder", "funlib.persistence", "monai.data", "napari.components", "npe2", "ome_zarr_models.v04"):
        import_module(stack)

REPOSITORY = Path(__file__).parents[2]
PYTHON = os.environ.get("PRODUCT_PYTHON", ".venv/bin/python")


@dataclass(frozen=True)
class MadeCrop:
    """A cached crop, its export, and the arrays of the source: see `tests.support.adapter_files`."""

    path: Path
    export: Path
    expected: dict[str, np.ndarray[Any, Any]]

    @property
    def offset(self) -> tuple[int, ...]:
        """World position of the first voxel, nm (Z, Y, X)."""
        return tuple(self.expected["offset"].tolist())

    @property
    def voxel_size(self) -> tuple[int, ...]:
        """(Z, Y, X) in nm."""
        return tuple(self.expected["resolution"].tolist())

    def world(self, start: tuple[int, ...], shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Offset and shape, in nm, of a box of voxels."""
        corner = tuple(o + s * v for o, s, v in zip(self.offset, start, self.voxel_size, strict=True))
        return corner, tuple(n * v for n, v in zip(shape, self.voxel_size, strict=True))


@pytest.fixture(scope="session")
def made_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `tests.support.adapter_files` fills."""
    folder = tmp_path_factory.mktemp("made")
    subprocess.run([PYTHON, "-m", "tests.support.adapter_files", folder], check=True, cwd=REPOSITORY)
    return folder


@pytest.fixture(scope="session")
def made(made_files: Path) -> Callable[[str], MadeCrop]:
    """The crop of a split: instance/0 or semantic/1."""
    folder = made_files

    def crop(split: str) -> MadeCrop:
        path = folder / "cache" / split / f"crop_{0 if split == 'instance' else 1}.h5"
        with np.load(folder / f"{split}.npz") as arrays:
            return MadeCrop(path, folder / f"{split}.zarr", dict(arrays))

    return crop


@pytest.fixture(scope="session")
def service_url(made_files: Path) -> Iterator[str]:
    """URL of a service on the cache folder, which runs in the environment that the product is developed in."""
    settings = {"ROOT": made_files / "cache", "STATE_FOLDER": made_files / "state", "PORT": 0, "MIN_FREE_BYTES": 0}
    settings |= {"S3_ENDPOINT_URL": "http://127.0.0.1:9"}  # nothing is fetched
    env = os.environ | {f"PRISMCACHE_{name}": str(value) for name, value in settings.items()}
    command = [PYTHON, "-m", "prismcache_service.web.server"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = next(line.split()[-1] for line in process.stderr if line.startswith("prismcache serves"))
            draining = threading.Thread(target=process.stderr.read, daemon=True)
            draining.start()
            yield url
        finally:
            process.kill()
            draining.join()


@pytest.fixture
def instance(made: Callable[[str], MadeCrop], tmp_path: Path) -> MadeCrop:
    return _own(made("instance"), tmp_path)


@pytest.fixture
def semantic(made: Callable[[str], MadeCrop], tmp_path: Path) -> MadeCrop:
    return _own(made("semantic"), tmp_path)


def _own(crop: MadeCrop, folder: Path) -> MadeCrop:
    """The crop in a file of its own, as HDF5 minds how else a process has a file open."""
    return replace(crop, path=Path(shutil.copy(crop.path, folder)))
