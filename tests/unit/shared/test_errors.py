"""One tree of errors, with stable codes, that crosses process and HTTP borders."""

from __future__ import annotations

import pickle
import re

import pytest

from prismcache import errors
from prismcache.errors import (
    ConfigError,
    InvalidSourceError,
    MissingExtraError,
    NoSpaceError,
    PrismError,
    RequestError,
    SourceError,
    error_classes,
    error_from_problem,
)
from prismcache.schema import Problem


def _all_classes(cls: type[PrismError] = PrismError) -> list[type[PrismError]]:
    return [cls, *(each for sub in cls.__subclasses__() for each in _all_classes(sub))]


CLASSES = _all_classes()
_TREE_LINE = re.compile(r"^[ │├└─]*(\w+Error)(?: +(\w+))?", re.MULTILINE)
by_name = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [cls.code for cls in CLASSES]
    assert len(codes) == len(set(codes))
    assert error_classes() == {cls.code: cls for cls in CLASSES}


@by_name
def test_codes_are_words_and_statuses_are_errors(cls: type[PrismError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", cls.code)
    assert 400 <= cls.status < 600
    assert cls.title
    assert cls.default_remedy


@by_name
@pytest.mark.parametrize("remedy", [None, "", "Wait for the upload to end."])
def test_an_error_crosses_a_border_as_itself(cls: type[PrismError], remedy: str | None) -> None:
    error = cls("instance/crop_3.zarr: “raw” has 3 axes", remedy=remedy)
    problem = Problem.model_validate_json(error.to_problem().model_dump_json())
    assert (problem.code, problem.status, problem.title) == (cls.code, cls.status, cls.title)
    assert problem.type == f"urn:prismcache:error:{cls.code}"
    for found in (error_from_problem(problem), pickle.loads(pickle.dumps(error))):
        assert type(found) is cls
        assert str(found) == str(error)
        assert found.remedy == error.remedy == (cls.default_remedy if remedy is None else remedy)


def test_the_docstring_shows_the_whole_tree() -> None:
    shown = dict(_TREE_LINE.findall(errors.__doc__ or ""))
    assert shown == {cls.__name__: "" if cls is PrismError else cls.code for cls in CLASSES}


def test_the_docstring_shows_who_inherits_from_whom() -> None:
    lines = [line for line in (errors.__doc__ or "").splitlines() if "Error" in line and line.startswith("    ")]
    above: list[str] = []
    for line in lines:
        match = re.search(r"\w+Error", line)
        assert match is not None
        above[match.start() // 4 - 1 :] = [match[0]]
        if len(above) > 1:
            assert getattr(errors, above[-1]).__base__ is getattr(errors, above[-2])


def test_a_code_of_a_newer_version_is_the_base_error_with_its_words() -> None:
    problem = Problem(title="New", status=418, code="teapot", detail="short and stout", remedy="Pour.", type="urn:x")
    found = error_from_problem(problem)
    assert type(found) is PrismError
    assert (str(found), found.remedy) == ("short and stout", "Pour.")


@pytest.mark.parametrize(
    ("cls", "base"),
    [(MissingExtraError, ConfigError), (errors.MisalignedError, InvalidSourceError), (InvalidSourceError, SourceError)],
)
def test_an_error_is_caught_as_its_base(cls: type[PrismError], base: type[PrismError]) -> None:
    with pytest.raises(base):
        raise cls("x")


@pytest.mark.parametrize(
    ("cls", "status"),
    [(NoSpaceError, 507), (RequestError, 422), (errors.UnknownCropError, 404), (errors.UnauthorizedError, 401)],
)
def test_a_status_is_what_http_calls_it(cls: type[PrismError], status: int) -> None:
    assert cls("x").to_problem().status == status
