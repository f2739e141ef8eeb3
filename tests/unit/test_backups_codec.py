"""What is stored opens again, and only as what it is; names and records come back as they were."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from backups.catalog import decode_record, encode_record
from backups.codec import CHUNK_BYTES, HEADER_BYTES, TAG_BYTES, Codec, SealingKey, read_keys
from backups.config import read_config
from backups.errors import ObjectDamaged
from backups.layout import Segment, archivable, parse_history, parse_path, segment_of, snapshot_id, wal_key
from backups.segments import wrong_with
from cluster.errors import SettingsError, StoredFormatError
from tests.support.snapshots import record

KEY = SealingKey(b"k" * 32)
SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES]


@pytest.mark.parametrize("size", SIZES)
def test_sealed_bytes_open_again(size: int) -> None:
    plain = os.urandom(size)
    sealed = KEY.seal(plain, "a/b")
    assert KEY.open(sealed, "a/b") == plain
    assert size < 16 or plain[:16] not in sealed
    assert KEY.seal(plain, "a/b") != sealed, "each object has a key of its own"


STEP = CHUNK_BYTES + TAG_BYTES
FIRST, SECOND = slice(HEADER_BYTES, HEADER_BYTES + STEP), slice(HEADER_BYTES + STEP, HEADER_BYTES + 2 * STEP)
TAMPERED = [
    ("a bit turned over", lambda s: s[:-20] + bytes([s[-20] ^ 1]) + s[-19:]),
    ("the header changed", lambda s: s[:20] + bytes([s[20] ^ 1]) + s[21:]),
    ("cut short by a byte", lambda s: s[:-1]),
    ("cut short by a chunk", lambda s: s[: HEADER_BYTES + STEP]),
    ("chunks swapped", lambda s: s[:HEADER_BYTES] + s[SECOND] + s[FIRST] + s[HEADER_BYTES + 2 * STEP :]),
    ("something appended", lambda s: s + b"x" * 32),
    ("nearly empty", lambda s: s[:10]),
]


@pytest.mark.parametrize(("story", "change"), TAMPERED, ids=[t[0] for t in TAMPERED])
def test_what_was_tampered_with_does_not_open(story: str, change: object) -> None:
    sealed = KEY.seal(os.urandom(2 * CHUNK_BYTES + 99), "a/b")
    with pytest.raises(ObjectDamaged):
        KEY.open(change(sealed), "a/b")  # type: ignore[operator]


def test_an_object_does_not_open_under_another_name_or_key() -> None:
    sealed = KEY.seal(b"data", "wal/1")
    with pytest.raises(ObjectDamaged, match="moved here"):
        KEY.open(sealed, "wal/2")
    other = SealingKey(b"o" * 32)
    with pytest.raises(ObjectDamaged, match=f"sealed with key {KEY.key_id.hex()}.*{other.key_id.hex()}"):
        other.open(sealed, "wal/1")
    with pytest.raises(ObjectDamaged, match="FLYPG_SNAPSHOT_KEY"):
        Codec().unpack(sealed, "wal/1")


def test_after_a_change_of_keys_what_was_stored_before_still_opens() -> None:
    old, new = KEY, SealingKey(b"n" * 32)
    codec = Codec(key=new, older=(old,))
    assert codec.unpack(Codec(key=old).pack(b"data", "wal/1.enc"), "wal/1.enc") == b"data"
    assert codec.pack(b"data", "wal/1.enc")[4:12] == new.key_id
    assert codec.opens(old.key_id.hex()) and codec.opens(new.key_id.hex()) and codec.opens("")
    assert not codec.opens("00" * 8)
    with pytest.raises(ObjectDamaged, match=f"sealed with key {old.key_id.hex()}.*{new.key_id.hex()}"):
        Codec(key=new).unpack(Codec(key=old).pack(b"data", "wal/1.enc"), "wal/1.enc")


def test_what_is_named_as_sealed_must_be() -> None:
    plain = Codec().pack(b"data", "wal/1")
    assert Codec(key=KEY).unpack(plain, "wal/1") == b"data", "stored before there was a key"
    with pytest.raises(ObjectDamaged, match="not an encrypted object"):
        Codec(key=KEY).unpack(plain, "wal/1.enc")


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_packing(key: SealingKey | None) -> None:
    codec = Codec(key=key)
    for plain in (b"", b"x", os.urandom(5000), bytes(1 << 20)):
        assert codec.unpack(codec.pack(plain, "n"), "n") == plain
    with pytest.raises(ObjectDamaged):
        codec.unpack(codec.pack(bytes(1 << 20), "n"), "n", limit=1000)
    whole = Codec().pack(os.urandom(5000), "n")
    for broken in (whole[:-1], whole[:-9], whole[: len(whole) // 2], b"", b"junk" * 10):
        with pytest.raises(ObjectDamaged):
            Codec().unpack(broken, "n")


def test_keys_from_file_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("ab" * 32 + "\n")
    (from_file,), (from_text,) = read_keys("", str(file)), read_keys("ab" * 32, "")
    assert from_file.key_id == from_text.key_id
    file.write_text("cd" * 32 + "\n" + "ab" * 32 + "\n")
    newest, older = read_keys("", str(file))
    assert older.key_id == from_text.key_id != newest.key_id, "the newest comes first"
    assert read_keys("", "") == ()
    for text, path in (("zz", ""), ("ab" * 31, ""), ("ab" * 32, str(file)), ("", str(tmp_path / "none"))):
        with pytest.raises(SettingsError, match="FLYPG_SNAPSHOT_KEY") as caught:
            read_keys(text, path)
        assert not text or text not in str(caught.value), "a key never ends up in a message"


def test_a_record_comes_back() -> None:
    made = record("a", pinned=True)
    assert decode_record(encode_record(made), "x") == made


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format_version": 2}, StoredFormatError),
        ({"id": "../../etc"}, ObjectDamaged),
        ({"archives": [{"name": "x"}]}, ObjectDamaged),
        ({"surprise": 1}, ObjectDamaged),
    ],
)
def test_a_record_that_is_not_ours_is_refused(change: dict[str, object], error: type[Exception]) -> None:
    body = json.loads(encode_record(record("a"))) | change
    with pytest.raises(error):
        decode_record(json.dumps(body).encode(), "catalog/x.json")
    for junk in (b"", b"[]", b"{", b"\xff"):
        with pytest.raises(ObjectDamaged):
            decode_record(junk, "catalog/x.json")


def test_names() -> None:
    assert segment_of("0000000200000001000000FF") == Segment(2, 0x1FF)
    assert Segment(2, 0x1FF).name() == "0000000200000001000000FF"
    assert segment_of("0000000100000001000000FF", 64 << 20) == Segment(1, 64 + 0xFF)
    assert segment_of("00000002.history") is None
    assert wal_key("00000002.history") == "wal/00000002/00000002.history"
    good = (
        "00000001000000000000000A",
        "0000000A.history",
        "00000001000000000000000A.partial",
        "00000001000000000000000A.00000028.backup",
    )
    assert all(archivable(n) for n in good)
    assert not any(archivable(n) for n in ("", "x", "../00000002.history", "00000001000000000000000a", "xlogtemp.1"))
    assert snapshot_id(list(range(16))) == "vs_0123456789ABCDEF"
    assert str(parse_path("my-cluster/7301-0a1b2c3d")) == "my-cluster/7301-0a1b2c3d"
    for bad in ("x", "a/b", "a/7301-xyz", "a/7301", "/7301-0a1b2c3d"):
        with pytest.raises(ValueError, match="not a path"):
            parse_path(bad)


def test_history_files() -> None:
    forks = parse_history("1\t0/3000060\tno recovery target specified\n\n# note\n2\t1/0\treason with spaces\n")
    assert [(f.timeline, f.lsn) for f in forks] == [(1, 0x3000060), (2, 1 << 32)]
    with pytest.raises(ValueError, match="not a line"):
        parse_history("1\n")


SEGMENT = 16 << 20


def header(*, magic: int = 0xD110, info: int = 2, timeline: int = 1, number: int = 3, system: int = 7301) -> bytes:
    return struct.pack("=HHIQI4xQII", magic, info, timeline, number * SEGMENT, 0, system, SEGMENT, 8192)


HEADERS = [
    ("right", header(), SEGMENT, ""),
    ("copied from the timeline before", header(timeline=1), SEGMENT, ""),
    ("too short", header(), SEGMENT - 1, "has 16777215 bytes"),
    ("of another cluster", header(system=9), SEGMENT, "is of system 9"),
    ("recycled, not yet written", header(number=2), SEGMENT, "recycled"),
    ("no header", bytes(64), SEGMENT, "does not begin"),
    ("of a later timeline", header(timeline=7), SEGMENT, "written on timeline 7"),
]


@pytest.mark.parametrize(("story", "head", "size", "problem"), HEADERS, ids=[h[0] for h in HEADERS])
def test_segments_are_what_their_name_says(story: str, head: bytes, size: int, problem: str) -> None:
    name = Segment(2, 3).name()
    found = wrong_with(name, head, size, system_id="7301", segment_bytes=SEGMENT)
    assert problem in found if problem else not found


def test_settings(tmp_path: Path) -> None:
    usual = read_config({}, tmp_path)
    assert usual.url == f"file://{tmp_path}/snapshots"
    assert (usual.archive, usual.shared, usual.keep.days) == (False, False, 5.0)
    s3 = read_config({"FLYPG_SNAPSHOT_URL": "s3://bucket/a/b/", "FLYPG_S3_ENDPOINT": "http://x:9"}, tmp_path)
    assert s3.s3 is not None
    assert (s3.s3.bucket, s3.s3.prefix, s3.s3.endpoint, s3.archive, s3.shared) == (
        "bucket",
        "a/b",
        "http://x:9",
        True,
        True,
    )
    flex = read_config({"S3_ARCHIVE_CONFIG": "https://key:se%2Fcret@fly.storage.tigris.dev/bucket/dir"}, tmp_path).s3
    assert flex is not None
    assert (flex.access_key, flex.secret_key, flex.bucket, flex.prefix) == ("key", "se/cret", "bucket", "dir")
    assert flex.endpoint == "https://fly.storage.tigris.dev"
    assert read_config({"FLYPG_SNAPSHOT_URL": "off"}, tmp_path).url == ""
    wrong = {
        "FLYPG_SNAPSHOT_URL": "ftp://x",
        "FLYPG_SNAPSHOT_SCHEDULE": "daily",
        "FLYPG_SNAPSHOT_KEEP_DAYS": "many",
        "FLYPG_SNAPSHOT_KEEP_MIN": "0",
        "FLYPG_WAL_QUEUE_FULL": "panic",
        "FLYPG_SNAPSHOT_LEVEL": "99",
        "S3_ARCHIVE_CONFIG": "https://key:topsecret@host",
    }
    for key, value in wrong.items():
        with pytest.raises(SettingsError, match=key) as caught:
            read_config({key: value}, tmp_path)
        assert "topsecret" not in str(caught.value)
