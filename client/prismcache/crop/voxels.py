"""A crop's raw and original labels as arrays that read only the voxels which are indexed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prismcache.crop.boxes import Box, Shape3
from prismcache.crop.facts import Facts, Provenance
from prismcache.errors import CropCorruptError
from prismcache.schema import Split
from prismcache.splits import SplitEntry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class OpenCrop(Protocol):
    """The part of `prismcache.Crop` that the room's other modules read."""

    path: Path

    @property
    def split(self) -> Split: ...
    @property
    def crop_id(self) -> int: ...
    @property
    def channels(self) -> Sequence[int]: ...
    @property
    def shape(self) -> Shape3: ...
    @property
    def raw_shape(self) -> Shape3: ...
    @property
    def has_labels(self) -> bool: ...
    @property
    def arrays(self) -> Sequence[str]: ...
    @property
    def labels(self) -> Any: ...
    @property
    def labels_ids(self) -> NDArray[np.uint64]: ...
    @property
    def provenance(self) -> Provenance: ...
    @property
    def facts(self) -> Facts: ...
    @property
    def entry(self) -> SplitEntry: ...
    @property
    def voxel_size_nm(self) -> tuple[float, float, float] | None: ...
    @property
    def context(self) -> tuple[Shape3, Shape3]: ...
    def read(self, box: Box | None = None, channels: Sequence[int] | None = None) -> NDArray[np.uint8]: ...
    def channel(self, channel: int) -> Any: ...
    def array(self, name: str) -> Any: ...


class RawVoxels:
    """Raw of a crop as one array (C, Z, Y, X) uint8. Indexing reads only the voxels that are selected.

    Indices are those of h5py: integers, slices, one list or mask.
    """

    ndim = 4

    def __init__(self, crop: OpenCrop) -> None:
        self._crop = crop

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self._crop.channels), *self._crop.raw_shape

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        import numpy as np

        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self._crop.channels)

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        import numpy as np

        index = key if isinstance(key, tuple) else (key,)
        at = next((place for place, part in enumerate(index) if part is Ellipsis), len(index))
        before, after = index[:at], index[at + 1 :]
        whole: list[Any] = [*before, *[slice(None)] * (self.ndim - len(before) - len(after)), *after]
        chosen, inner = np.asarray(self._crop.channels)[whole[0]], tuple(whole[1:])
        if chosen.ndim == 0:
            return np.asarray(self._crop.channel(int(chosen))[inner])
        parts = [self._crop.channel(int(channel))[inner] for channel in chosen]
        if not parts:
            raise IndexError("no channel is indexed")
        return np.stack(parts)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001 - numpy's protocol
        import numpy as np

        if copy is False:
            raise ValueError("voxels on disk cannot become an array without a copy")
        return np.asarray(self[...], dtype)


class OriginalLabels:
    """Labels of a crop with the source's ids, (Z, Y, X) uint64. Indexing reads only the voxels that are selected."""

    ndim = 3

    def __init__(self, crop: OpenCrop) -> None:
        self._crop = crop
        self._ids = crop.labels_ids

    @property
    def shape(self) -> Shape3:
        return self._crop.shape

    @property
    def dtype(self) -> np.dtype[np.uint64]:
        return self._ids.dtype

    def __len__(self) -> int:
        return self._crop.shape[0]

    def __getitem__(self, key: Any) -> NDArray[np.uint64]:
        labels = self._crop.labels[key]
        try:
            found: NDArray[np.uint64] = self._ids[labels]
        except IndexError as error:
            raise CropCorruptError(f"{self._crop.path}: a label is larger than the table of original ids") from error
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001 - numpy's protocol
        import numpy as np

        if copy is False:
            raise ValueError("voxels on disk cannot become an array without a copy")
        return np.asarray(self[...], dtype)
