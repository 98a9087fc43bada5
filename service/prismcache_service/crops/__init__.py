"""Crops: make, list, keep, evict, verify, draw, adopt. Other rooms import from here."""

from prismcache_service.crops.adoption import adopt
from prismcache_service.crops.catalog import CatalogService
from prismcache_service.crops.ensure import EnsureService
from prismcache_service.crops.faces import FaceService, OpenFace
from prismcache_service.crops.links import LinkService
from prismcache_service.crops.previews import PreviewService
from prismcache_service.crops.service import CropService
from prismcache_service.crops.space import Bounds, LastUsed, SpaceService, StoredFile

__all__ = [
    "Bounds",
    "CatalogService",
    "CropService",
    "EnsureService",
    "FaceService",
    "LastUsed",
    "LinkService",
    "OpenFace",
    "PreviewService",
    "SpaceService",
    "StoredFile",
    "adopt",
]
