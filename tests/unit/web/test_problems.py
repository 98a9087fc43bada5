"""Every error as a problem: the whole tree, HTTP's own, validation, and what nobody foresaw."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from prismcache.errors import PrismError, error_classes, error_from_problem
from prismcache.schema import JobRequest, Problem
from prismcache_service.web import logs, problems
from prismcache_service.web.logs import RequestLog
from prismcache_service.web.metrics import Metrics
from prismcache_service.web.problems import HttpError, documented, problem_of

CLASSES = sorted(error_classes().values(), key=lambda cls: cls.code)


def _app(error: Exception, *, begun: bool = False) -> FastAPI:
    app = FastAPI()
    app.state.metrics = Metrics()

    @app.get("/")
    async def fail(request: Request) -> None:
        raise error

    problems.install(app)
    app.add_middleware(RequestLog)
    return app


def _get(app: Any, path: str = "/", headers: tuple[tuple[bytes, bytes], ...] = ()) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON that an app returns."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": list(headers), "client": ("10.0.0.1", 1), "root_path": "", "http_version": "1.1", "scheme": "http",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


@pytest.mark.parametrize("cls", CLASSES, ids=[cls.code for cls in CLASSES])
def test_every_error_becomes_a_problem_and_comes_back_as_itself(cls: type[PrismError]) -> None:
    status, headers, document = _get(_app(cls("crop 7 is blue", remedy="Paint it.")))

    assert status == cls.status == document["status"]
    assert headers["content-type"] == "application/problem+json"
    assert ("retry-after" in headers) == (cls.code in problems.RETRY_AFTER)
    assert ("www-authenticate" in headers) == (status == 401)
    error = error_from_problem(Problem.model_validate(document))
    assert (type(error), str(error), error.remedy) == (cls, "crop 7 is blue", "Paint it.")
    assert document["instance"].endswith(headers["x-request-id"])


def test_waiting_is_advised_only_with_errors_that_exist_and_pass() -> None:
    passing = {code for code, cls in error_classes().items() if cls.status in {429, 503, 507}}

    assert problems.RETRY_AFTER.keys() == passing - {"memory_limit"}


@pytest.mark.parametrize(("given_id", "kept"), [(b"proxy-1", True), (b"a" * 65, False), (b"a b", False), (b"", False)])
def test_a_proxy_may_give_the_id(given_id: bytes, kept: bool) -> None:
    _, headers, _ = _get(_app(RuntimeError()), "/nowhere", ((b"x-request-id", given_id),))

    assert (headers["x-request-id"] == given_id.decode()) is kept


def _invalid(value: Any) -> RequestValidationError:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(JobRequest).validate_python(value)
    return RequestValidationError([error | {"loc": ("body", *error["loc"])} for error in caught.value.errors()])


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"split": "instance", "crops": [0, "s3cret"]}, "crops.1"),
        ({"split": "instance", "crops": [True]}, "crops.0"),
        ({"split": "instance", "crops": [float("nan")]}, "crops.0"),
        ({"split": "instance", "priority": float("inf")}, "priority"),
        ({"split": "instance", "strict": "s3cret"}, "strict"),
        ({"split": "instance", "croops": "s3cret"}, "croops"),
    ],
)
def test_validation_names_the_field_and_never_the_value(value: Any, field: str) -> None:
    problem, _ = problem_of(_invalid(value))

    assert (problem.status, problem.code) == (422, "invalid_request")
    assert repr(field) in problem.detail
    assert "s3cret" not in problem.model_dump_json()


def test_an_unknown_split_has_a_code_of_its_own() -> None:
    assert problem_of(_invalid({"split": "S3cret"}))[0].code == "unknown_split"


@pytest.mark.parametrize("name", ["\ud800", "x" * 100_000, "a\r\nb\x1b[31m", "né"])
def test_strange_field_names_are_said_in_plain_ascii(name: str) -> None:
    error = _invalid({"split": "instance", name: 1})
    problem, _ = problem_of(error)

    assert problems.response_to({"headers": []}, error).status_code == problem.status
    assert problem.detail.isascii()
    assert problem.detail.isprintable()
    assert len(problem.detail) < 1500


def test_http_errors_keep_their_status_and_headers() -> None:
    problem, headers = problem_of(HttpError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "no", {"Content-Range": "x"}))

    assert (problem.status, problem.detail, headers) == (416, "no", {"Content-Range": "x"})


def test_documented_problems_carry_examples_that_are_problems() -> None:
    for status, entry in documented(*CLASSES).items():
        for code, example in entry["content"]["application/problem+json"].get("examples", {}).items():
            assert Problem.model_validate(example["value"]).code == code
            assert example["value"]["status"] == status


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is logged as JSON; afterwards logging is as it was."""
    root, stream = logging.getLogger(), io.StringIO()
    before = root.handlers[:], root.level
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("json")
    yield stream
    root.handlers[:], level = before
    root.setLevel(level)
    logs.structlog.reset_defaults()
    for name in ("uvicorn.access", "uvicorn.error", "asyncio"):
        logging.getLogger(name).disabled = False
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_each_request_is_one_line_without_query_or_token(log: io.StringIO) -> None:
    headers = ((b"authorization", b"Bearer prism_abcdefghijkl"), (b"x-request-id", b"r1"))
    status, _, document = _get(_app(RuntimeError()), "/nowhere", headers)

    assert (status, document["code"]) == (404, "invalid_request")
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["event"], line["status"], line["request"]) for line in lines] == [("request", 404, "r1")]
    assert "abcdef" not in log.getvalue()


def test_an_unexpected_error_is_in_the_log_but_not_in_the_response(log: io.StringIO) -> None:
    status, headers, document = _get(_app(RuntimeError("the reason")), headers=((b"x-request-id", b"r1"),))

    assert (status, document["code"], document["instance"]) == (500, "error", "urn:prismcache:request:r1")
    assert headers["x-request-id"] == "r1"
    assert "reason" not in json.dumps(document)
    first = json.loads(log.getvalue().splitlines()[0])
    assert (first["request"], first["level"]) == ("r1", "error")
    assert "RuntimeError: the reason" in first["exception"]


def test_secrets_are_blotted_out_of_any_line(log: io.StringIO) -> None:
    logging.getLogger("some.library").warning("sent %s", "Authorization: Bearer abc123")
    logging.getLogger("some.library").warning("postgresql+asyncpg://lab:hunter2@db/prism")
    with logs.bound(job="j1", token="hunter2"):
        logs.structlog.get_logger("x").info("made prism_abcdefghijkl", api_token="hunter2", n=1)

    assert "hunter2" not in log.getvalue()
    assert "abc123" not in log.getvalue()
    assert "abcdefghijkl" not in log.getvalue()
    assert json.loads(log.getvalue().splitlines()[-1])["job"] == "j1"
