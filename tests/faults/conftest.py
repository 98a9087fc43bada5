"""What all tests of faults share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def unmeasured(unmeasured_processes: None) -> None:
    """Most processes here are killed, and with them go their figures."""
