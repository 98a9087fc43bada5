"""The facts of a crop that matter before a training, in one pass over the file.

Percentiles are exact: the value below or at which that share of the voxels lies (``inverted_cdf`` of numpy).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from prismcache_service.pipeline.products.arrays import Array, Bytes, Counts, LabelRuns, Triple

_RAW_PERCENTILES = (1, 50, 99, 99.9)
_SIZE_PERCENTILES = (1, 25, 50, 75, 99)


class FactsCollector:
    """Collect the facts of a crop, plane by plane.

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

    def add_labels(self, runs: LabelRuns, z: int, box: tuple[slice, slice]) -> None:
        """Count the labels of a part (Y, X) of plane `z`."""
        count, lengths = len(self._ids), runs.lengths
        self._voxels += runs.sums_of(lengths, count)
        y, last_x = np.divmod(runs.stops - 1, box[1].stop - box[1].start)
        y, last_x = y + box[0].start, last_x + box[1].start
        first_and_last = ((np.full_like(y, z),) * 2, (y, y), (last_x - lengths + 1, last_x))
        for axis, (first, last) in enumerate(first_and_last):
            self._places[axis] += runs.sums_of((first + last) * lengths / 2, count)
            np.minimum.at(self._low[axis], runs.labels, first)
            np.maximum.at(self._high[axis], runs.labels, last + 1)

    def add_raw(self, index: int, plane: Bytes, runs: LabelRuns) -> None:
        """Count a part (Y, X) of a plane of the channel ``channels[index]`` beside its labels."""
        self._histograms[index] += np.bincount(plane.reshape(-1), minlength=256)
        self._sums[index] += runs.sums(plane, len(self._ids))

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
