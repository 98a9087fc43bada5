"""The cache folder: which files are published, which of them are right, and which are left over.

A crop is cached when its manifest and its file agree. A hit costs one small JSON and one ``fstat``: equal size and time
stamps mean that the file was not touched since its SHA-256 was taken. With other stamps a file is *doubtful*: it is
read again before it is returned. A file that does not agree with its manifest is set aside in
``.prismcache/quarantine`` and made again. An error of the system says nothing about a file's content: see
`prismcache.disk`.

This module imports neither numpy nor h5py, so that a warm `ensure` stays quick.
"""

from __future__ import annotations

import contextlib
import itertools
import stat
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from prismcache.disk import (
    TEMPORARY,
    VerifiedFiles,
    disk_errors,
    share_with_group,
    stamp_of,
    storage_error,
    sync_folder,
    temporary_beside,
    write_atomically,
    write_new,
)
from prismcache.errors import CropCorruptError, StorageError
from prismcache.layout import FileStamp, Manifest, SourceList, covers, parse_file_name
from prismcache.schema import NO_CONTEXT, CropFile, Product, Split
from prismcache.splits import Splits
from prismcache_service.cache.making_lock import MakingLocks
from prismcache_service.cache.places import CropName, Places, mode_of, named_by
from prismcache_service.cache.quarantine import Quarantine
from prismcache_service.cache.threads import DiskThreads, SingleFlight

KEEP_QUARANTINE = timedelta(days=7)

_ADOPT = "(`prismcache adopt FILE` takes over a file of another cache)"


