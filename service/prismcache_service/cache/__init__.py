"""The cache folder. Other rooms import from here."""

from prismcache_service.cache.cache import CropCache, Found
from prismcache_service.cache.making_lock import Holder, MakingLocks, Watch
from prismcache_service.cache.places import FILE_MODE, CropName
from prismcache_service.cache.quarantine import SetAside
from prismcache_service.cache.threads import DiskThreads, SingleFlight

__all__ = [
    "FILE_MODE",
    "CropCache",
    "CropName",
    "DiskThreads",
    "Found",
    "Holder",
    "MakingLocks",
    "SetAside",
    "SingleFlight",
    "Watch",
]
