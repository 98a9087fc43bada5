"""Where crops are made: the interface, worker processes of this machine, a Dask cluster. Other rooms import from here.

The factory alone imports an engine itself, when the settings name it.
"""

from prismcache_service.engine.base import MAX_STRIKES, CropTask, Engine, Outcome

__all__ = ["MAX_STRIKES", "CropTask", "Engine", "Outcome"]
