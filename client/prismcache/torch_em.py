"""torch_em's ``e11bio`` loaders over the cache or the lab's service. Needs ``prismcache[torch-em]``.

One import line moves a training script over::

    from prismcache.torch_em import get_e11bio_loader  # was: torch_em.data.datasets.light_microscopy.e11bio

Arguments, defaults, files and batches are those of torch_em; `label_values` is new. These things differ:

- `path` is the cache folder. With a service (``PRISMCACHE_URL``) it is this machine's mount of the service's folder,
  unless ``PRISMCACHE_ROOT`` names that; a crop that the mount does not show is downloaded from the service into
  ``PRISMCACHE_DOWNLOADS``. The paths that are returned say where each file lies.
- ``download=False`` fetches nothing from the bucket: a crop that neither the folder nor the service has is an error. A
  file without our manifest (one that torch_em wrote) does not count, since nothing says that it is complete.
- Several processes that ask at once share one download, and a crop is verified before its path is returned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, get_args
from warnings import warn

from prismcache.errors import MissingExtraError

try:
    import numpy as np
    import torch_em
    from torch_em.data.datasets import util
    from torch_em.data.datasets.light_microscopy.e11bio import SPLIT_NUM_CROPS
except ImportError as error:
    raise MissingExtraError(
        f"prismcache.torch_em needs {error.name}, which is not installed", remedy='pip install "prismcache[torch-em]"'
    ) from error

from prismcache.arguments import as_crops, as_split
from prismcache.client import PrismClient
from prismcache.client.aio import frames_inside
from prismcache.config import Settings
from prismcache.crop import Crop, LabelValues
from prismcache.errors import ClassNumbersWarning, CropNotCachedError, RequestError, ServiceUnreachableError
from prismcache.layout import LABELS, crop_file_name, crop_path, manifest_of, raw_dataset
from prismcache.schema import Split

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.utils.data import DataLoader, Dataset

SplitName = Literal["instance", "semantic"]
LabelTransform = Callable[[Any], Any]

_EXACT = 2**24
"""Ids below this are exact in the float32 that torch_em's augmentations compute in."""


def get_e11bio_data(
    path: os.PathLike[str] | str,
    split: SplitName = "instance",
    crop_ids: Sequence[int] | None = None,
    download: bool = False,  # noqa: FBT001, FBT002 - torch_em's signature
) -> list[str]:
    """Return the paths of the crops' files, with all channels; crops that are not cached are fetched.

    Parameters
    ----------
    path
        The cache folder. With a service, the mount of the service's folder; see the module docstring.
    split
        "instance" or "semantic".
    crop_ids
        Crop numbers; None is all crops that torch_em knows (14 instance, 17 semantic).
    download
        Whether crops that are not cached are fetched from the bucket.

    Returns
    -------
    list of str
        Absolute paths, in the order asked.

    Raises
    ------
    CropNotCachedError
        If `download` is False and a crop is not cached; a RuntimeError too, as torch_em raises.
    PrismError
        If a crop cannot be made; see `prismcache.errors`.
    """
    crops = as_crops(range(SPLIT_NUM_CROPS[as_split(split)]) if crop_ids is None else crop_ids) or ()
    client = _client(path)
    if not download:
        _refuse_missing(client, as_split(split), crops)
    # The client is dropped, not closed: a service then keeps these crops while the process lives.
    return client.ensure(split, crops)


def get_e11bio_paths(
    path: os.PathLike[str] | str,
    split: SplitName = "instance",
    crop_ids: Sequence[int] | None = None,
    download: bool = False,  # noqa: FBT001, FBT002 - torch_em's signature
) -> list[str]:
    """The same as `get_e11bio_data`."""
    return get_e11bio_data(path, split, crop_ids, download)


