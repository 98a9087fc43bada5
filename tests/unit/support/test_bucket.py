from __future__ import annotations

from pathlib import Path

from tests.support.bucket import demo_specs, make_bucket
from tests.support.crops import BUCKET, crop_folder, full_size_spec, small_spec


def _stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_crop_is_written_once_and_again_when_it_is_damaged_or_specified_otherwise(tmp_path: Path) -> None:
    specs = [small_spec(crop=crop, channels=1) for crop in (0, 1)]
    make_bucket(tmp_path, specs)
    before = _stamps(tmp_path / BUCKET)
    make_bucket(tmp_path, specs)
    assert _stamps(tmp_path / BUCKET) == before
    next(path for path in before if path.match("crop_1.zarr/raw/*.*.*.*")).unlink()
    make_bucket(tmp_path, specs)
    after = _stamps(tmp_path / BUCKET)
    assert after.keys() == before.keys()
    assert {path for path in before if after[path] == before[path]} == {p for p in before if "crop_0.zarr" in p.parts}
    make_bucket(tmp_path, [small_spec(crop=0, channels=4)])
    assert (crop_folder(tmp_path, specs[0]) / "raw/1.0.0.0").exists()
    assert crop_folder(tmp_path, specs[1]).is_dir()


def test_demo_has_the_crops_of_the_documentation() -> None:
    names = {(spec.split, spec.crop): spec.channels for spec in demo_specs()}
    assert names["instance", 0] == 18
    assert names["instance", 5] == 12
    assert ("semantic", 0) in names
    full = demo_specs(full=True)
    assert full[0] == full_size_spec()
    assert {(spec.split, spec.crop) for spec in full} == set(names)
