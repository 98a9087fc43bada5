"""Jobs, retention leases, pins, last uses and figures, in a database or in memory. Other rooms import from here."""

from __future__ import annotations

from prismcache_service.store.base import (
    CropKey,
    Figures,
    JobRecord,
    JobStore,
    LeaseRecord,
    LinkRecord,
    MemoryJobStore,
    steady_now,
)

__all__ = [
    "CropKey",
    "Figures",
    "JobRecord",
    "JobStore",
    "LeaseRecord",
    "LinkRecord",
    "MemoryJobStore",
    "steady_now",
]