@dataclass(frozen=True)
class Found:
    """What a look-up found.

    Attributes
    ----------
    file
        A right file with at least the wanted channels, or None.
    doubtful
        Without a right file: files that may be right and have to be read again first.
    wrong
        Without a right file: what lies in the place of one and is not right, with the reason.
    """

    file: CropFile | None = None
    doubtful: tuple[CropName, ...] = ()
    wrong: Mapping[CropName, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Reading:
    """What came of reading a file as a whole: its stamp before, the SHA-256 it should have, and why it is wrong."""

    stamp: FileStamp
    wanted: str
    reason: str


class CropCache(Places):
    """One cache folder. Nothing is created before something is published.

    Plain methods wait for the disk; on an event loop they go through `threads`, as the asynchronous methods do.

    `keep_quarantine` is how long things that were set aside are kept, unless the room is needed before. `readings` is a
    folder of this user, where the result of reading a file again is kept if the cache folder cannot be written. Methods
    raise `StorageError` if the system refuses, and as `Splits.entry` and `Places.prepare` do for a split that is
    unknown or another catalog's.
    """

    def __init__(
        self,
        root: Path,
        shown_root: Path | None = None,
        keep_quarantine: timedelta = KEEP_QUARANTINE,
        readings: Path | None = None,
        splits: Splits | None = None,
    ) -> None:
        super().__init__(root, shown_root, splits)
        self.threads = DiskThreads()
        self.locks = MakingLocks(self.locks_folder, self.threads, root)
        self.quarantine = Quarantine(self.quarantine_folder)
        self._keep_quarantine = keep_quarantine
        self._readings = None if readings is None else VerifiedFiles(readings)
        self._read: dict[CropName, _Reading] = {}
        self._reading_again = SingleFlight()

    async def aclose(self) -> None:
        """Stop reading files again, and end the threads."""
        await self._reading_again.aclose()
        self.threads.close()

    async def find(self, wanted: CropName) -> Found:
        """Look a crop up, reading doubtful files again, each once however many ask; nothing in `doubtful` is left."""
        while (found := await self.threads.run(self.look, wanted)).doubtful:
            await self.read_again(found.doubtful[0])
        return found

    async def read_again(self, name: CropName) -> str:
        """Return what `verify` does; a file that is being read already is not read twice side by side."""
        return await self._reading_again.run(name, partial(self.threads.read, self.verify, name))

    def look(self, wanted: CropName) -> Found:
        """Look a crop up without reading whole files; `wanted` says which channels the file must have (None: all)."""
        doubtful, wrong = [], {}
        own = [replace(wanted, channels=None)]  # the file with all channels, and the one with exactly those wanted
        if wanted.channels is not None:
            own.append(replace(wanted, channels=tuple(sorted({*wanted.channels}))))
        for name in itertools.chain(own, self._others(wanted, own)):
            manifest = self.manifest(name)
            self.refuse_newer(name, manifest)
            if manifest is None:
                if name in own and mode_of(self.path(name)) is not None:
                    wrong[name] = f"{self.shown_path(name)} has no manifest that can be read {_ADOPT}"
            elif (wanted.channels is None and not manifest.complete) or self._is_outdated(manifest):
                continue
            elif wanted.channels is None or set(wanted.channels) <= set(manifest.channels):
                try:
                    if self._is_known_right(name, manifest):
                        return Found(self.describe(name, manifest))
                    doubtful.append(name)
                except CropCorruptError as error:
                    if name in own:
                        wrong[name] = str(error)
        return Found(None, tuple(doubtful), wrong)

    def _others(self, wanted: CropName, own: Collection[CropName]) -> Iterator[CropName]:
        """Yield the names of further files that may have what is wanted, and more."""
        if wanted.channels is not None or wanted.context != NO_CONTEXT:
            for name in self.names(wanted.split, wanted.crop):
                if name.product is wanted.product and covers(name.context, wanted.context) and name not in own:
                    yield name

    def _is_outdated(self, manifest: Manifest) -> bool:
        """Return whether a product was made from another file of the crop than the cached one."""
        if manifest.definition != self.splits.entry(manifest.split).definition:
            raise self.conflict(manifest.split, f"crop {manifest.crop} was made from {manifest.source}")
        if manifest.product is Product.CROP:
            return False
        crop = self.manifest(CropName(manifest.split, manifest.crop))
        return crop is not None and crop.sha256 != manifest.crop_sha256

    def files(self, split: Split | None = None) -> tuple[list[CropFile], list[CropName]]:
        """Return the right files, and the names of those that must be read again to know whether they are right."""
        right, doubtful = [], []
        for name in self.names(split):
            manifest = self.manifest(name)
            with contextlib.suppress(CropCorruptError):
                if manifest is None or manifest.definition != self.splits[name.split].definition:
                    continue
                if self._is_known_right(name, manifest):
                    right.append(self.describe(name, manifest))
                else:
                    doubtful.append(name)
        return right, doubtful

    def _is_known_right(self, name: CropName, manifest: Manifest) -> bool:
        """Return True if the file was not touched since its content was known to be right; False means doubtful.

        Raise `CropCorruptError` if the file is known to be wrong.
        """
        stamp = self.compare(name, manifest, full=False)
        reading = self._read.get(name)
        if reading is not None and (reading.stamp, reading.wanted) == (stamp, manifest.sha256):
            if reading.reason:
                raise CropCorruptError(reading.reason)
            return True
        return stamp == manifest.stamp or (
            self._readings is not None and self._readings.recall(self.path(name), stamp) == manifest.sha256
        )

    def verify(self, name: CropName) -> str:
        """Read a whole file, keep the result, and return why it is wrong; empty if it is right.

        A right file is a hit from now on; a wrong one is never a hit again, even if its stamps agree.
        """
        manifest = self.manifest(name)
        if manifest is None:
            self.refuse_newer(name, None)
            return f"{self.shown_path(name)} has no manifest that can be read {_ADOPT}"
        try:
            stamp = self.compare(name, manifest, full=False)
        except CropCorruptError as error:
            return str(error)
        reason = ""
        try:
            stamp_after = self.compare(name, manifest, full=True)
        except CropCorruptError as error:
            reason = str(error)
            stamp_after = FileStamp(size=manifest.size, mtime_ns=0, ctime_ns=0)  # no file has it: always doubtful
        self._read[name] = _Reading(stamp, manifest.sha256, reason)
        try:
            self._stamp(name, manifest, stamp_after)
        except OSError:  # a reader without write permission
            if self._readings is not None and not reason:
                self._readings.remember(self.path(name), stamp_after, manifest.sha256)
        return reason

    def publish(self, name: CropName, temporary: Path, manifest: Manifest, sources: SourceList, token: str) -> CropFile:
        """Make a finished, synced temporary file the crop's file; `manifest.stamp` is taken here.

        The manifest is on the disk, under a temporary name, before the file is renamed: if everything ends between
        the two renames, `sweep` finds it and completes the publication.
        """
        target, place = self.path(name), self.manifest_path(name)
        pending = temporary_beside(place, token)
        try:
            write_new(pending, _json(manifest), self.root)
            self._write(self.sources_path(name), sources, token)
            share_with_group(temporary, self.root)
            if self.manifest(name) is None or not stat.S_ISREG(mode_of(target) or stat.S_IFREG):
                self.set_aside(name)  # not a file of ours, which a rename may replace
            temporary.replace(target)
            sync_folder(target.parent)
            manifest = manifest.model_copy(update={"stamp": stamp_of(target.stat())})
            try:
                self._write(place, manifest, f"{token}.stamped")
            except OSError:  # a disk that is full just now: the pending one lacks the stamp alone, and takes no room
                pending.replace(place)
            else:
                with contextlib.suppress(OSError):  # the next sweep deletes it
                    pending.unlink()
        except OSError as error:
            self.discard(token)
            raise storage_error(error, target) from error
        return self.describe(name, manifest)

    def _write(self, path: Path, document: BaseModel, token: str) -> None:
        write_atomically(path, _json(document), token, durable=True, like=self.root)

    def set_aside(self, name: CropName) -> Path | None:
        """Move what lies in a file's place to the quarantine; return where it is, or None if nothing was there."""
        return self.quarantine.take(self.path(name), name.lock)

    def strays(self, split: Split | None = None) -> Iterator[CropName]:
        """Yield files named like crops that have no readable manifest and are not being made."""
        for each in self.these(split):
            for path in sorted((self.root / each.value).glob("crop_*")):
                parsed = parse_file_name(path.name)
                if parsed is None:
                    continue
                name = CropName(each, *parsed)
                holder = self.locks.holder(name.lock)
                if (holder is None or holder.is_gone()) and self.manifest(name) is None:
                    with contextlib.suppress(StorageError):
                        self.refuse_newer(name, None)
                        yield name

    def remove(self, name: CropName) -> None:
        """Delete a file and its manifest, the manifest first."""
        self.forget(name)
        path = self.path(name)
        with disk_errors(path, "PRISMCACHE_ROOT"):
            path.unlink(missing_ok=True)

    def forget(self, name: CropName) -> None:
        """Delete the manifest of a file that was set aside and is not made again."""
        for path in (self.manifest_path(name), self.sources_path(name)):
            with disk_errors(path, "PRISMCACHE_ROOT"):
                path.unlink(missing_ok=True)

    def sweep(self) -> list[Path]:
        """Delete the temporary files of processes that ended; complete publications that lacked only the last step.

        Old entries of the quarantine are deleted, too. Files that cannot be deleted now are left to the next sweep.

        Return what was deleted.
        """
        swept: list[Path] = []
        with contextlib.suppress(OSError):
            # Temporary files first, and locks second: a process that makes a temporary file took its lock before.
            left = [path for folder in self.working_folders() for path in folder.glob(f".*{TEMPORARY}")]
            live = self.locks.sweep()
            swept += self._clear([path for path in left if not live & set(path.name.split("."))])
            swept += [entry.path for entry in self.quarantine.expire(self._keep_quarantine)]
        return swept

    def discard(self, token: str) -> None:
        """Delete the unfinished files of an ended holder of `token`; complete a publication that lacked one step."""
        with contextlib.suppress(OSError):  # the sweep comes by later
            pattern = f".*.{token}*{TEMPORARY}"
            self._clear([path for folder in self.working_folders() for path in folder.glob(pattern)])

    def _clear(self, paths: Collection[Path]) -> list[Path]:
        cleared = []
        for path in paths:
            with contextlib.suppress(OSError, StorageError):
                if not self._adopt(path):
                    path.unlink()
                    cleared.append(path)
        return cleared

    def _adopt(self, pending: Path) -> bool:
        """Complete the publication that a pending manifest belongs to, if its file is in place and right."""
        try:
            manifest = Manifest.model_validate_json(pending.read_bytes())
        except ValueError:
            return False
        name = named_by(manifest)
        if self.manifest(name) is not None:
            return False
        try:
            stamp = self.compare(name, manifest, full=True)
        except CropCorruptError:
            return False
        try:
            pending.replace(self.manifest_path(name))
        except OSError:
            return False
        with contextlib.suppress(OSError):  # without the stamp, the file is read again by the first look-up
            self._stamp(name, manifest, stamp)
        return True

    def _stamp(self, name: CropName, manifest: Manifest, stamp: FileStamp) -> None:
        if stamp != manifest.stamp:
            self._write(self.manifest_path(name), manifest.model_copy(update={"stamp": stamp}), uuid.uuid4().hex)


def _json(document: BaseModel) -> bytes:
    return document.model_dump_json(indent=1).encode()
