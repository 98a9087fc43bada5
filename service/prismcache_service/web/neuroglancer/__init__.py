"""Neuroglancer at ``/neuroglancer/``: the client that the package ``neuroglancer`` ships (extra ``viewer``)."""

from prismcache_service.web.neuroglancer.pages import address, is_installed, is_public_path, router

__all__ = ["address", "is_installed", "is_public_path", "router"]
