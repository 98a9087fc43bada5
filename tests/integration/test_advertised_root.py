"""A service tells paths as its lab's machines see them, and still finds its own files."""

from __future__ import annotations

from pathlib import Path

import pytest

from prismcache import PrismClient
from prismcache.config import Settings
from prismcache.errors import ConfigError
from prismcache_service.cache import CropCache
from tests.support.s3 import S3Server
from tests.support.service import Service, service_config


def test_paths_are_told_as_others_call_the_folder(s3_server: S3Server, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    settings = Settings.load({}, root=tmp_path / "cache", s3_endpoint_url=s3_server.endpoint)
    config = service_config(settings, tmp_path / "state", advertised_root=mount)
    with Service(config) as service, service.client() as http:
        mount.symlink_to(tmp_path / "cache")
        with PrismClient(root=mount, url=service.url) as client:
            assert client.ensure("instance", [5], progress=False) == [str(mount / "instance" / "crop_5.h5")]
        told = str(mount / "instance" / "crop_5.h5")
        assert http.get("/v1/crops/instance/5").json()["files"][0]["path"] == told
        assert http.get("/v1/jobs").json()["jobs"][0]["crops"][0]["file"]["path"] == told
        body = http.get("/v1/crops/instance/5/file").content
    assert body == (tmp_path / "cache" / "instance" / "crop_5.h5").read_bytes()


@pytest.mark.parametrize(
    ("shown", "words"), [("other", "another folder on this machine"), ("lab/prism", "not an absolute path")]
)
def test_a_name_that_cannot_be_right_is_refused(tmp_path: Path, shown: str, words: str) -> None:
    for name in ("other", "cache"):
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=words):
        CropCache(tmp_path / "cache", Path(shown) if "/" in shown else tmp_path / shown).check_shown_root()
    assert list((tmp_path / "cache").iterdir()) == [], "no probe is left behind"


def test_another_name_of_the_same_folder_is_found_right(s3_server: S3Server, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "mount").symlink_to(tmp_path / "cache")
    settings = Settings.load({}, root=tmp_path / "cache", s3_endpoint_url=s3_server.endpoint)
    with Service(service_config(settings, tmp_path / "state", advertised_root=tmp_path / "mount")) as service:
        assert f"clients get paths below {tmp_path / 'mount'}" in service.log
