"""Is this file really the WAL segment that its name says? Pure."""

from __future__ import annotations

import struct

from backups.layout import segment_of

LONG_HEADER = struct.Struct(
    "=HHIQI4xQII"
)  # magic, info, timeline, page address, rest, system id, segment size, block size
LONG = 0x0002  # flag: a long header follows


def wrong_with(name: str, head: bytes, size: int, *, system_id: str, segment_bytes: int) -> str:
    """Why this is not segment `name` of system `system_id`; "" when it is. `head`: the beginning of the file."""
    segment = segment_of(name.partition(".")[0], segment_bytes)
    assert segment is not None, f"{name} is the name of a segment"
    if size != segment_bytes:
        return f"{name} has {size} bytes, a segment has {segment_bytes}"
    if len(head) < LONG_HEADER.size:
        return f"{name} is too short to have a header"
    _, info, timeline, address, _, system, seg_size, _ = LONG_HEADER.unpack_from(head)
    if not info & LONG:
        return f"{name} does not begin with the header of a segment"
    if str(system) != system_id:
        return f"{name} is of system {system}, this cluster is {system_id}"
    if seg_size != segment_bytes:
        return f"{name} is of a system with segments of {seg_size} bytes"
    if address != segment.number * segment_bytes:
        return f"{name} holds the WAL of {address:X}: it was recycled, not yet written"
    if timeline > segment.timeline:
        return f"{name} was written on timeline {timeline}"
    return ""
