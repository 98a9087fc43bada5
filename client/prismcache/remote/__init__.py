"""The lab's service, seen from a client: requests, events, retention leases, downloads."""

from prismcache.remote.backend import RemoteBackend, create_backend

__all__ = ["RemoteBackend", "create_backend"]
