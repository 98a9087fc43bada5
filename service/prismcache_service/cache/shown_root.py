"""What other machines call the cache folder: checked as far as this machine can tell."""

from __future__ import annotations

import tempfile
from pathlib import Path

from prismcache.errors import ConfigError
from prismcache_service.cache.errors import storage_error


def check_shown_root(root: Path, shown: Path) -> None:
    """Refuse a name for the cache folder that cannot be right.

    A folder of that name on this machine (the same one, a link to it, or a mount of it) must show what lies in `root`.
    Where there is none, as in a container, nothing can be said: clients check each path, and download what it does not
    show.

    Parameters
    ----------
    root
        The cache folder, which can be written.
    shown
        What clients are told instead.

    Raises
    ------
    ConfigError
        If `shown` is relative, or names another folder here.
    StorageError
        If nothing can be written to `root`.
    """
    if not shown.is_absolute():
        raise ConfigError(
            f"PRISMCACHE_ADVERTISED_ROOT is {str(shown)!r}, which is no absolute path",
            remedy="Give the path under which the lab's machines see the cache folder, as /lab/prism.",
        )
    if shown == root or not shown.is_dir():
        return
    try:
        with tempfile.NamedTemporaryFile(dir=root, prefix=".prismcache-") as probe:
            seen = (shown / Path(probe.name).name).exists()
    except OSError as error:
        raise storage_error(error, root) from error
    if not seen:
        raise ConfigError(
            f"PRISMCACHE_ADVERTISED_ROOT names {shown}, which is another folder on this machine than {root}",
            remedy="Give the path under which the lab's machines see the folder; leave it out if it is the same.",
        )
