"""Stand-ins for the published bucket: one for ``make demo``, a smaller one for tests.

``python -m tests.support.bucket DIR`` makes the first in DIR; nothing is made twice.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from filelock import FileLock

from tests.support.codecs import ArrayLayout
from tests.support.crops import (
    BUCKET,
    PREFIX,
    CropSpec,
    crop_folder,
    full_size_spec,
    published_channels,
    small_spec,
    write_crop,
)
from tests.support.own_splits import synapse_arrays, write_synapses

RECORD = ".stand-in.json"
"""File beside the bucket's folder: what has been written, by prefix."""


def standard_specs() -> list[CropSpec]:
    """Crops of the tests' bucket: every published number of channels, and both splits."""
    return [small_spec("instance", crop) for crop in (0, 2, 5, 12, 13)] + [small_spec("semantic", c) for c in (0, 1)]


def demo_specs(*, full: bool = False) -> list[CropSpec]:
    """Crops of the demonstration's bucket, some ten MB each; with `full`, instance crop 0 has its real size."""
    specs = [_demo_spec("instance", crop) for crop in (0, 1, 2, 5, 12, 13)]
    specs += [_demo_spec("semantic", crop) for crop in (0, 1, 5)]
    return [full_size_spec(), *specs[1:]] if full else specs


def demo_bucket(folder: Path, *, full: bool = False) -> Path:
    """Make the demonstration's bucket below `folder`, writing only what is not there yet: also a tiny synapse crop.

    Returns
    -------
    Path
        `folder`, which an `S3Server` serves.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # `make demo` and the notebook may run in two terminals
        if not (folder / BUCKET / PREFIX / "synapses").exists():
            write_synapses(folder, synapse_arrays())
        return make_bucket(folder, demo_specs(full=full))


def make_bucket(folder: Path, specs: Iterable[CropSpec]) -> Path:
    """Write the crops that `folder` does not have exactly as specified; other crops there are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / RECORD
    written: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    for spec in specs:
        if written.get(spec.prefix) == repr(spec) and _is_complete(folder, spec):
            continue
        write_crop(folder, spec)
        written[spec.prefix] = repr(spec)
        record.write_text(json.dumps(written, indent=2))
    return folder


def _demo_spec(split: Literal["instance", "semantic"], crop: int) -> CropSpec:
    return CropSpec(
        split,
        crop,
        channels=published_channels(crop),
        raw_shape=(44, 200 + 8 * (crop % 3), 208),
        labels_shape=(32, 140, 144),
        stained=True,
        raw=ArrayLayout(dtype="|u1", attributes=("offset", "resolution")),
        labels=ArrayLayout(dtype="<u8"),
    )


def _is_complete(folder: Path, spec: CropSpec) -> bool:
    return all((crop_folder(folder, spec) / key).is_file() for key in spec.keys)


def main(arguments: list[str] | None = None) -> None:
    """Make the demonstration's bucket and say that it is none of E11 Bio's."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.bucket", description="Make a stand-in for the published bucket."
    )
    parser.add_argument("folder", type=Path, help="where to make it; existing crops are kept")
    parser.add_argument("--full", action="store_true", help="instance crop 0 in its real size: 2 GB, some 10 seconds")
    options = parser.parse_args(arguments)
    demo_bucket(options.folder, full=options.full)
    sys.stderr.write(
        f"{options.folder / BUCKET} is a stand-in for the real bucket: made-up voxels in the published layout.\n"
    )


if __name__ == "__main__":
    main()
