"""Whether another machine makes the same files as this one would: what must be equal, and what is not."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from prismcache.layout import FORMAT_VERSION

_EVERYWHERE = ("prismcache", "distributed")
_LIBRARIES = ("aiobotocore", "h5py", "isal", "numcodecs", "numpy", "zarr")


def versions() -> dict[str, str]:
    """What this process makes crops with: the release, Python, and the libraries that decide about bytes."""
    major, minor, _ = platform.python_version_tuple()
    found = {"python": f"{major}.{minor}", "file format": str(FORMAT_VERSION)}
    for name in (*_EVERYWHERE, *_LIBRARIES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """What differs, as ``isal 1.7.2 (service: 1.8.0)``; empty if nothing does."""
    wrong = [name for name, own in ours.items() if theirs.get(name) != own]
    return ", ".join(f"{name} {theirs.get(name, 'unknown')} (service: {ours[name]})" for name in wrong)
