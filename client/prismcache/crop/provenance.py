"""Where the voxels of a crop come from, and what to cite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prismcache.layout import Manifest, manifest_path, parse_file_name
from prismcache.schema import Split

CITATION = (
    "E11 Bio. PRISM. bioRxiv 2025.09.26.678648 (2025). https://doi.org/10.1101/2025.09.26.678648. "
    "Data: s3://e11bio-prism, CC BY-SA 4.0."
)


@dataclass(frozen=True)
class Provenance:
    """Where a crop's voxels come from.

    Attributes
    ----------
    source, source_fingerprint
        The crop's folder in the bucket, and a digest of its listing.
    missing_chunks
        Chunks that were absent from the bucket and hold zarr's fill value.
    format_version, prismcache_version
        Of the file, and of what wrote it.
    manifest
        The record beside the file, with SHA-256, time and libraries; None where the file was moved away from it.
    citation
        What to cite when you publish.
    """

    source: str
    source_fingerprint: str
    missing_chunks: int
    format_version: int
    prismcache_version: str
    manifest: Manifest | None
    citation: str = CITATION


def manifest_of(path: Path) -> Manifest | None:
    """Return the manifest of a file that lies in a cache folder; None if there is none, or it cannot be read."""
    parsed = parse_file_name(path.name)
    try:
        split = Split(path.parent.name)
        place = path.parent.parent / manifest_path(split, *parsed) if parsed is not None else None
        return None if place is None else Manifest.model_validate_json(place.read_bytes())
    except (OSError, ValueError):
        return None
