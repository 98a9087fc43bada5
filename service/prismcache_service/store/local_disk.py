"""Find the file system of a folder, and refuse a network file system for SQLite's files."""

from __future__ import annotations

import re
from pathlib import Path

from prismcache.errors import ConfigError

MOUNTS = Path("/proc/self/mountinfo")

# File systems that several machines use: SQLite's locks and shared memory work within one machine only.
# The names are the kernel's: see proc_pid_mountinfo(5).
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
    """Refuse a folder on a network file system; the folder need not exist.

    Raise `ConfigError` if the folder is known to lie on a network file system; the message names folder and file
    system.
    """
    kind = file_system(folder, mounts)
    if kind is not None and is_network(kind):
        raise ConfigError(
            f"{folder} lies on {kind}, a network file system, where SQLite can lose or damage the job store",
            remedy="Set PRISMCACHE_STATE_FOLDER to a folder on a local disk, or PRISMCACHE_DATABASE_URL to PostgreSQL "
            "(postgresql+asyncpg://…).",
        )


def is_network(kind: str) -> bool:
    """Return True if a file system type (as the kernel names it) is a network file system."""
    name, _, of_fuse = kind.partition(".")
    return of_fuse in _NETWORK_FUSE if name == "fuse" else kind in _NETWORK


def file_system(folder: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the type of the file system that holds `folder` (``ext4``, ``nfs4``, ``fuse.sshfs``); None if unknown.

    `mounts` has the format of ``/proc/self/mountinfo``, which only Linux has.
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
        # The table writes blanks, backslashes and line ends as octal numbers, such as \040.
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields.split(" ")[4]))
        # If several are mounted on the same point, the last one hides the others.
        if place.is_relative_to(point) and (best is None or len(point.parts) >= best[0]):
            best = len(point.parts), source.split(" ")[0]
    return best[1] if best else None
