"""What is found through entry points, so that this package imports none of it."""

from __future__ import annotations

from typing import Any

from prismcache.errors import ConfigError, MissingExtraError


def load_plugin(group: str, name: str, noun: str) -> Any:
    """What is registered under `name` in `group`.

    Parameters
    ----------
    group, name
        Of the entry point.
    noun
        What it is, for the errors.

    Raises
    ------
    MissingExtraError
        If it is there but a module that it needs is not.
    ConfigError
        If no installed package offers it.
    """
    from importlib.metadata import entry_points  # here, as it takes 40 ms that only the first call should pay

    for entry in entry_points(group=group, name=name):
        try:
            return entry.load()
        except ImportError as error:
            raise _missing_extra(f"{name} {noun}", error) from error
    raise ConfigError(
        f"no {noun} {name!r} is installed", remedy="Reinstall prismcache; its installation is incomplete."
    )


def _missing_extra(thing: str, error: ImportError) -> MissingExtraError:
    missing = f"the module {error.name!r}" if error.name else f"a module that fails to load ({error})"
    return MissingExtraError(
        f"the {thing} needs {missing}, which is not installed", remedy='pip install "prismcache[service]"'
    )
