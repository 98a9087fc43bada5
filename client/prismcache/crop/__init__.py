"""One cached crop: `Crop` opens the file, gives its facts and reads boxes of voxels.

`prismcache.crop.files` is a door of its own, for code that has h5py: it opens the HDF5 file and types its errors.
"""

from prismcache.crop.boxes import Box, Shape3, Slices3
from prismcache.crop.crop import Crop, LabelValues
from prismcache.crop.facts import CITATION, Facts
from prismcache.crop.voxels import OriginalLabels

__all__ = ["CITATION", "Box", "Crop", "Facts", "LabelValues", "OriginalLabels", "Shape3", "Slices3"]
