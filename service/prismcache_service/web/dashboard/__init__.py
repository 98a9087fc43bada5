"""The dashboard at ``/``: HTML pages and ES modules, served without a build step and without other hosts."""

from prismcache_service.web.dashboard.pages import is_public_path, router

__all__ = ["is_public_path", "router"]
