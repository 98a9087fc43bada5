"""Every way in which zarr may lay out a crop gives the same right file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from prismcache import PrismClient
from tests.support.cache_root import Lab, Outcomes
from tests.support.codecs import ArrayLayout, Compressor
from tests.support.crops import CropSpec, layout_variants, small_spec
from tests.support.labs import running_lab
from tests.support.oracle import assert_crop_file_equals_oracle


def _variants() -> dict[str, CropSpec]:
    """The published variants and those in where raw lies around the labels, each as a crop of its own number."""
    spec = small_spec(channels=2, raw_shape=(24, 70, 72), labels_shape=(14, 40, 44))
    size = (14, 40, 36)
    stored = {
        name: dataclasses.replace(variant, channels=3, raw_shape=spec.raw_shape, labels_shape=spec.labels_shape)
        for name, variant in layout_variants().items()
    }
    variants = stored | {
        "raw-equals-labels": dataclasses.replace(spec, raw_shape=size, labels_shape=size),
        "raw-larger-at-the-end": dataclasses.replace(spec, labels_shape=size, labels_offset=spec.raw_offset),
        "raw-larger-at-the-start": _shifted(spec, size, (10, 30, 36)),
        "shifted-by-one": _shifted(spec, size, (1, 1, 1)),
        "shifted-by-chunks": _shifted(spec, size, (9, 28, 36)),
        "negative-offsets": dataclasses.replace(
            _shifted(spec, size, (2, 3, 4)), raw_offset=(-8000, -168, -1680), labels_offset=(-7200, 336, -1008)
        ),
        "rounding-noise": dataclasses.replace(
            spec, raw_shape=size, labels_shape=(8, 20, 20), resolution=(0.1 * 4000, 168, 168), labels_offset=None
        ),
        "one-chunk-each": dataclasses.replace(
            spec,
            raw=dataclasses.replace(spec.raw, chunks=spec.raw_array_shape),
            labels=dataclasses.replace(spec.labels, chunks=spec.labels_shape),
        ),
        "one-voxel-deep": dataclasses.replace(spec, labels_shape=(1, 40, 44)),
        "labels-of-16-bits-signed": dataclasses.replace(spec, labels=dataclasses.replace(spec.labels, dtype="<i2")),
        "labels-of-8-bits-signed": dataclasses.replace(spec, labels=dataclasses.replace(spec.labels, dtype="|i1")),
        "v2-blosc-zlib": spec.with_layout(compressor=Compressor("blosc", 3, "zlib", "shuffle")),
        "v2-lzma": spec.with_layout(compressor=Compressor("lzma")),
        "one-odd-chunk": dataclasses.replace(
            spec, raw=ArrayLayout(chunks=(2, 7, 50, 71), attributes=("offset", "resolution"))
        ),
    }
    return {name: dataclasses.replace(variant, crop=crop) for crop, (name, variant) in enumerate(variants.items())}


def _shifted(spec: CropSpec, size: tuple[int, int, int], shift: tuple[int, int, int]) -> CropSpec:
    z, y, x = (o + s * r for o, s, r in zip(spec.raw_offset, shift, spec.resolution, strict=True))
    return dataclasses.replace(spec, labels_shape=size, labels_offset=(z, y, x))


VARIANTS = _variants()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("layouts"), VARIANTS.values()) as lab:
        yield lab


@pytest.fixture(scope="module")
def outcomes(lab: Lab) -> Outcomes:
    """What became of every variant, asked for in one call."""
    outcomes = Outcomes()
    with PrismClient(settings=lab.settings(s3_endpoint_url=lab.proxy.upstream)) as client:
        client.ensure("instance", [spec.crop for spec in VARIANTS.values()], progress=outcomes)
    return outcomes


@pytest.mark.parametrize("name", VARIANTS)
def test_layout(lab: Lab, outcomes: Outcomes, name: str) -> None:
    spec = VARIANTS[name]
    assert outcomes.code(spec.crop) == "done"
    assert_crop_file_equals_oracle(lab.cached(spec), lab.source(spec))
