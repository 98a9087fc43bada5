"""Whether the libraries that make crops are installed; the light client comes without them."""

from __future__ import annotations

from importlib.util import find_spec

from prismcache.errors import MissingExtraError

_NEEDED = ("aiobotocore", "h5py", "isal", "numcodecs", "numpy", "zarr")


def require_service_extra() -> None:
    """Refuse to go on without the ``service`` extra; checked only when something has to be made.

    Raises
    ------
    MissingExtraError
        Names what is missing and what to install.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"crops are made by libraries that are not installed here: {', '.join(missing)}",
            remedy='Run `pip install "prismcache[service]"`, or set PRISMCACHE_URL to your lab\'s service.',
        )
