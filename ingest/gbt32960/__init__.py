"""GB/T 32960.3 frames, editions 2016 and 2025: bytes to samples and back. Pure."""

from ingest.gbt32960.frame import (
    CONTENT_TYPE,
    FLAGS,
    STARTS,
    STREAMS,
    Command,
    Frame,
    decode,
    encode,
)
from ingest.gbt32960.own import OwnUnits, own_units

__all__ = [
    "CONTENT_TYPE",
    "FLAGS",
    "STARTS",
    "STREAMS",
    "Command",
    "Frame",
    "OwnUnits",
    "decode",
    "encode",
    "own_units",
]
