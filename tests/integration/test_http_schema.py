"""Requests made up from the OpenAPI document: every response is one that the document names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from tests.support.cache_root import tiny_spec
from tests.support.labs import running_lab
from tests.support.service import Service, service_config

CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
]
_bounded = settings(
    max_examples=3,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("http_schema")
    with running_lab(folder, [tiny_spec(0)]) as lab:
        config = service_config(lab.settings(workers=1, s3_object_timeout=2.0), folder / "state", min_free_bytes=0)
        with Service(config) as started:
            yield started
            assert started.terminate() == 0
            assert "Traceback" not in started.log


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_responses_are_as_documented(service: Service, mode: GenerationMode) -> None:
    """With requests that fit the document, and with requests that do not."""
    document = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    untested = set()
    operations = [found.ok() for found in document.get_all_operations()]
    for operation in [found for found in operations if found.label != "GET /v1/events"]:  # a stream without an end
        try:
            _fuzz(operation, mode)
        except Unsatisfiable:
            untested.add(operation.label)

    takes_nothing_wrong = {"GET /healthz", "GET /v1/shared/{capability}/neuroglancer"}
    assert untested == (takes_nothing_wrong if mode is GenerationMode.NEGATIVE else set())


def _fuzz(operation: Any, mode: GenerationMode) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @_bounded
    def test(case: Any) -> None:
        if "wait" in (case.query or {}) and isinstance(case.query["wait"], int | float):
            case.query["wait"] = min(case.query["wait"], 0.01)
        case.call_and_validate(checks=CHECKS, timeout=20)

    test()
