"""What every `Source` does; subclass `SourceConformance` for each implementation."""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

import pytest

from prismcache.errors import SourceCorruptError
from prismcache.layout import SourceObject
from prismcache_service.pipeline.bucket.source import Source, fingerprint
from tests.support.bucket import make_bucket
from tests.support.cache_root import many_objects_spec, tiny_spec
from tests.support.crops import crop_folder

T = TypeVar("T")
FOLDER = "instance/crop_0.zarr"
SPECS = [many_objects_spec(0), tiny_spec(2)]
KEY = "raw/1.2.1.1"


class SourceConformance(ABC):
    """The tests; `own_bucket_dir` is what the source shows, a copy that each test may change."""

    @pytest.fixture(scope="class")
    @classmethod
    def bucket_dir(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder with a bucket of `SPECS`."""
        return make_bucket(tmp_path_factory.mktemp("source"), SPECS)

    @abstractmethod
    def open(self, bucket_dir: Path) -> AbstractAsyncContextManager[Source]:
        """The source over the published prefix of the bucket in `bucket_dir`."""

    def put(self, path: Path, content: bytes | None) -> None:
        """Change an object of the source: the file `path` with this content, or none."""
        if content is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)

    @pytest.fixture
    def crop_dir(self, own_bucket_dir: Path) -> Path:
        """The zarr folder of instance crop 0."""
        return crop_folder(own_bucket_dir, SPECS[0])

    @pytest.fixture
    def ask(self, own_bucket_dir: Path) -> Callable[[Callable[[Source], Awaitable[T]]], T]:
        """Run one coroutine function with the open source."""

        def run(question: Callable[[Source], Awaitable[T]]) -> T:
            async def main() -> T:
                async with self.open(own_bucket_dir) as source:
                    return await question(source)

            return asyncio.run(main())

        return run

    def test_a_listing_has_every_object_with_its_size_and_a_bare_etag(self, ask, crop_dir: Path) -> None:
        listed = ask(lambda source: source.list_objects(FOLDER))
        files = {path.relative_to(crop_dir).as_posix(): path for path in crop_dir.rglob("*") if path.is_file()}
        assert set(listed) == set(files)
        for key, item in listed.items():
            content = files[key].read_bytes()
            assert (item.key, item.size) == (key, len(content))
            assert item.etag == hashlib.md5(content).hexdigest()

    def test_a_folder_that_is_not_there_lists_nothing(self, ask) -> None:
        assert ask(lambda source: source.list_objects("instance/crop_999.zarr")) == {}
        assert ask(lambda source: source.list_folders("no-such-split")) == []

    def test_a_folder_is_no_other_that_begins_alike(self, ask, crop_dir: Path) -> None:
        self.put(crop_dir.with_name("crop_0.zarr.bak") / "object", b"x")
        assert "object" not in ask(lambda source: source.list_objects(FOLDER))
        assert ask(lambda source: source.list_objects("instance/crop_0")) == {}

    def test_folders_are_listed_by_name(self, ask, crop_dir: Path) -> None:
        self.put(crop_dir.parent / "README", b"no folder")
        assert sorted(ask(lambda source: source.list_folders("instance"))) == ["crop_0.zarr", "crop_2.zarr"]

    def test_an_object_comes_whole(self, ask, crop_dir: Path) -> None:
        async def read(source: Source) -> bytes:
            return bytes(await source.read(FOLDER, (await source.list_objects(FOLDER))[KEY]))

        assert ask(read) == (crop_dir / KEY).read_bytes()

    def test_a_document_is_read_as_any_other_object(self, ask, crop_dir: Path) -> None:
        async def read(source: Source) -> bytes:
            return await source.read_document(FOLDER, (await source.list_objects(FOLDER))["raw/.zarray"])

        assert ask(read) == (crop_dir / "raw/.zarray").read_bytes()

    def test_an_empty_object_is_an_object(self, ask, crop_dir: Path) -> None:
        self.put(crop_dir / "raw" / "empty", b"")

        async def read(source: Source) -> bytes:
            item = (await source.list_objects(FOLDER))["raw/empty"]
            return bytes(await source.read(FOLDER, item))

        assert ask(read) == b""

    def test_many_are_read_at_once_and_none_is_taken_for_another(self, ask, crop_dir: Path) -> None:
        async def read(source: Source) -> dict[str, str]:
            listed = await source.list_objects(FOLDER)

            async def digest(item: SourceObject) -> tuple[str, str]:
                view = await source.read(FOLDER, item)
                return item.key, hashlib.md5(view).hexdigest()

            return dict(await asyncio.gather(*(digest(item) for item in listed.values())))

        found = ask(read)
        assert found == {key: hashlib.md5((crop_dir / key).read_bytes()).hexdigest() for key in found}
        assert len(found) > 100

    @pytest.mark.parametrize("change", ["deleted", "shorter", "longer", "flipped", "emptied"])
    def test_an_object_that_is_not_as_listed_is_never_data(self, ask, crop_dir: Path, change: str) -> None:
        path = crop_dir / KEY
        content = path.read_bytes()
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        bodies = {"shorter": content[:-1], "longer": content + b"\0", "flipped": flipped, "emptied": b""}

        async def read(source: Source) -> object:
            item = (await source.list_objects(FOLDER))[KEY]
            await asyncio.to_thread(self.put, path, bodies.get(change))
            return await source.read(FOLDER, item)

        with pytest.raises(SourceCorruptError, match=KEY.replace(".", r"\.")):
            ask(read)

    def test_the_fingerprint_of_a_listing_changes_with_any_object(self, ask, crop_dir: Path) -> None:
        def listed() -> str:
            return fingerprint(ask(lambda source: source.list_objects(FOLDER)).values())

        before = listed()
        assert listed() == before
        self.put(crop_dir / KEY, (crop_dir / KEY).read_bytes()[::-1])
        assert listed() != before

    def test_it_says_where_it_is(self, ask) -> None:
        async def names(source: Source) -> tuple[str, str]:
            return source.url, source.endpoint

        url, endpoint = ask(names)
        assert "://" in url
        assert not url.endswith("/")
        assert endpoint
