"""The paths of the files in a cache folder, and the manifests of the files."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path, PurePath
from typing import Self

from prismcache.catalog import published
from prismcache.disk import (
    disk_errors,
    patiently,
    sha256_of,
    share_with_group,
    stamp_of,
    temporary_beside,
    write_atomically,
)
from prismcache.errors import ConfigError, CropCorruptError, SplitConflictError, StorageError
from prismcache.layout import (
    FORMAT_VERSION,
    HDF5_SIGNATURE,
    STATE_FOLDER,
    FileStamp,
    Manifest,
    claim_path,
    crop_file_name,
    crop_path,
    manifest_path,
    parse_manifest_name,
    sources_path,
)
from prismcache.numbers import SPLIT_NAME
from prismcache.schema import NO_CONTEXT, Context, CropFile, JobRequest, Product, Split
from prismcache.splits import SplitEntry, Splits

FILE_MODE = 0o664
_FOLDER_MODE = 0o775
_FORMAT = re.compile(rb'"format_version":\s*(\d{1,9})')  # in a manifest that this version may not be able to parse
# Not through a link, and without waiting for the other end of a pipe.
_READ_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"))


@dataclass(frozen=True)
class CropName:
    """Which file: a crop with all its channels (None) or with some, with context or without, or a product of it."""

    split: Split
    crop: int
    channels: tuple[int, ...] | None = None
    context: Context = NO_CONTEXT
    product: Product = Product.CROP

    @classmethod
    def of(cls, request: JobRequest, crop: int) -> Self:
        """Return the name of the file that a request needs of a crop."""
        channels = None if request.channels is None else tuple(sorted(set(request.channels)))
        return cls(request.split, crop, channels, request.context, request.product)

    @property
    def file_name(self) -> str:
        """The file's name, without its folder."""
        return crop_file_name(self.crop, self.channels, self.context, self.product)

    @property
    def folder(self) -> str:
        """The crop's name in messages, which is its folder in the bucket's published splits."""
        return f"{self.split.value}/crop_{self.crop}.zarr"

    @property
    def lock(self) -> str:
        """Name of the making lock of this file."""
        return f"{self.split.value}-{self.file_name}"


def named_by(manifest: Manifest) -> CropName:
    """Return the name of the file that a manifest describes."""
    channels = None if manifest.complete else manifest.channels
    return CropName(manifest.split, manifest.crop, channels, manifest.context, manifest.product)


