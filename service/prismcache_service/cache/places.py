"""Where everything lies in a cache folder."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path, PurePath

from prismcache.layout import STATE_FOLDER, crop_file_name, crop_path, manifest_path, sources_path
from prismcache.schema import CropFile, Split
from prismcache_service.cache.errors import storage_error
from prismcache_service.cache.files import FOLDER_MODE, temporary_beside


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


class Places:
    """The paths of one cache folder.

    Parameters
    ----------
    root
        The folder, absolute.
    shown_root
        What those who are told of files call the folder, where that differs.
    """

    def __init__(self, root: Path, shown_root: Path | None = None) -> None:
        self.root = root
        self.shown_root = shown_root or root
        self.leases_folder = root / STATE_FOLDER / "leases"
        self.quarantine_folder = root / STATE_FOLDER / "quarantine"

    def shown(self, file: CropFile) -> CropFile:
        """A file with the path that others know it by."""
        return file.model_copy(update={"path": str(self.shown_root / file.split / PurePath(file.path).name)})

    def local_path(self, file: CropFile) -> Path:
        """Where a file that was shown lies here."""
        return self.root / file.split / PurePath(file.path).name

    def path(self, name: CropName) -> Path:
        """Where the file is published."""
        return self.root / crop_path(name.split, name.crop, name.channels)

    def shown_path(self, name: CropName) -> Path:
        """The same, as others know it."""
        return self.shown_root / crop_path(name.split, name.crop, name.channels)

    def manifest_path(self, name: CropName) -> Path:
        """Where its manifest is."""
        return self.root / manifest_path(name.split, name.crop, name.channels)

    def sources_path(self, name: CropName) -> Path:
        """Where the list of the objects that it was made of is."""
        return self.root / sources_path(name.split, name.crop, name.channels)

    def temporary(self, name: CropName, token: str) -> Path:
        """A place for an unfinished file, in the target's folder, that tells whose it is."""
        return temporary_beside(self.path(name), token)

    def prepare(self, split: Split) -> None:
        """Create the folders.

        Raises
        ------
        StorageUnwritableError
            If they cannot be created or written.
        """
        manifests = self.root / STATE_FOLDER / "manifests" / split.value
        for folder in (self.root / split.value, manifests, self.leases_folder, self.quarantine_folder):
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
        probe = temporary_beside(self.leases_folder / "probe", uuid.uuid4().hex)
        try:
            probe.write_bytes(b"")
            probe.unlink(missing_ok=True)  # a sweep may have been quicker
        except OSError as error:
            raise storage_error(error, probe) from error

    def working_folders(self) -> list[Path]:
        """Where temporary files are made."""
        state = self.root / STATE_FOLDER
        places = [self.root / split.value for split in Split] + [state / "manifests" / split.value for split in Split]
        return [*places, self.leases_folder, state]
