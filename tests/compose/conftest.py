"""One engine and one build of the images for all tests of the compose file (`make test-compose`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.compose import Stack
from tests.support.docker_engine import Engine, NoEngineError, running_engine


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A running engine with the images, built from this tree by the compose file."""
    try:
        with running_engine() as running:
            stack = Stack(running, tmp_path_factory.mktemp("build"))
            stack.compose("build", "prismcache", "s3")
            yield running
    except NoEngineError as error:
        pytest.skip(f"no Docker engine can run here: {error}")