class Places:
    """The paths of one cache folder, and the manifests in it.

    Parameters
    ----------
    root
        The folder, absolute.
    shown_root
        The clients' path of the folder, if it differs.
    splits
        The catalog's splits; default: the published ones.
    """

    def __init__(self, root: Path, shown_root: Path | None = None, splits: Splits | None = None) -> None:
        self.splits = published() if splits is None else splits
        self.root = root
        self.shown_root = shown_root or root
        self.locks_folder = root / STATE_FOLDER / "leases"
        self.quarantine_folder = root / STATE_FOLDER / "quarantine"

    def these(self, split: Split | None) -> list[Split]:
        """Return the split if the catalog has it, or all of the catalog's."""
        return [Split(name) for name in self.splits] if split is None else [Split(self.splits.entry(split).name)]

    def shown(self, file: CropFile) -> CropFile:
        """Return a file with the path that clients know it by."""
        return file.model_copy(update={"path": str(self.shown_root / file.split / PurePath(file.path).name)})

    def local_path(self, file: CropFile) -> Path:
        """Return where this machine has a file that clients know by another path."""
        return self.root / file.split / PurePath(file.path).name

    def path(self, name: CropName) -> Path:
        """Return where the file is published."""
        return self.root / crop_path(*astuple(name))

    def shown_path(self, name: CropName) -> Path:
        """Return the path that clients know the file by."""
        return self.shown_root / crop_path(*astuple(name))

    def manifest_path(self, name: CropName) -> Path:
        """Return where the file's manifest is."""
        return self.root / manifest_path(*astuple(name))

    def sources_path(self, name: CropName) -> Path:
        """Return the path of the list of the objects that the file was made of."""
        return self.root / sources_path(*astuple(name))

    def manifest(self, name: CropName) -> Manifest | None:
        """Return a file's manifest; None if it does not exist, cannot be parsed, or belongs to another file."""
        path = self.manifest_path(name)
        try:
            manifest = Manifest.model_validate_json(patiently(path.read_bytes, path))
        except (OSError, ValueError):
            return None
        return manifest if named_by(manifest) == name else None

    def refuse_newer(self, name: CropName, manifest: Manifest | None) -> None:
        """Raise `StorageError` for a file that a newer prismcache made: this one must neither read nor replace it.

        `manifest` is the file's, None if it cannot be parsed.
        """
        if manifest is not None and manifest.format_version <= FORMAT_VERSION:
            return
        with contextlib.suppress(OSError):
            found = _FORMAT.search(self.manifest_path(name).read_bytes())
            if found and int(found[1]) > FORMAT_VERSION:
                raise StorageError(
                    f"{self.shown_path(name)} was made by a newer prismcache: it has file format {int(found[1])}, and "
                    f"this one knows formats up to {FORMAT_VERSION}",
                    remedy="Update prismcache here, or use another PRISMCACHE_ROOT.",
                )

    def compare(self, name: CropName, manifest: Manifest, *, full: bool) -> FileStamp:
        """Compare a file with its manifest (kind, size, signature; if `full`, SHA-256), and return the file's stamp.

        Raises
        ------
        CropCorruptError
            If the file is not what the manifest says; the message says in what they differ.
        StorageError
            If the file cannot be read, which says nothing about its content.
        """
        path, shown = self.path(name), self.shown_path(name)
        try:
            return patiently(lambda: _compare(path, manifest, shown, full=full), path)
        except OSError as error:
            raise CropCorruptError(f"{shown} cannot be opened: {error.strerror}") from None

    def names(self, split: Split | None = None, crop: int | None = None) -> Iterator[CropName]:
        """Yield every file that has a manifest, by split, crop and channels."""
        return self._names_of(self.these(split), crop)

    def _names_of(self, splits: Iterable[Split], crop: int | None = None) -> Iterator[CropName]:
        for each in splits:
            found = []
            for path in self.manifest_path(CropName(each, 0)).parent.glob("crop_*.json"):
                parsed = parse_manifest_name(path.name)
                if parsed is not None and crop in {None, parsed.crop}:
                    found.append(CropName(each, *parsed))
            yield from sorted(found, key=lambda name: (name.crop, name.channels or (), name.file_name))

    def sizes(self) -> list[tuple[CropName, int]]:
        """Return every file with a manifest that is there, and its size in bytes.

        Files of splits that the catalog lacks take room, too: another catalog's, or a split that was dropped from it.
        """
        found = []
        for name in self._names_of([Split(folder.name) for folder in self._manifest_folders()]):
            with contextlib.suppress(OSError):
                found.append((name, self.path(name).lstat().st_size))
        return found

    def describe(self, name: CropName, manifest: Manifest) -> CropFile:
        """Return a published file as clients know it."""
        return manifest.file_at(self.shown_path(name))

    def temporary(self, name: CropName, token: str) -> Path:
        """Return a path for the unfinished file, in the target's folder; `token` is the making lock's."""
        return temporary_beside(self.path(name), token)

    def prepare(self, split: Split) -> None:
        """Create the folders, with the root's group permissions; if one cannot be created, none stays.

        Raises
        ------
        StorageUnwritableError
            If a folder cannot be created.
        UnknownSplitError, SplitConflictError
            If the catalog has no such split, or another catalog has given the name to other crops.
        """
        entry = self.splits.entry(split)
        manifests = self.root / STATE_FOLDER / "manifests" / split.value
        made: list[Path] = []
        for folder in (self.root / split.value, manifests, self.locks_folder, self.quarantine_folder):
            try:
                with disk_errors(folder, "PRISMCACHE_ROOT"):
                    missing = [*itertools.takewhile(lambda path: not path.is_dir(), (folder, *folder.parents))]
                    for path in reversed(missing):
                        with contextlib.suppress(FileExistsError):  # another process was quicker
                            path.mkdir(_FOLDER_MODE)
                            made.append(path)
                            if path.is_relative_to(self.root):
                                share_with_group(path, self.root)
                    if not folder.is_dir():
                        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            except BaseException:
                for path in reversed(made):
                    with contextlib.suppress(OSError):  # another process uses it already
                        path.rmdir()
                raise
        if entry.definition:
            self._claim(split, entry)

    def _claim(self, split: Split, entry: SplitEntry) -> None:
        """Record that the folder's files are made from this entry, so that no other catalog adds files to them."""
        place = self.root / claim_path(split)
        with disk_errors(place, "PRISMCACHE_ROOT"):
            place.parent.mkdir(_FOLDER_MODE, parents=True, exist_ok=True)
            share_with_group(place.parent, self.root)
            if not place.exists():
                write_atomically(place, entry.to_json().encode(), durable=True, like=self.root)
            try:
                claimed = SplitEntry.from_json(place.read_text())
            except ValueError:
                raise self.conflict(split, f"{place} cannot be read") from None
        if claimed.definition != entry.definition:
            raise self.conflict(split, f"its files are made from {claimed.raw!r} in {claimed.crop_folder(0)}")

    def conflict(self, split: Split, reason: str) -> SplitConflictError:
        """Return the error that another catalog has given a split's name to other crops."""
        return SplitConflictError(f"{self.shown_root / split.value} is that of another catalog: {reason}")

    def check_writable(self) -> None:
        """Create the folders and a file."""
        for split in self.splits:
            self.prepare(Split(split))
        probe = temporary_beside(self.locks_folder / "probe", uuid.uuid4().hex)
        with disk_errors(probe, "PRISMCACHE_ROOT"):
            probe.write_bytes(b"")
            probe.unlink(missing_ok=True)  # a sweep may have been quicker

    def check_shown_root(self) -> None:
        """Refuse a name for the cache folder that is wrong on this machine.

        If this machine has a folder of that name, it must show what lies in the cache folder. If it has none, as in a
        container, the name cannot be checked here: clients check each path, and download what the path does not show.

        Raises
        ------
        ConfigError
            If the name is relative, or is that of another folder here.
        StorageError
            If nothing can be written to the cache folder.
        """
        root, shown = self.root, self.shown_root
        if not shown.is_absolute():
            raise ConfigError(
                f"PRISMCACHE_ADVERTISED_ROOT is {str(shown)!r}, which is not an absolute path",
                remedy="Set the path of the cache folder on the lab's machines, such as /lab/prism.",
            )
        if shown == root or not shown.is_dir():
            return
        with disk_errors(root, "PRISMCACHE_ROOT"), tempfile.NamedTemporaryFile(dir=root, prefix=".prismcache-") as file:
            seen = (shown / Path(file.name).name).exists()
        if not seen:
            raise ConfigError(
                f"PRISMCACHE_ADVERTISED_ROOT names {shown}, which is another folder on this machine than {root}",
                remedy="Set the path of the folder on the lab's machines; without the setting, it is the same path.",
            )

    def disk_usage(self) -> tuple[int, int]:
        """Return the bytes of the file system: in all, and free."""
        existing = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        with disk_errors(existing, "PRISMCACHE_ROOT"):
            usage = shutil.disk_usage(existing)
        return usage.total, usage.free

    def working_folders(self) -> list[Path]:
        """Return the folders in which temporary files are made, also those of other catalogs' splits."""
        manifests = self._manifest_folders()
        return [*(self.root / folder.name for folder in manifests), *manifests, self.locks_folder, self._state]

    def _manifest_folders(self) -> list[Path]:
        """Return the folders of manifests, one for each split that has files or had some."""
        return sorted(folder for folder in (self._state / "manifests").glob("*") if SPLIT_NAME.fullmatch(folder.name))

    @property
    def _state(self) -> Path:
        return self.root / STATE_FOLDER


def _compare(path: Path, manifest: Manifest, shown: Path, *, full: bool) -> FileStamp:
    fd = os.open(path, _READ_FLAGS)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise CropCorruptError(f"{shown} is not a regular file")
        if status.st_size != manifest.size:
            raise CropCorruptError(f"{shown} has {status.st_size} bytes, its manifest says {manifest.size}")
        if manifest.product is not Product.FACTS and os.read(fd, len(HDF5_SIGNATURE)) != HDF5_SIGNATURE:
            raise CropCorruptError(f"{shown} does not begin as an HDF5 file")
        if full and (found := sha256_of(fd)) != manifest.sha256:
            raise CropCorruptError(f"{shown} has SHA-256 {found}, its manifest says {manifest.sha256}")
        return stamp_of(status)
    finally:
        with contextlib.suppress(OSError):  # a descriptor that was only read from has nothing left to lose
            os.close(fd)


def mode_of(path: Path) -> int | None:
    """Return the mode of what lies at a path, links not followed; None if nothing is there."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
