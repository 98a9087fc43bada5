"""What other machines call the cache folder: checked as far as this machine can tell."""

from __future__ import annotations

import tempfile
from pathlib import Path

from prismcache.disk import disk_errors
from prismcache.errors import ConfigError


def check_shown_root(root: Path, shown: Path) -> None:
    """Refuse a name for the cache folder that is wrong on this machine.

    If this machine has a folder of that name, it must show what lies in `root`. If it has none, as in a container, the
    name cannot be checked here: clients check each path, and download what the path does not show.

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
            f"PRISMCACHE_ADVERTISED_ROOT is {str(shown)!r}, which is not an absolute path",
            remedy="Set the path of the cache folder on the lab's machines, such as /lab/prism.",
        )
    if shown == root or not shown.is_dir():
        return
    with disk_errors(root, "PRISMCACHE_ROOT"), tempfile.NamedTemporaryFile(dir=root, prefix=".prismcache-") as probe:
        seen = (shown / Path(probe.name).name).exists()
    if not seen:
        raise ConfigError(
            f"PRISMCACHE_ADVERTISED_ROOT names {shown}, which is another folder on this machine than {root}",
            remedy="Set the path of the folder on the lab's machines; if it is the same path, leave the setting out.",
        )
