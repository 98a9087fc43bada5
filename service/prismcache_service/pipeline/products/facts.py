"""The facts of a crop: what people ask before they train, in one pass over the file.

Percentiles are exact: the value below or at which that share of the voxels lies (``inverted_cdf`` of numpy).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.ndimage import find_objects

from prismcache_service.pipeline.products.arrays import Array, Bytes, Counts, Labels, Triple, label_sums

_RAW_PERCENTILES = (1, 50, 99, 99.9)
_SIZE_PERCENTILES = (1, 25, 50, 75, 99)


class FactsCollector:
    """Collect the facts of a crop, slab by slab.

    Parameters
    ----------
    ids
        (n+1,) uint64, the original ids; ``ids[0]`` is the background's.
    channels
        The numbers of the channels.
    """

    def __init__(self, ids: Array, channels: tuple[int, ...]) -> None:
        self._ids, self._channels = ids, channels
        count = len(ids)
        self._voxels: Counts = np.zeros(count, np.int64)
        self._places: Counts = np.zeros((3, count), np.int64)
        self._low: Counts = np.full((3, count), np.iinfo(np.int64).max, np.int64)
        self._high: Counts = np.zeros((3, count), np.int64)
        self._sums: Counts = np.zeros((len(channels), count), np.int64)
        self._histograms: Counts = np.zeros((len(channels), 256), np.int64)

    def add_labels(self, labels: Labels, z: int) -> None:
        """Count a (Z, Y, X) slab of labels whose first plane is plane `z` of the crop."""
        count = len(self._ids)
        self._voxels += np.bincount(labels.reshape(-1), minlength=count)
        for axis, first in enumerate((z, 0, 0)):
            along = np.arange(first, first + labels.shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
            self._places[axis] += label_sums(labels, np.broadcast_to(along, labels.shape), count)
        for label, box in enumerate(find_objects(labels), 1):
            if box is not None:
                for axis, first in enumerate((z, 0, 0)):
                    self._low[axis, label] = min(self._low[axis, label], first + box[axis].start)
                    self._high[axis, label] = max(self._high[axis, label], first + box[axis].stop)

    def add_raw(self, index: int, raw: Bytes, labels: Array) -> None:
        """Count a (Z, Y, X) slab of the channel ``channels[index]`` beside its labels."""
        self._histograms[index] += np.bincount(raw.reshape(-1), minlength=256)
        self._sums[index] += label_sums(labels, raw, len(self._ids))

    def facts(self, *, offset: Triple, voxel_size: Triple, semantic: bool) -> dict[str, Any]:
        """Return the facts as values that JSON has.

        Parameters
        ----------
        offset, voxel_size
            Of the labels, (Z, Y, X) in nm.
        semantic
            Add the histogram of classes: voxels for each original id, the background's 0 included.
        """
        total = int(self._voxels.sum())
        sizes = self._voxels[1:]
        found: dict[str, Any] = {
            "labels": len(sizes),
            "foreground": 1 - int(self._voxels[0]) / total,
            "label_voxels": {
                str(p): int(np.percentile(sizes, p, method="inverted_cdf")) for p in _SIZE_PERCENTILES if sizes.size
            },
            "channels": [self._channel_facts(index) for index in range(len(self._channels))],
            "neurons": [self._neuron(label, offset, voxel_size) for label in range(1, len(self._ids))],
        }
        if semantic:
            found["classes"] = {str(int(i)): int(n) for i, n in zip(self._ids, self._voxels, strict=True)}
        return found

    def _channel_facts(self, index: int) -> dict[str, Any]:
        histogram, values = self._histograms[index], np.arange(256)
        total = int(histogram.sum())
        present = np.flatnonzero(histogram)
        mean = int(histogram @ values) / total
        below = np.cumsum(histogram)
        return {
            "channel": self._channels[index],
            "min": int(present[0]),
            "max": int(present[-1]),
            "mean": mean,
            "std": math.sqrt(float(histogram @ (values - mean) ** 2) / total),
            "percentiles": {
                str(p): int(np.searchsorted(below, max(1, math.ceil(total * p / 100)))) for p in _RAW_PERCENTILES
            },
        }

    def _neuron(self, label: int, offset: Triple, voxel_size: Triple) -> dict[str, Any]:
        voxels = int(self._voxels[label])
        return {
            "label": label,
            "id": int(self._ids[label]),
            "voxels": voxels,
            "box": [[int(self._low[axis, label]), int(self._high[axis, label])] for axis in range(3)],
            "centroid_nm": [
                offset[axis] + voxel_size[axis] * (int(self._places[axis, label]) / voxels) for axis in range(3)
            ],
            "barcode": [int(total) / voxels for total in self._sums[:, label]],
        }
