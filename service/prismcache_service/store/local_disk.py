"""Which file system a folder lies on, and whether SQLite's files may lie there."""

from __future__ import annotations

import re
from pathlib import Path

from prismcache.errors import ConfigError

MOUNTS = Path("/proc/self/mountinfo")

# File systems that other machines write too, or that a server keeps: locks and shared memory do not reach across.
# See proc_pid_mountinfo(5) for where the names come from.
# fmt: off
_NETWORK = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fhgfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs",
    "nfs4", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "vboxsf", "wekafs",
})
_NETWORK_FUSE = frozenset({
    "beegfs", "ceph", "ceph-fuse", "cifs", "curlftpfs", "davfs2", "gcsfuse", "glusterfs", "goofys", "juicefs",
    "moosefs", "mount-s3", "nfs", "quobyte", "rclone", "s3fs", "seaweedfs", "smbnetfs", "sshfs", "vmhgfs-fuse",
})
# fmt: on


def refuse_network_file_system(folder: Path, mounts: Path = MOUNTS) -> None:
    """Accept a folder, which need not exist yet, unless it is known to lie on a network file system.

    Raises
    ------
    ConfigError
        Names the folder, its file system and what to do.
    """
    kind = file_system(folder, mounts)
    if kind is not None and is_network(kind):
        raise ConfigError(
            f"{folder} lies on {kind}, a network file system, where SQLite can lose or damage the job store",
            remedy="Set PRISMCACHE_STATE_FOLDER to a folder on a local disk, or PRISMCACHE_DATABASE_URL to PostgreSQL "
            "(postgresql+asyncpg://…).",
        )


def is_network(kind: str) -> bool:
    """Whether a type of file system, as the kernel names it, is served over a network."""
    name, _, of_fuse = kind.partition(".")
    return of_fuse in _NETWORK_FUSE if name == "fuse" else kind in _NETWORK


def file_system(folder: Path, mounts: Path = MOUNTS) -> str | None:
    """The type of the file system that holds `folder` (``ext4``, ``nfs4``, ``fuse.sshfs``); None where nobody says.

    Parameters
    ----------
    mounts
        The mount table, in the format of ``/proc/self/mountinfo``; only Linux has one.
    """
    try:
        table = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    place = folder.resolve()
    best: tuple[int, str] | None = None
    for line in table:
        # id parent device root mount-point options optional… - type source options
        fields, _, source = line.partition(" - ")
        point = Path(_unescaped(fields.split(" ")[4]))
        # Of mounts on the same point the last one is on top.
        if place.is_relative_to(point) and (best is None or len(point.parts) >= best[0]):
            best = len(point.parts), source.split(" ")[0]
    return best[1] if best else None


def _unescaped(name: str) -> str:
    r"""The table writes blanks, backslashes and line ends as ``\040`` and the like."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)
