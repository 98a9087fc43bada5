"""How one crop travels from the bucket to a file, and whether the libraries for that are installed."""

from __future__ import annotations

from importlib.util import find_spec

from prismcache.errors import MissingExtraError

_NEEDED = ("aiobotocore", "h5py", "isal", "numcodecs", "numpy", "zarr")


def require_service_extra() -> None:
    """Raise an error unless the ``service`` extra is installed; called only before a crop is made.

    Raises
    ------
    MissingExtraError
        If a library is missing; the message names the libraries, the remedy what to install.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"crops are made by libraries that are not installed here: {', '.join(missing)}",
            remedy='Run `pip install "prismcache[service]"`, or set PRISMCACHE_URL to your lab\'s service.',
        )
