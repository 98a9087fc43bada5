"""`PrismClient` and `AsyncPrismClient`: say what is wanted, get the paths of cached files."""

from prismcache.client.aio import AsyncPrismClient
from prismcache.client.sync import PrismClient

__all__ = ["AsyncPrismClient", "PrismClient"]
