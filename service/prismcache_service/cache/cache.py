"""The cache folder: what is published, what is right, what is left over.

A crop is cached when its manifest and its file agree. Finding a hit costs one small JSON and one ``fstat``: equal size
and time stamps mean that nobody touched the file since its SHA-256 was taken; different ones cause a re-read, never a
trust. A file that does not agree is set aside in ``.prismcache/quarantine`` and made again.

This module imports neither numpy nor h5py, so that a warm `ensure` stays quick.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import stat
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from prismcache.errors import CropCorruptError
from prismcache.layout import STATE_FOLDER, Manifest, SourceList, parse_crop_file_name
from prismcache.schema import CropFile, Split
from prismcache_service.cache import leftovers
from prismcache_service.cache.errors import storage_error
from prismcache_service.cache.files import (
    FILE_MODE,
    compare,
    file_sha256,
    stamp_of,
    sync_folder,
    temporary_beside,
    write_synced,
)
from prismcache_service.cache.making_lock import Leases
from prismcache_service.cache.places import CropName, Places
from prismcache_service.cache.quarantine import Quarantine

__all__ = ["FILE_MODE", "CropCache", "CropName", "file_bytes_bound", "file_sha256"]

KEEP_QUARANTINE = timedelta(days=7)


class CropCache(Places):
    """One cache folder. Nothing is created before something is published.

    Parameters
    ----------
    root, shown_root
        As for `Places`.
    keep_quarantine
        How long what was set aside is kept, if nobody needs the room before.
    """

    def __init__(
        self, root: Path, shown_root: Path | None = None, keep_quarantine: timedelta = KEEP_QUARANTINE
    ) -> None:
        super().__init__(root, shown_root)
        self.leases = Leases(self.leases_folder)
        self.quarantine = Quarantine(self.quarantine_folder)
        self._keep_quarantine = keep_quarantine

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
        """Every file with a manifest that is there, and what it takes in bytes."""
        found = []
        for name in self.names():
            with contextlib.suppress(OSError):
                found.append((name, self.path(name).lstat().st_size))
        return found

    def manifest(self, name: CropName) -> Manifest | None:
        """A file's manifest; None if there is none that can be read, or it is another file's."""
        try:
            manifest = Manifest.model_validate_json(self.manifest_path(name).read_bytes())
        except (OSError, ValueError):
            return None
        return manifest if _named_by(manifest) == name else None

    def describe(self, name: CropName, manifest: Manifest) -> CropFile:
        """A published file as the client sees it."""
        return CropFile(
            split=name.split,
            crop=name.crop,
            channels=manifest.channels,
            path=str(self.shown_path(name)),
            size=manifest.size,
            sha256=manifest.sha256,
            missing_chunks=manifest.missing_chunks,
            source_fingerprint=manifest.source_fingerprint,
        )

    def check(self, name: CropName, manifest: Manifest, *, full: bool = False) -> None:
        """See that file and manifest agree; `full` reads every byte even if nothing hints at a change.

        Raises
        ------
        CropCorruptError
            If they do not; says why.
        """
        stamp = compare(self.path(name), manifest, self.shown_path(name), full=full)
        if stamp != manifest.stamp:
            with contextlib.suppress(OSError):  # a reader without write permission re-reads next time
                self._write_manifest(name, manifest.model_copy(update={"stamp": stamp}), uuid.uuid4().hex)

    def publish(self, name: CropName, temporary: Path, manifest: Manifest, sources: SourceList, token: str) -> CropFile:
        """Make a finished, synced temporary file the crop's file; `manifest.stamp` is taken here.

        The manifest is on the disk, under a temporary name, before the file is renamed: if everything ends between
        the two renames, `sweep` finds it and completes the publication.

        Raises
        ------
        StorageError
            If the disk refuses.
        """
        target, place = self.path(name), self.manifest_path(name)
        pending = temporary_beside(place, token)
        try:
            write_synced(pending, manifest)
            listed = self.sources_path(name)
            write_synced(temporary_beside(listed, token), sources)
            temporary_beside(listed, token).replace(listed)
            self._clear(name)
            temporary.replace(target)
            sync_folder(target.parent)
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

    def _write_manifest(self, name: CropName, manifest: Manifest, token: str) -> None:
        path = self.manifest_path(name)
        temporary = temporary_beside(path, token)
        write_synced(temporary, manifest)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)

    def set_aside(self, name: CropName) -> Path | None:
        """Move whatever lies at a file's place to the quarantine; answers where it went, None if nothing was there.

        Raises
        ------
        StorageError
            If the system refuses.
        """
        return self.quarantine.take(self.path(name), name.lease)

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
        sources = self.sources_path(name)
        for path in (self.manifest_path(name), sources, self.path(name)):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(error, path) from error

    def sweep(self) -> list[Path]:
        """Delete what ended processes left unfinished, completing publications that lacked only the last step.

        What has been in the quarantine for long enough goes, too.

        Returns
        -------
        list of Path
            What was deleted.
        """
        swept = leftovers.sweep(self.working_folders(), self.leases, self._adopt)
        return swept + [entry.path for entry in self.quarantine.expire(self._keep_quarantine)]

    def discard(self, token: str) -> None:
        """Delete what a worker that died left unfinished under `token`, completing what lacked only the last step."""
        leftovers.discard(self.working_folders(), token, self._adopt)

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
            pending.replace(self.manifest_path(name))
        except (CropCorruptError, OSError):
            return False
        return True


def _named_by(manifest: Manifest) -> CropName:
    return CropName(manifest.split, manifest.crop, None if manifest.complete else manifest.channels)


def file_bytes_bound(shape: Sequence[int], channels: int) -> int:
    """More bytes than the file of a crop of (Z, Y, X) voxels can take: deflate of noise adds less than 1 %."""
    return math.prod(shape) * (channels + 4) * 101 // 100 + (4 << 20)
