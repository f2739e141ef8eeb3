"""Where a record ends, worked out by hand for the page boundaries it can meet."""

from __future__ import annotations

import pytest

from postgres.walend import record_end, segment_name

SEGMENT = 16 << 20


@pytest.mark.parametrize(
    ("story", "start", "length", "end"),
    [
        ("inside a page, up to the next multiple of eight", 0x5000028, 114, 0x50000A0),
        ("to the last byte of a page", 2 * 8192 - 120, 120, 2 * 8192),
        ("over a page's end: a short header more", 2 * 8192 - 16, 114, 2 * 8192 + 24 + 104),
        ("over a segment's end: a long header more", SEGMENT - 16, 114, SEGMENT + 40 + 104),
    ],
)
def test_record_end(story: str, start: int, length: int, end: int) -> None:
    assert record_end(start, length, SEGMENT) == end


def test_segment_name() -> None:
    assert segment_name(3, 0x12_34567890, SEGMENT) == "000000030000001200000034"
