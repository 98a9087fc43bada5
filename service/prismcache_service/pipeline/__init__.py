"""How one crop travels from the bucket to a file, and whether the libraries for that are installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeAlias

from prismcache.errors import MissingExtraError
from prismcache.schema import Progress

Report: TypeAlias = Callable[[Progress], None]
"""Is called with the progress of a crop or a product."""

_NEEDED = ("aiobotocore", "h5py", "isal", "numcodecs", "numpy", "zarr")


def require_service_extra() -> None:
    """Raise `MissingExtraError` unless the ``service`` extra is installed; called only before a crop is made."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"crops are made by libraries that are not installed here: {', '.join(missing)}",
            remedy='Run `pip install "prismcache[service]"`, or set PRISMCACHE_URL to your lab\'s service.',
        )
