"""Import a backend, or a part of the service's package, when a client needs it.

Apart from `prismcache.backend`, which the remote backend imports.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from prismcache.backend import Backend, BackendFactory
from prismcache.config import Settings
from prismcache.errors import MissingExtraError

backends_in_process: dict[str, BackendFactory] = {}
"""By URL: backends that stand in for a service in this process; see `prismcache.testing`."""


def load_backend(settings: Settings) -> Backend:
    """Return the backend that `settings` ask for: with a URL the service there, else the pipeline in this process.

    Raises
    ------
    MissingExtraError
        If there is no URL and a module that the pipeline needs is not installed.
    """
    if settings.url is not None:
        if (in_process := backends_in_process.get(settings.url)) is not None:
            return in_process(settings)
        from prismcache.remote import RemoteBackend  # here, since an embedded client needs no HTTP

        return RemoteBackend(settings)
    factory: BackendFactory = service_part("prismcache_service.embedded", "create_backend", "embedded backend")
    return factory(settings)


def service_part(module: str, name: str | None, noun: str) -> Any:
    """Return a module of the service's package, or an object in it, which the client does not import by itself.

    Parameters
    ----------
    module, name
        The module, and the object in it; None for the module itself.
    noun
        What the object is, for the error.

    Raises
    ------
    MissingExtraError
        If a module that the object needs is not installed.
    """
    try:
        found = import_module(module)
    except ImportError as error:
        missing = f"the module {error.name!r}" if error.name else f"a module that fails to load ({error})"
        raise MissingExtraError(
            f"the {noun} needs {missing}, which is not installed", remedy='pip install "prismcache[service]"'
        ) from error
    return found if name is None else getattr(found, name)
