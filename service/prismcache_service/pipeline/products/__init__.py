"""Products: files that are made from a cached crop, without the bucket.

`make_product` leaves a complete temporary file; `RECIPES` are the versions of the products' definitions.
"""

from prismcache_service.pipeline.products.make import RECIPES, make_product

__all__ = ["RECIPES", "make_product"]
