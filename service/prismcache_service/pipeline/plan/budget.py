"""How a memory limit is spent: buffers for blocks, for fetched objects and for decoding. Pure.

Nothing here changes what is written, only how much runs ahead.
"""

from __future__ import annotations

from dataclasses import dataclass

from prismcache.errors import MemoryLimitError
from prismcache.layout import LABELS
from prismcache_service.pipeline.plan.plan import CropPlan

_SPARE_BLOCKS = 3  # blocks beyond the needed ones, so that filling goes on while full ones are deflated
_SLACK_BYTES = 32 << 20  # interpreter objects, HTTP buffers, HDF5's metadata cache
_MIN_SLOTS = 2
_SLOT_COPIES = 2  # obstore has an object twice while it puts the pieces together, and malloc keeps what they took


@dataclass(frozen=True)
class Budget:
    """Sizes in bytes and counts of the buffers for one crop.

    A *slot* holds one fetched object; `slots` bounds how far fetching runs ahead of decoding. `deflated_blocks` bounds
    what is deflated and waits for the writer.
    """

    block_bytes: int
    blocks: int
    slots: int
    deflated_blocks: int


def plan_budget(plan: CropPlan, *, limit: int, used: int, threads: int, concurrency: int) -> Budget:
    """Share out what `limit` leaves above the `used` bytes of the process.

    Raise `MemoryLimitError` if the least that the crop needs does not fit; the message says how much would fit.
    """
    arrays = plan.in_order
    block_bytes = max(a.block_bytes for a in arrays)
    needed_blocks = max(a.open_blocks for a in arrays)
    slot_cost = _SLOT_COPIES * (max([item.size for item in plan.fetched()], default=0) or 1)
    # Of one thread: a decoded chunk, and the temporaries of relabelling, which are of its size.
    decode_bytes = max(a.source.inner_bytes * (4 if a.name == LABELS else 1) for a in arrays)
    fixed = used + _SLACK_BYTES + threads * decode_bytes + plan.raw.block_bytes
    least = fixed + needed_blocks * block_bytes + _MIN_SLOTS * slot_cost
    if least > limit:
        raise MemoryLimitError(
            f"the crop needs {least / 1e6:.0f} MB of memory at least (source chunks decode to "
            f"{max(a.source.chunk_bytes for a in arrays) / 1e6:.1f} MB), the limit is {limit / 1e6:.0f} MB"
        )
    free = limit - least
    # Deflated voxels of noise are as large as before. With two blocks of them, what fills up late delays less.
    deflated_blocks = 2 if free >= 2 * plan.raw.block_bytes else 1
    free -= (deflated_blocks - 1) * plan.raw.block_bytes
    spare = min(_SPARE_BLOCKS, free // 2 // block_bytes)
    free -= spare * block_bytes
    slots = min(_MIN_SLOTS + free // slot_cost, 2 * concurrency, max(_MIN_SLOTS, len(plan.fetched())))
    return Budget(block_bytes, needed_blocks + spare, slots, deflated_blocks)
