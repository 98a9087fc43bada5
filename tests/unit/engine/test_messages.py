"""What engine and worker say to each other, a line each."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from prismcache.errors import NoSpaceError
from prismcache.schema import CropFile, Split
from prismcache_service.engine.local.messages import EVENT, Alive, Failed, Made, Progressed, WorkOrder
from prismcache_service.pipeline.progress import Progress

FILE = CropFile(
    split=Split.INSTANCE, crop=3, channels=(0, 5), path="/lab/ü\n.h5", size=2**40, sha256="0" * 64, missing_chunks=2
)


@pytest.mark.parametrize(
    "event",
    [
        Alive(),
        Progressed(progress=Progress(3, 832, 2**33, 2**34)),
        Made(file=FILE),
        Failed(problem=NoSpaceError("/lab: No space left\non device").to_problem()),
    ],
    ids=lambda event: event.kind,
)
def test_an_event_is_one_line_and_comes_back_as_itself(event: BaseModel) -> None:
    line = event.model_dump_json()
    assert "\n" not in line
    assert EVENT.validate_json(line) == event


@pytest.mark.parametrize("channels", [None, (0,), (2, 7)])
def test_an_order_is_one_line_and_comes_back_as_itself(channels: tuple[int, ...] | None) -> None:
    order = WorkOrder(split=Split.SEMANTIC, crop=16, channels=channels, strict=True, token="a" * 32)
    line = order.model_dump_json()
    assert "\n" not in line
    assert WorkOrder.model_validate_json(line) == order


@pytest.mark.parametrize("line", ["", "hello", "{}", '{"kind": "spoke"}', '{"kind": "made"}'])
def test_anything_else_is_no_event(line: str) -> None:
    with pytest.raises(ValidationError):
        EVENT.validate_json(line)
