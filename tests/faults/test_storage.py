"""Cache folders that are full, or cannot be written: typed errors, nothing left, and a caller that lives on."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prismcache import NoSpaceError, PrismClient, StorageUnwritableError, Verdict
from prismcache.layout import STATE_FOLDER
from prismcache.schema import Split
from prismcache_service.cache import CropCache
from tests.support.cache_root import (
    Lab,
    files_below,
    many_objects_spec,
    object_key,
    published,
    quarantined,
    tiny_spec,
    unfinished,
)
from tests.support.crops import small_spec
from tests.support.faults import Before
from tests.support.mounts import fill, free_bytes, remount, small_disk
from tests.support.oracle import assert_crop_file_equals_oracle
from tests.support.processes import environment, eventually, run

MB = 1 << 20
DISK = 24 * MB
SPECS = [many_objects_spec(0), tiny_spec(1), small_spec(crop=5)]
BIG = SPECS[2]


@pytest.fixture
def lab(module_lab: Lab, tmp_path: Path) -> Iterator[Lab]:
    """The lab with a cache folder on a disk of 24 MB."""
    module_lab.proxy.clear()
    with small_disk(tmp_path / "disk", DISK) as disk:
        yield dataclasses.replace(module_lab, root=disk / "root")
    module_lab.proxy.clear()


def test_a_full_disk_before_the_start(lab: Lab) -> None:
    filler = lab.root.parent / "filler"
    with PrismClient(settings=lab.settings()) as client:
        client.ensure("instance", 1, progress=False)
        fill(filler, 2 * MB)
        before = free_bytes(lab.root)
        with pytest.raises(NoSpaceError, match=r"MB free, the crop may need .* MB") as caught:
            client.ensure("instance", BIG.crop, progress=False)
        assert str(lab.root) in str(caught.value)
        assert "PRISMCACHE_ROOT" in caught.value.remedy
        assert not any(key.startswith("raw/0") for key in lab.fetched(BIG))  # found out before anything was fetched
        _still_serves(lab, client, before)
        filler.unlink()
        client.ensure("instance", BIG.crop, progress=False)
    assert_crop_file_equals_oracle(lab.cached(BIG), lab.source(BIG))


def _still_serves(lab: Lab, client: PrismClient, free_before: int) -> None:
    assert client.ensure("instance", 1, progress=False) == [str(lab.cached(SPECS[1]))]
    assert [result.verdict for result in client.verify("instance", 1)] == [Verdict.OK]
    assert published(lab.root) == ["instance/crop_1.h5"]
    assert unfinished(lab.root) == quarantined(lab.root) == []
    eventually(lambda: free_bytes(lab.root) >= free_before - os.sysconf("SC_PAGE_SIZE"), "all space is given back")


@pytest.mark.parametrize(
    ("key", "leave"),
    [
        ("labels/2.2.2", 0),
        ("labels/2.2.2", 131_072),
        ("raw/1.1.1.1", 0),
        ("raw/1.1.1.1", 65_536),
        ("raw/1.1.1.1", 262_144),
    ],
)
def test_a_disk_that_fills_up_while_the_crop_is_made(lab: Lab, key: str, leave: int) -> None:
    """HDF5 crashes where a write fails; the caller must see `no_space`, whatever did not fit."""
    filler, spec = lab.root.parent / "filler", BIG
    with PrismClient(settings=lab.settings()) as client:
        client.ensure("instance", 1, progress=False)
        before = free_bytes(lab.root)
        lab.proxy.add(Before(lambda: fill(filler, leave)), key=object_key(spec, key), times=1)
        with pytest.raises(NoSpaceError, match="No space left on device"):
            client.ensure("instance", spec.crop, progress=False)
        filler.unlink()
        _still_serves(lab, client, before)
        client.ensure("instance", spec.crop, progress=False)
    assert_crop_file_equals_oracle(lab.cached(spec), lab.source(spec))


@pytest.mark.parametrize(
    ("product", "leave"), [("avg_barcodes", 0), ("avg_barcodes", 12_288), ("unlabelled", 12_288), ("facts", 8192)]
)
def test_a_disk_that_is_full_when_a_product_is_made(lab: Lab, product: str, leave: int) -> None:
    filler = lab.root.parent / "filler"
    with PrismClient(settings=lab.settings()) as client:
        client.ensure("instance", 1, progress=False)
        before = free_bytes(lab.root)
        fill(filler, leave)
        with pytest.raises(NoSpaceError, match="No space left on device"):
            client.ensure("instance", 1, product=product, progress=False)
        filler.unlink()
        _still_serves(lab, client, before)
        [path] = client.ensure("instance", 1, product=product, progress=False)
        assert [each.verdict for each in client.verify()] == [Verdict.OK] * 2
    assert product in Path(path).name


def test_a_lease_that_cannot_be_renewed_leaves_nothing_but_itself(lab: Lab) -> None:
    cache = CropCache(lab.root)
    cache.prepare(Split.INSTANCE)
    token = cache.locks.try_acquire("instance-crop_0.h5")
    assert token is not None
    fill(lab.root.parent / "filler", 0)
    cache.locks.renew("instance-crop_0.h5", token, 1)
    assert unfinished(lab.root) == [f"{STATE_FOLDER}/leases/instance-crop_0.h5"]
    cache.locks.release("instance-crop_0.h5", token)
    assert unfinished(lab.root) == []


def test_a_full_disk_at_the_command_line(lab: Lab) -> None:
    lab.root.mkdir()
    fill(lab.root.parent / "filler", 0)
    done = run(lab.settings(), "ensure", "instance", "1")
    assert (done.code, done.stdout) == (1, "")
    assert "error[no_space]: " in done.stderr
    assert "remedy: " in done.stderr
    assert "Traceback" not in done.stderr
    assert [name for name in files_below(lab.root) if not name.startswith(f"{STATE_FOLDER}/catalog")] == []


@pytest.mark.parametrize("inodes", [4, 8, 11])
def test_a_disk_without_inodes(module_lab: Lab, tmp_path: Path, inodes: int) -> None:
    module_lab.proxy.clear()
    with small_disk(tmp_path / "disk", DISK, f"nr_inodes={inodes}") as disk:
        lab = dataclasses.replace(module_lab, root=disk / "root")
        with PrismClient(settings=lab.settings()) as client:
            with pytest.raises(NoSpaceError):
                client.ensure("instance", 1, progress=False)
            assert published(lab.root) == unfinished(lab.root) == []
            remount(disk, "nr_inodes=100")
            client.ensure("instance", 1, progress=False)


def test_hits_on_a_disk_that_became_read_only(lab: Lab) -> None:
    with PrismClient(settings=lab.settings()) as client:
        client.ensure("instance", 1, progress=False)
        remount(lab.root.parent, "ro")
        try:
            lab.proxy.clear()
            assert client.ensure("instance", 1, progress=False) == [str(lab.cached(SPECS[1]))]
            assert lab.proxy.requests == []
            assert [info.crop for info in client.catalog() if info.files] == [1]
            assert [result.verdict for result in client.verify()] == [Verdict.OK]
            with pytest.raises(StorageUnwritableError, match="Read-only file system") as caught:
                client.ensure("instance", 0, progress=False)
            assert str(lab.root) in str(caught.value)
            with pytest.raises(StorageUnwritableError):
                client.remove("instance", 1)
        finally:
            remount(lab.root.parent, "rw")
        client.ensure("instance", 0, progress=False)
        assert unfinished(lab.root) == []


def test_a_root_below_a_file(module_lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    lab = dataclasses.replace(module_lab, root=tmp_path / "file" / "root")
    with PrismClient(settings=lab.settings()) as client, pytest.raises(StorageUnwritableError, match="file/root"):
        client.ensure("instance", 1, progress=False)
    assert (tmp_path / "file").read_text() == "mine"
    done = run(lab.settings(), "ensure", "instance", "1")
    assert (done.code, done.stdout) == (1, "")
    assert "error[storage_unwritable]: " in done.stderr


def test_a_root_without_permission(module_lab: Lab, tmp_path: Path) -> None:
    """In a process of nobody's, since root may write anywhere."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o755)
    lab = dataclasses.replace(module_lab, root=locked / "root")
    program = (
        "import os, runpy, sys\n"
        "import prismcache.cli.app, prismcache.cli.errors, prismcache.client, prismcache_service.embedded\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "sys.argv = ['prismcache', 'ensure', 'instance', '1']\n"
        "prismcache.cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(lab.settings()),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "error[storage_unwritable]: " in done.stderr
    assert "Permission denied" in done.stderr
    assert list(locked.iterdir()) == []


def test_a_folder_in_the_place_of_a_state_file(module_lab: Lab, tmp_path: Path) -> None:
    """Odd roots are errors with a path, not tracebacks."""
    lab = dataclasses.replace(module_lab, root=tmp_path / "root")
    (lab.root / STATE_FOLDER / "manifests" / "instance" / "crop_1.json").mkdir(parents=True)
    done = run(lab.settings(), "ensure", "instance", "1")
    assert done.code == 1
    assert "error[storage_error]: " in done.stderr
    assert "crop_1" in done.stderr
    assert "Traceback" not in done.stderr
    assert unfinished(lab.root) == []