def get_e11bio_dataset(  # noqa: PLR0913, PLR0917 - torch_em's signature
    path: os.PathLike[str] | str,
    patch_shape: tuple[int, int, int],
    split: SplitName = "instance",
    crop_ids: Sequence[int] | None = None,
    channel: int = 0,
    download: bool = False,  # noqa: FBT001, FBT002 - torch_em's signature
    offsets: list[list[int]] | None = None,
    boundaries: bool = False,  # noqa: FBT001, FBT002 - torch_em's signature
    *,
    label_values: LabelValues = "consecutive",
    **kwargs: Any,
) -> Dataset[Any]:
    """Return torch_em's dataset of random patches of these crops.

    Parameters
    ----------
    path, split, crop_ids, download
        As `get_e11bio_data` takes them.
    patch_shape
        (Z, Y, X) in voxels.
    channel
        The channel that is raw; every crop must have it (0-9 exist in all).
    offsets
        Affinities at these offsets (voxels; Z,Y,X) are the target, with their mask.
    boundaries
        Boundaries are the target.
    label_values
        "consecutive" takes labels as torch_em writes them, numbered crop by crop. "original" takes the ids of the
        source, which mean the same class in every semantic crop; they are looked up as soon as a patch is read, so
        that `sampler`, `pre_label_transform` and all other transforms see them, as uint32.
    **kwargs
        Arguments of `torch_em.default_segmentation_dataset`.

    Returns
    -------
    Dataset
        Pairs (raw, label), each (C, Z, Y, X) float32 unless `kwargs` say otherwise.

    Raises
    ------
    UnknownChannelError
        If a crop lacks the channel.
    RequestError
        If `patch_shape` has not three axes, or `label_values` is "original" and an id of a crop is 2**24 or more,
        which torch_em's float32 does not hold exactly.
    PrismError
        As `get_e11bio_data` raises.

    Warns
    -----
    ClassNumbersWarning
        If labels of semantic crops are "consecutive" and a number means one class in one crop, another in the next.
    """
    if len(patch_shape) != 3:
        raise RequestError(f"patch_shape must be (Z, Y, X), not {tuple(patch_shape)!r}")
    if label_values not in get_args(LabelValues):
        raise RequestError(f"label_values must be one of {get_args(LabelValues)}, not {label_values!r}")
    paths = get_e11bio_paths(path, split, crop_ids, download)
    tables = []
    for crop_file in paths:
        with Crop(crop_file) as crop:
            crop.channel(channel)  # raises if the file lacks it
            tables.append(crop.labels_ids)
    if label_values == "consecutive" and as_split(split) is Split.SEMANTIC:
        _warn_of_different_classes(paths, tables)
    kwargs = util.update_kwargs(kwargs, "is_seg_dataset", True)
    kwargs, _ = util.add_instance_label_transform(
        kwargs, add_binary_target=False, boundaries=boundaries, offsets=offsets
    )
    dataset = torch_em.default_segmentation_dataset(
        raw_paths=paths,
        raw_key=raw_dataset(channel),
        label_paths=paths,
        label_key=LABELS,
        patch_shape=patch_shape,
        ndim=3,
        **kwargs,
    )
    if label_values == "original":
        for crop_file, part, table in zip(paths, dataset.datasets, tables, strict=True):
            part.pre_label_transform = OriginalIds(_small(crop_file, table), part.pre_label_transform)
    return dataset


def get_e11bio_loader(  # noqa: PLR0913, PLR0917 - torch_em's signature
    path: os.PathLike[str] | str,
    patch_shape: tuple[int, int, int],
    batch_size: int,
    split: SplitName = "instance",
    crop_ids: Sequence[int] | None = None,
    channel: int = 0,
    download: bool = False,  # noqa: FBT001, FBT002 - torch_em's signature
    offsets: list[list[int]] | None = None,
    boundaries: bool = False,  # noqa: FBT001, FBT002 - torch_em's signature
    *,
    label_values: LabelValues = "consecutive",
    **kwargs: Any,
) -> DataLoader[Any]:
    """Return torch_em's loader of batches of these crops.

    Parameters
    ----------
    path, patch_shape, split, crop_ids, channel, download, offsets, boundaries, label_values
        As `get_e11bio_dataset` takes them, with its errors and warnings.
    batch_size
        Patches in a batch.
    **kwargs
        Arguments of `torch_em.default_segmentation_dataset`; all others go to `torch.utils.data.DataLoader`.

    Returns
    -------
    DataLoader
        Pairs (raw, label), each (N, C, Z, Y, X).

    Examples
    --------
    >>> loader = get_e11bio_loader("/lab/prism", (32, 256, 256), 1, crop_ids=[0, 5], download=True, num_workers=2)
    """
    for_dataset, for_loader = util.split_kwargs(torch_em.default_segmentation_dataset, **kwargs)
    dataset = get_e11bio_dataset(
        path,
        patch_shape,
        split,
        crop_ids,
        channel,
        download,
        offsets,
        boundaries,
        label_values=label_values,
        **for_dataset,
    )
    return torch_em.get_data_loader(dataset, batch_size, **for_loader)


