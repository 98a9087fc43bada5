"""What engine and worker send to each other, a line each."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter
from pydantic_core import to_json

from prismcache.errors import NoSpaceError
from prismcache.schema import NO_CONTEXT, CropFile, Product, Progress, Split
from prismcache_service.cache import CropName
from prismcache_service.engine import CropTask, News

FILE = CropFile(
    split=Split.INSTANCE, crop=3, channels=(0, 5), path="/lab/ü\n.h5", size=2**40, sha256="0" * 64, missing_chunks=2
)


@pytest.mark.parametrize(
    "message",
    [
        News(),
        News(progress=Progress(objects_done=3, objects_total=832, bytes_done=2**33, bytes_total=2**34)),
        News(outcome=FILE),
        News(outcome=NoSpaceError("/lab: No space left\non device").to_problem()),
        CropTask(CropName(Split.SEMANTIC, 7, None, "all"), "a1", strict=True),
        CropTask(CropName(Split.INSTANCE, 0, (1, 4)), "b2"),
        CropTask(CropName(Split.INSTANCE, 0, None, NO_CONTEXT, Product.FACTS), "b2"),
    ],
    ids=str,
)
def test_a_message_is_one_line_and_comes_back_as_itself(message: News | CropTask) -> None:
    line = to_json(message)
    assert b"\n" not in line
    assert TypeAdapter(type(message)).validate_json(line) == message
