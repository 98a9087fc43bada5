"""The model behind `make bench-cluster` gives what can be reckoned by hand."""

from __future__ import annotations

import pytest

from tests.bench.cluster_model import Resource, simulate


@pytest.mark.parametrize(
    ("workers", "throughput", "full"), [(1, 0.1, "workers"), (4, 0.4, "workers"), (100, 1000 / 600, "link")]
)
def test_throughput_grows_with_the_workers_until_something_shared_is_full(workers, throughput, full) -> None:
    resources = {"core": Resource(8, alone=1), "link": Resource(600, alone=100, total=1000)}
    found = simulate(workers, resources, fixed=2)
    assert found.throughput == pytest.approx(throughput, rel=0.05)
    assert found.bottleneck == full
    assert found.load["link"] == pytest.approx(found.throughput * 0.6)
