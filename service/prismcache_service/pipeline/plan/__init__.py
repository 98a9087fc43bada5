"""What to fetch and where it goes (pure). Other rooms import from here."""

from prismcache_service.pipeline.plan.alignment import align, align_beside
from prismcache_service.pipeline.plan.budget import Budget, plan_budget
from prismcache_service.pipeline.plan.metadata import CropSource, read_crop
from prismcache_service.pipeline.plan.plan import ArrayPlan, Box, CropPlan, Visit, met_tiles, plan_crop

__all__ = [
    "ArrayPlan",
    "Box",
    "Budget",
    "CropPlan",
    "CropSource",
    "Visit",
    "align",
    "align_beside",
    "met_tiles",
    "plan_budget",
    "plan_crop",
    "read_crop",
]
