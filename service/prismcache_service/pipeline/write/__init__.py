"""The stream, stage by stage, and the file. Other rooms import from here."""

from prismcache_service.pipeline.write.hdf5 import CropWriter, SafeFile, check_file
from prismcache_service.pipeline.write.spool import Spool
from prismcache_service.pipeline.write.stream import stream_crop

__all__ = ["CropWriter", "SafeFile", "Spool", "check_file", "stream_crop"]
