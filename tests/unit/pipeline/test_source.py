"""Names, ETags, digests and fingerprints of a source's objects."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismcache.layout import SourceObject
from prismcache_service.pipeline.bucket.source import crop_of_folder, fingerprint, plain_md5

MD5 = hashlib.md5(b"body").hexdigest()


def item(etag: str = MD5, *, key: str = "raw/0.0.0.0", size: int = 4) -> SourceObject:
    return SourceObject(key=key, size=size, etag=etag)


@pytest.mark.parametrize("etag", [MD5, f'"{MD5}"', MD5.upper()])
def test_a_plain_etag_is_the_md5_of_the_body(etag: str) -> None:
    assert plain_md5(etag) == MD5


@pytest.mark.parametrize("etag", ["", f"{MD5}-12", f'W/"{MD5}"', MD5[:-1], f"{MD5}0", f"{MD5[:-1]}g", f"{MD5}\n"])
def test_other_etags_are_no_digests(etag: str) -> None:
    assert plain_md5(etag) is None


OBJECTS = st.lists(
    st.builds(SourceObject, key=st.text(max_size=5), size=st.integers(0, 99), etag=st.text("0af-", max_size=3)),
    unique_by=lambda item: item.key,
    max_size=5,
)


@given(OBJECTS, st.randoms(use_true_random=False))
def test_a_fingerprint_does_not_depend_on_the_order_of_the_listing(objects: list[SourceObject], random) -> None:
    shuffled = list(objects)
    random.shuffle(shuffled)
    assert fingerprint(shuffled) == fingerprint(objects)


@pytest.mark.parametrize("change", [{"key": "raw/0.0.0.1"}, {"size": 5}, {"etag": "x"}])
def test_a_fingerprint_tells_a_change_of_key_size_or_etag(change: dict[str, object]) -> None:
    assert fingerprint([item().model_copy(update=change)]) != fingerprint([item()])


def test_a_fingerprint_tells_an_object_that_came_or_went() -> None:
    assert len({fingerprint([]), fingerprint([item()]), fingerprint([item(), item(key="raw/0.0.0.1")])}) == 3


@pytest.mark.parametrize(
    ("name", "crop"),
    [
        ("crop_0.zarr", 0), ("crop_16.zarr", 16), ("crop_.zarr", None), ("crop_1", None), ("crop_1.zarr.bak", None),
        ("crop_-1.zarr", None), ("crop_\uff11.zarr", None), ("xcrop_1.zarr", None), ("crop_1x.zarr", None),
        ("crop_007.zarr", None), ("crop_00.zarr", None), ("crop_999999.zarr", 999_999),
    ],
)  # fmt: skip
def test_only_crops_folders_are_crops(name: str, crop: int | None) -> None:
    assert crop_of_folder(name) == crop
