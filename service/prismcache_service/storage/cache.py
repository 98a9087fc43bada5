"""The cache folder: what is published, what is right, what is left over.

A crop is cached when its manifest and its file agree. Finding a hit costs one small JSON and one ``fstat``: equal size
and time stamps mean that nobody touched the file since its SHA-256 was taken; different ones cause a re-read, never a
trust. A file that does not agree is set aside in ``.prismcache/quarantine`` and made again.

This module imports neither numpy nor h5py, so that a warm `ensure` stays quick.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from pydantic import BaseModel

from prismcache.errors import CropCorruptError
from prismcache.layout import (
    HDF5_SIGNATURE,
    STATE_FOLDER,
    FileStamp,
    Manifest,
    SourceList,
    crop_file_name,
    crop_path,
    manifest_path,
    parse_crop_file_name,
    sources_path,
)
from prismcache.schema import CropFile, Split
from prismcache_service.storage.errors import storage_error
from prismcache_service.storage.lease import Leases

_HASH_BYTES = 1 << 20
_TEMPORARY = ".tmp"
# Not through a link, and without waiting for the other end of a pipe.
_READ_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"))
FILE_MODE = 0o664
FOLDER_MODE = 0o775


@dataclass(frozen=True)
class CropName:
    """Which file: a crop with all its channels (None) or with some."""

    split: Split
    crop: int
    channels: tuple[int, ...] | None = None

    @property
    def folder(self) -> str:
        """The crop's folder below the source's prefix."""
        return f"{self.split.value}/crop_{self.crop}.zarr"

    @property
    def lease(self) -> str:
        """Name of the lease on making this file."""
        return f"{self.split.value}-{crop_file_name(self.crop, self.channels)}"


class CropCache:
    """One cache folder. Nothing is created before something is published.

    Parameters
    ----------
    root
        The folder, absolute.
    shown_root
        What those who are told of files call the folder, where that differs.
    """

    def __init__(self, root: Path, shown_root: Path | None = None) -> None:
        self.root = root
        self._shown_root = shown_root or root
        self.leases = Leases(root / STATE_FOLDER / "leases")

    def shown(self, file: CropFile) -> CropFile:
        """A file with the path that others know it by."""
        return file.model_copy(update={"path": str(self._shown_root / file.split / PurePath(file.path).name)})

    def local_path(self, file: CropFile) -> Path:
        """Where a file that was shown lies here."""
        return self.root / file.split / PurePath(file.path).name

    def path(self, name: CropName) -> Path:
        """Where the file is published."""
        return self.root / crop_path(name.split, name.crop, name.channels)

    def temporary(self, name: CropName, token: str) -> Path:
        """A place for an unfinished file, in the target's folder, that tells whose it is."""
        return _temporary(self.path(name), token)

    def prepare(self, split: Split) -> None:
        """Create the folders.

        Raises
        ------
        StorageUnwritableError
            If they cannot be created or written.
        """
        state = self.root / STATE_FOLDER
        for folder in (
            self.root / split.value,
            state / "manifests" / split.value,
            state / "leases",
            state / "quarantine",
        ):
            try:
                folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            except OSError as error:
                raise storage_error(error, folder) from error

    def check_writable(self) -> None:
        """Create the folders and a file.

        Raises
        ------
        StorageError
            If that fails.
        """
        for split in Split:
            self.prepare(split)
        probe = _temporary(self.root / STATE_FOLDER / "leases" / "probe", uuid.uuid4().hex)
        try:
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise storage_error(error, probe) from error

    def find(self, split: Split, crop: int, channels: Sequence[int] | None) -> CropFile | None:
        """A right file with at least the wanted channels (None: with all), or None. Re-reads files that were touched.

        Files that turn out to be wrong are left in place; `set_aside` moves them.
        """
        for name in self._candidates(split, crop, channels):
            manifest = self.manifest(name)
            if manifest is None or not (manifest.complete or channels is not None):
                continue
            if channels is not None and not set(channels) <= set(manifest.channels):
                continue
            with contextlib.suppress(CropCorruptError):
                self.check(name, manifest)
                return self.describe(name, manifest)
        return None

    def _candidates(self, split: Split, crop: int, channels: Sequence[int] | None) -> Iterator[CropName]:
        yield CropName(split, crop, None)
        if channels is not None:
            exact = CropName(split, crop, tuple(sorted(set(channels))))
            yield exact
            yield from (name for name in self.names(split, crop) if name.channels is not None and name != exact)

    def names(self, split: Split | None = None, crop: int | None = None) -> Iterator[CropName]:
        """Every file that has a manifest, by split, crop and channels."""
        for each in Split if split is None else (split,):
            found = []
            for path in (self.root / STATE_FOLDER / "manifests" / each.value).glob("crop_*.json"):
                parsed = parse_crop_file_name(f"{path.name.removesuffix('.json')}.h5")
                if parsed is not None and crop in {None, parsed[0]}:
                    found.append(CropName(each, *parsed))
            yield from sorted(found, key=lambda name: (name.crop, name.channels or ()))

    def sizes(self) -> list[tuple[CropName, int]]:
        """Every file with a manifest, and its size in bytes."""
        known = [(name, self.manifest(name)) for name in self.names()]
        return [(name, manifest.size) for name, manifest in known if manifest is not None]

    def quarantined_bytes(self) -> int:
        """What the quarantine takes."""
        folder = self.root / STATE_FOLDER / "quarantine"
        return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())

    def manifest(self, name: CropName) -> Manifest | None:
        """A file's manifest; None if there is none that can be read, or it is another file's."""
        try:
            manifest = Manifest.model_validate_json(self._manifest_path(name).read_bytes())
        except (OSError, ValueError):
            return None
        return manifest if _named_by(manifest) == name else None

    def describe(self, name: CropName, manifest: Manifest) -> CropFile:
        """A published file as the client sees it."""
        return CropFile(
            split=name.split,
            crop=name.crop,
            channels=manifest.channels,
            path=str(self._shown_root / crop_path(name.split, name.crop, name.channels)),
            size=manifest.size,
            sha256=manifest.sha256,
            missing_chunks=manifest.missing_chunks,
        )

    def check(self, name: CropName, manifest: Manifest, *, full: bool = False) -> None:
        """See that file and manifest agree; `full` reads every byte even if nothing hints at a change.

        Raises
        ------
        CropCorruptError
            If they do not; says why.
        """
        path = self.path(name)
        try:
            fd = os.open(path, _READ_FLAGS)
        except OSError as error:
            raise CropCorruptError(f"{path} cannot be opened: {error.strerror}") from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise CropCorruptError(f"{path} is no regular file")
            if status.st_size != manifest.size:
                raise CropCorruptError(f"{path} has {status.st_size} bytes, its manifest says {manifest.size}")
            if os.read(fd, len(HDF5_SIGNATURE)) != HDF5_SIGNATURE:
                raise CropCorruptError(f"{path} does not begin as an HDF5 file")
            if not full and stamp_of(status) == manifest.stamp:
                return
            if (found := file_sha256(fd)) != manifest.sha256:
                raise CropCorruptError(f"{path} has SHA-256 {found}, its manifest says {manifest.sha256}")
        except OSError as error:
            raise CropCorruptError(f"{path} cannot be read: {error.strerror}") from error
        finally:
            os.close(fd)
        if stamp_of(status) != manifest.stamp:
            with contextlib.suppress(OSError):  # a reader without write permission re-reads next time
                stamped = manifest.model_copy(update={"stamp": stamp_of(status)})
                self._write_manifest(name, stamped, uuid.uuid4().hex)

    def publish(self, name: CropName, temporary: Path, manifest: Manifest, sources: SourceList, token: str) -> CropFile:
        """Make a finished, synced temporary file the crop's file; `manifest.stamp` is taken here.

        The manifest is on the disk, under a temporary name, before the file is renamed: if everything ends between
        the two renames, `sweep` finds it and completes the publication.

        Raises
        ------
        StorageError
            If the disk refuses.
        """
        target, place = self.path(name), self._manifest_path(name)
        pending = _temporary(place, token)
        try:
            _write_synced(pending, manifest)
            listed = self.root / sources_path(name.split, name.crop, name.channels)
            _write_synced(_temporary(listed, token), sources)
            _temporary(listed, token).replace(listed)
            self._clear(name)
            temporary.replace(target)
            _sync_folder(target.parent)
            manifest = manifest.model_copy(update={"stamp": stamp_of(target.stat())})
            try:
                self._write_manifest(name, manifest, f"{token}.stamped")
                pending.unlink()
            except OSError:  # a disk that is full just now: the pending one lacks the stamp alone, and takes no room
                pending.replace(place)
        except OSError as error:
            self.discard(token)
            raise storage_error(error, target) from error
        return self.describe(name, manifest)

    def _clear(self, name: CropName) -> None:
        """Set aside what lies at the target's place unless it is a file of ours, which a rename replaces."""
        manifest = self.manifest(name)
        if manifest is None or not stat.S_ISREG(self._mode(self.path(name))):
            self.set_aside(name)

    @staticmethod
    def _mode(path: Path) -> int:
        try:
            return path.lstat().st_mode
        except FileNotFoundError:
            return stat.S_IFREG

    def _manifest_path(self, name: CropName) -> Path:
        return self.root / manifest_path(name.split, name.crop, name.channels)

    def _write_manifest(self, name: CropName, manifest: Manifest, token: str) -> None:
        path = self._manifest_path(name)
        temporary = _temporary(path, token)
        _write_synced(temporary, manifest)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    def set_aside(self, name: CropName) -> Path | None:
        """Move whatever lies at a file's place to the quarantine; answers where it went, None if nothing was there.

        Raises
        ------
        StorageError
            If the system refuses.
        """
        path = self.path(name)
        refuge = self.root / STATE_FOLDER / "quarantine" / f"{name.lease}.{uuid.uuid4().hex}"
        try:
            path.rename(refuge)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, path) from error
        return refuge

    def set_aside_wrong(self, split: Split, crop: int, channels: Sequence[int] | None) -> None:
        """Set aside what lies where `find` looked first and is not right; what is right stays."""
        for name in itertools.islice(self._candidates(split, crop, channels), 2):
            manifest = self.manifest(name)
            try:
                if manifest is None:
                    raise CropCorruptError(f"{self.path(name)} has no manifest")
                self.check(name, manifest)
            except CropCorruptError:
                self.set_aside(name)

    def strays(self, split: Split | None = None) -> Iterator[CropName]:
        """Files named like crops that have no readable manifest, nor somebody who is about to write it."""
        for each in Split if split is None else (split,):
            for path in sorted((self.root / each.value).glob("crop_*.h5")):
                parsed = parse_crop_file_name(path.name)
                if parsed is None or self._is_leased(name := CropName(each, *parsed)):
                    continue
                if self.manifest(name) is None:
                    yield name

    def _is_leased(self, name: CropName) -> bool:
        holder = self.leases.holder(name.lease)
        return holder is not None and not holder.is_gone()

    def remove(self, name: CropName) -> None:
        """Delete a file and its manifest, the manifest first.

        Raises
        ------
        StorageError
            If the system refuses.
        """
        sources = self.root / sources_path(name.split, name.crop, name.channels)
        for path in (self._manifest_path(name), sources, self.path(name)):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(error, path) from error

    def sweep(self) -> list[Path]:
        """Delete what ended processes left unfinished, completing publications that lacked only the last step.

        Returns
        -------
        list of Path
            What was deleted.
        """
        # Looked for first, and leases second: whoever makes a temporary file has had a lease before.
        left = [path for folder in self._folders() for path in folder.glob(f".*{_TEMPORARY}")]
        live = self.leases.sweep()
        swept = []
        for path in left:
            if not live & set(path.name.split(".")) and not self._adopt(path):
                with contextlib.suppress(OSError):
                    path.unlink()
                    swept.append(path)
        return swept

    def discard(self, token: str) -> None:
        """Delete what a worker that died left unfinished under `token`, completing what lacked only the last step."""
        for folder in self._folders():
            for path in folder.glob(f".*.{token}*{_TEMPORARY}"):
                if not self._adopt(path):
                    with contextlib.suppress(OSError):
                        path.unlink()

    def _adopt(self, pending: Path) -> bool:
        """Complete the publication that a pending manifest belongs to, if its file is in place and right."""
        try:
            manifest = Manifest.model_validate_json(pending.read_bytes())
        except (OSError, ValueError):
            return False
        name = _named_by(manifest)
        if self.manifest(name) is not None:
            return False
        try:
            self.check(name, manifest, full=True)
            pending.replace(self._manifest_path(name))
        except (CropCorruptError, OSError):
            return False
        return True

    def _folders(self) -> Iterator[Path]:
        for split in Split:
            yield self.root / split.value
            yield self.root / STATE_FOLDER / "manifests" / split.value
        yield self.root / STATE_FOLDER / "leases"


def _named_by(manifest: Manifest) -> CropName:
    return CropName(manifest.split, manifest.crop, None if manifest.complete else manifest.channels)


def _temporary(target: Path, token: str) -> Path:
    return target.with_name(f".{target.name}.{token}{_TEMPORARY}")


def _write_synced(path: Path, document: BaseModel) -> None:
    try:
        with path.open("xb") as file:
            file.write(document.model_dump_json(indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def file_bytes_bound(shape: Sequence[int], channels: int) -> int:
    """More bytes than the file of a crop of (Z, Y, X) voxels can take: deflate of noise adds less than 1 %."""
    return math.prod(shape) * (channels + 4) * 101 // 100 + (4 << 20)


def stamp_of(status: os.stat_result) -> FileStamp:
    """Size and times of a file."""
    return FileStamp(size=status.st_size, mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns)


def file_sha256(fd: int) -> str:
    """SHA-256 (hex) of an open file from its beginning."""
    digest = hashlib.sha256()
    buffer = bytearray(_HASH_BYTES)
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(os.dup(fd), "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
