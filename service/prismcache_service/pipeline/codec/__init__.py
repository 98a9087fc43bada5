"""What threads do to a chunk. Other rooms import from here."""

from prismcache_service.pipeline.codec.decode import Bytes, ChunkCodec, DecodeError, ScratchPad, codec_of
from prismcache_service.pipeline.codec.encode import RECIPE, EncodedChunk, encode_row
from prismcache_service.pipeline.codec.relabelling import Ids, Runs, id_table, relabel, unique_ids

__all__ = [
    "RECIPE",
    "Bytes",
    "ChunkCodec",
    "DecodeError",
    "EncodedChunk",
    "Ids",
    "Runs",
    "ScratchPad",
    "codec_of",
    "encode_row",
    "id_table",
    "relabel",
    "unique_ids",
]
