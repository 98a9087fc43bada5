"""One cached crop: `Crop` opens the file, gives its facts and reads boxes of voxels."""

from prismcache.crop.boxes import Box, Slices3
from prismcache.crop.crop import CITATION, Crop, LabelValues, OriginalLabels, manifest_of, open_file

__all__ = ["CITATION", "Box", "Crop", "LabelValues", "OriginalLabels", "Slices3", "manifest_of", "open_file"]