@dataclass(frozen=True, eq=False)
class OriginalIds:
    """A label transform that looks up original ids, then calls the user's own. Can be pickled, for spawned workers.

    Attributes
    ----------
    table
        (n+1,) uint32, the original id of each label.
    then
        The user's `pre_label_transform`, which gets the original ids; or None.
    """

    table: NDArray[np.uint32]
    then: LabelTransform | None = None

    def __call__(self, labels: NDArray[np.uint32]) -> Any:
        found = self.table[labels]
        return found if self.then is None else self.then(found)


def _client(path: os.PathLike[str] | str) -> PrismClient:
    settings = Settings.load()
    if settings.url is not None and settings.mount is not None:
        return PrismClient(settings=settings)
    return PrismClient(Path(path), settings=settings)


def _refuse_missing(client: PrismClient, split: Split, crops: Sequence[int]) -> None:
    """Check that no crop would have to be fetched from the bucket.

    Raises
    ------
    CropNotCachedError
        If crops are not cached; the message names them.
    """
    here = client.settings
    try:
        if here.url is None:
            cached = _shown(here.root, split, crops)
        else:
            named = ((info.crop, PurePath(file.path).name) for info in client.catalog(split) for file in info.files)
            cached = {crop for crop, name in named if name == crop_file_name(crop)}
    except ServiceUnreachableError:  # then the mount is the record, as it is for `ensure`
        cached = _shown(here.root, split, crops)
    missing = [crop for crop in dict.fromkeys(crops) if crop not in cached]
    if missing:
        names = ", ".join(f"{split.value}/{crop}" for crop in missing)
        files = [here.root / crop_path(split, crop) for crop in missing] if here.url is None else []
        unknown = next(
            (f" ({file} lies there, but is not known to be complete)" for file in files if file.exists()), ""
        )
        raise CropNotCachedError(
            f"not cached in {here.url or here.root}: {names}{unknown}",
            remedy="Set download=True, or run `prismcache ensure` before.",
        )


def _shown(root: Path, split: Split, crops: Sequence[int]) -> set[int]:
    """Return the crops that a folder has with all channels, as the manifests say; `ensure` checks more."""
    found = set()
    for crop in crops:
        file = root / crop_path(split, crop)
        manifest = manifest_of(file)
        if manifest is not None and file.is_file() and file.stat().st_size == manifest.size:
            found.add(crop)
    return found


def _small(path: str, table: NDArray[np.uint64]) -> NDArray[np.uint32]:
    largest = int(table.max())
    if largest >= _EXACT:
        raise RequestError(
            f"{path} has the id {largest}, which torch_em's float32 does not hold exactly",
            remedy='Use label_values="consecutive", or prismcache.torch.PrismDataset.',
        )
    return table.astype(np.uint32)


def _warn_of_different_classes(paths: Sequence[str], tables: Sequence[NDArray[np.uint64]]) -> None:
    """Warn once, in the name of the line that called prismcache, if a label's number depends on the crop."""
    for i, first in enumerate(tables):
        for j in range(i + 1, len(tables)):
            both = min(len(first), len(tables[j]))
            differs = np.flatnonzero(first[:both] != tables[j][:both])
            if differs.size:
                label = int(differs[0])
                warn(
                    f"label {label} is class {first[label]} in {PurePath(paths[i]).name} and class {tables[j][label]} "
                    f'in {PurePath(paths[j]).name}; label_values="original" gives every crop the same numbers',
                    ClassNumbersWarning,
                    stacklevel=frames_inside(),
                )
                return
