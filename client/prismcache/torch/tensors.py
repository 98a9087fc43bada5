"""From voxels to tensors: dtypes, memory that is used again, and the random numbers of users' callables."""

from __future__ import annotations

import math
import random
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from prismcache.errors import RequestError

Array = np.ndarray[Any, np.dtype[Any]]

_KEPT = 8  # buffers


class Buffers:
    """Memory for tensors. It is used again when a tensor is deleted: touching fresh pages costs more than filling them.

    At most `_KEPT` unused buffers are kept.
    """

    def __init__(self) -> None:
        self._free: deque[bytearray] = deque(maxlen=_KEPT)

    def tensor(self, shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[torch.Tensor, Array]:
        """Return a tensor with undefined content, and the array that shares its memory."""
        size = math.prod(shape) * dtype.itemsize
        memory = self._take(size)
        array = np.frombuffer(memory, dtype).reshape(shape)
        # The tensor's storage holds this very array for as long as any view of the tensor lives.
        weakref.finalize(array, self._free.append, memory).atexit = False
        return torch.from_numpy(array), array

    def _take(self, size: int) -> bytearray:
        for _ in range(len(self._free)):
            try:
                memory = self._free.popleft()
            except IndexError:  # another thread was faster
                break
            if len(memory) == size:
                return memory
            self._free.append(memory)
        return bytearray(size)


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any] | None:
    """Return numpy's equal of a dtype; None if numpy has none, as for bfloat16."""
    try:
        found: np.dtype[Any] = torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError:
        return None
    return found


def dtypes_as_read(
    dtype: torch.dtype, label_dtype: torch.dtype, *, changes_raw: bool, changes_labels: bool, changes_all: bool
) -> tuple[np.dtype[Any] | None, np.dtype[Any] | None, np.dtype[Any] | None]:
    """Return the dtypes in which raw, labels and targets are read; None where a callable gets the file's dtype.

    Parameters
    ----------
    dtype, label_dtype
        Of the tensors.
    changes_raw, changes_labels, changes_all
        Whether the user gave callables for raw, for labels, or for all together.
    """
    if changes_all:
        return None, None, None
    out = numpy_dtype(dtype)
    return None if changes_raw else out, None if changes_labels else numpy_dtype(label_dtype), out


def exact_to(dtype: torch.dtype) -> int:
    """Return the largest n such that a dtype holds every integer from 0 to n."""
    if dtype.is_floating_point:
        return int(2 / torch.finfo(dtype).eps)
    return 1 if dtype is torch.bool else int(torch.iinfo(dtype).max)


@contextmanager
def seeded(seed: Sequence[int]) -> Iterator[None]:
    """Seed the global generators of torch (CPU), numpy and Python for the block; restore their states afterwards."""
    words = np.random.SeedSequence(list(seed)).generate_state(3)
    # Users' callables, torch_em's too, draw from the global generators.
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - users' callables draw from it
    torch.default_generator.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 - users' callables draw from it
    random.seed(int(words[2]))
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 - users' callables draw from it
        random.setstate(states[2])


def as_tensor(values: Any, dtype: torch.dtype, what: str) -> torch.Tensor:
    """Return the result of a user's callable as a tensor (C, Z, Y, X).

    Parameters
    ----------
    values
        Array or tensor, (Z, Y, X), (C, Z, Y, X), or (1, C, Z, Y, X) as kornia leaves it.
    dtype
        Dtype of the tensor.
    what
        "raw" or "labels", for the message.

    Raises
    ------
    RequestError
        If the result has other axes.
    """
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    if tensor.ndim == 3:
        tensor = tensor[None]
    elif tensor.ndim == 5 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 4:
        raise RequestError(
            f"{what} of shape {tuple(tensor.shape)} came out of the transforms",
            remedy="They must return (Z, Y, X) or (C, Z, Y, X).",
        )
    return tensor.to(dtype)


def as_spatial(labels: Any, dtype: np.dtype[Any]) -> Array:
    """Return labels as an array (Z, Y, X) of the dtype that they had before the augmentations."""
    array = labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    return array.astype(dtype, copy=False)
