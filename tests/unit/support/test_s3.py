from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.crops import BUCKET, small_spec
from tests.support.raw_http import Listed, list_objects, request
from tests.support.s3 import S3Server


def _get(endpoint: str, key: str) -> tuple[bytes, str]:
    response = request(f"{endpoint}/{BUCKET}/{key}")
    assert response.status == 200
    return response.body, response.headers["etag"]


def test_listing_has_size_and_md5_of_every_object_in_order(s3_server: S3Server, bucket_dir: Path) -> None:
    spec = small_spec()
    listed = list_objects(s3_server.endpoint, BUCKET, spec.prefix + "/")
    assert {f"{spec.prefix}/{key}" for key in spec.keys} < set(listed)
    assert list(listed) == sorted(listed)
    for key, found in listed.items():
        content = (bucket_dir / BUCKET / key).read_bytes()
        assert found == Listed(len(content), hashlib.md5(content).hexdigest())


def test_changes_in_the_folder_are_seen_at_once(tmp_path: Path, serve_s3: Callable[[Path], S3Server]) -> None:
    folder = tmp_path / BUCKET / "crop"
    folder.mkdir(parents=True)
    server = serve_s3(tmp_path)
    for content in (b"one", b"two", b"longer"):
        (folder / "0.0").write_bytes(content)
        os.utime(folder / "0.0", (1, 1))  # the same time: only the content tells
        md5 = hashlib.md5(content).hexdigest()
        assert _get(server.endpoint, "crop/0.0") == (content, f'"{md5}"')
        assert list_objects(server.endpoint, BUCKET, "crop/") == {"crop/0.0": Listed(len(content), md5)}
    (folder / "0.0").unlink()
    (folder / "0.1").write_bytes(b"new")
    assert list(list_objects(server.endpoint, BUCKET, "crop/")) == ["crop/0.1"]
    response = request(f"{server.endpoint}/{BUCKET}/crop/0.0")
    assert response.status == 404
    assert b"NoSuchKey" in response.body


def test_the_process_ends_with_the_context(tmp_path: Path) -> None:
    with S3Server(tmp_path) as server:
        pid = server.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    server.stop()
