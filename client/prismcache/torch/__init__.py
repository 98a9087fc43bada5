"""Cached crops as training batches: `PrismDataset`. Needs torch and h5py (``prismcache[torch]``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prismcache.torch.dataset import PrismDataset

__all__ = ["PrismDataset"]


def __getattr__(name: str) -> object:
    """Import `PrismDataset` on first use: the room's other modules are used and tested without torch."""
    if name in __all__:
        from prismcache.torch import dataset

        return getattr(dataset, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
