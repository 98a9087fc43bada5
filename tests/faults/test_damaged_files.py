"""Cached files that somebody or a disk damaged: set aside, made again, never returned."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prismcache import PrismClient, Verdict
from tests.support.cache_root import Lab, published, quarantined, tiny_spec, unfinished
from tests.support.labs import running_lab
from tests.support.oracle import assert_crop_file_equals_oracle
from tests.support.processes import run


def _flipped(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


def _zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _zeroed_but_for_its_signature(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:8].ljust(path.stat().st_size, b"\0"))


def _link_to_a_copy(path: Path) -> None:
    copy = path.with_name("copy")
    path.rename(copy)
    path.symlink_to(copy)


def _link_to_another_crop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("crop_90.h5"))


def _dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nonexistent/crop.h5")


def _folder(path: Path) -> None:
    path.unlink()
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_text("mine")


def _named_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _another_crop(path: Path) -> None:
    shutil.copy2(path.with_name("crop_90.h5"), path)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": _flipped,
    "zeroed": _zeroed,
    "zeroed-but-for-its-signature": _zeroed_but_for_its_signature,
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "deleted": os.unlink,
    "link-to-a-copy": _link_to_a_copy,
    "link-to-another-crop": _link_to_another_crop,
    "dangling-link": _dangling_link,
    "folder": _folder,
    "named-pipe": _named_pipe,
    "another-crop": _another_crop,
}
SPECS = {name: tiny_spec(crop) for crop, name in enumerate(DAMAGES)}
OTHER = tiny_spec(90, channels=4)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("damage"), [*SPECS.values(), OTHER]) as lab:
        yield lab


@pytest.fixture(scope="module")
def client(lab: Lab) -> Iterator[PrismClient]:
    with PrismClient(settings=lab.settings()) as client:
        client.ensure("instance", [*(spec.crop for spec in SPECS.values()), OTHER.crop], progress=False)
        yield client


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_set_aside_and_made_again(lab: Lab, client: PrismClient, name: str) -> None:
    spec = SPECS[name]
    path = lab.cached(spec)
    content, aside = path.read_bytes(), len(quarantined(lab.root))
    DAMAGES[name](path)
    assert [info.files for info in client.catalog("instance") if info.crop == spec.crop] == [()]
    [result] = client.verify("instance", spec.crop)
    assert result.verdict is Verdict.CORRUPT
    assert client.ensure("instance", spec.crop, progress=False) == [str(path)]
    assert path.is_file()
    assert not path.is_symlink()
    assert path.read_bytes() == content
    assert_crop_file_equals_oracle(path, lab.source(spec))
    assert len(quarantined(lab.root)) == aside + (name != "deleted")
    assert_crop_file_equals_oracle(lab.cached(OTHER), lab.source(OTHER))
    assert unfinished(lab.root) == []


@pytest.mark.parametrize("name", ["flipped", "folder", "named-pipe", "dangling-link"])
def test_repair_of_a_damaged_file(lab: Lab, client: PrismClient, name: str) -> None:
    spec = SPECS[name]
    client.ensure("instance", spec.crop, progress=False)
    DAMAGES[name](lab.cached(spec))
    [result] = client.verify("instance", spec.crop, repair=True)
    assert result.verdict is Verdict.REPAIRED
    assert_crop_file_equals_oracle(lab.cached(spec), lab.source(spec))


@pytest.mark.parametrize("name", ["folder", "named-pipe"])
def test_what_is_no_file_can_be_removed(lab: Lab, client: PrismClient, name: str) -> None:
    spec = SPECS[name]
    client.ensure("instance", spec.crop, progress=False)
    DAMAGES[name](lab.cached(spec))
    done = run(lab.settings(), "rm", "instance", str(spec.crop))
    assert "Traceback" not in done.stderr
    assert client.ensure("instance", spec.crop, progress=False) == [str(lab.cached(spec))]
    assert_crop_file_equals_oracle(lab.cached(spec), lab.source(spec))


def test_damage_that_keeps_size_and_times_is_found_by_verify(lab: Lab, client: PrismClient) -> None:
    """Ensure trusts an unchanged stamp; the change time cannot be set back, so only the hardware can do this."""
    spec = SPECS["flipped"]
    path = lab.cached(spec)
    client.ensure("instance", spec.crop, progress=False)
    status = path.stat()
    _flipped(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert client.ensure("instance", spec.crop, progress=False) == [str(path)]
    assert_crop_file_equals_oracle(path, lab.source(spec))


def test_a_touched_file_is_read_again_and_kept(lab: Lab, client: PrismClient) -> None:
    spec = SPECS["longer"]
    path = lab.cached(spec)
    client.ensure("instance", spec.crop, progress=False)
    inode = path.stat().st_ino
    path.touch()
    aside = quarantined(lab.root)
    client.ensure("instance", spec.crop, progress=False)
    assert (path.stat().st_ino, quarantined(lab.root)) == (inode, aside)


def test_a_file_that_nobody_published_is_never_returned(lab: Lab, client: PrismClient) -> None:
    """What the reference program leaves when it is killed."""
    client.remove("instance", OTHER.crop)
    path = lab.cached(OTHER)
    path.write_bytes(lab.cached(SPECS["longer"]).read_bytes()[:2000])
    assert "instance/crop_90.h5" in published(lab.root)
    [found] = client.ensure("instance", OTHER.crop, progress=False)
    assert_crop_file_equals_oracle(Path(found), lab.source(OTHER))
