"""A snapshot's files are compared with PostgreSQL's manifest while they are written, as pg_verifybackup would after."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import pytest

from backups.errors import ObjectDamaged
from backups.manifest import digest_maker, read_manifest

NUMBERS = b"123456789"  # its CRC32C is the one in every table: e3069283
CHECKSUMS = {
    "CRC32C": (0xE3069283).to_bytes(4, sys.byteorder).hex(),
    "SHA224": hashlib.sha224(NUMBERS).hexdigest(),
    "SHA256": hashlib.sha256(NUMBERS).hexdigest(),
    "SHA384": hashlib.sha384(NUMBERS).hexdigest(),
    "SHA512": hashlib.sha512(NUMBERS).hexdigest(),
}


def entry(name: str, algorithm: str = "CRC32C", **changes: Any) -> dict[str, Any]:
    made = {"Path": name, "Size": len(NUMBERS), "Last-Modified": "2026-11-29 22:00:00 GMT"}
    if algorithm:
        made |= {"Checksum-Algorithm": algorithm, "Checksum": CHECKSUMS.get(algorithm, "00")}
    return made | changes


def manifest(*files: dict[str, Any], version: int = 1) -> bytes:
    """In the lines in which PostgreSQL writes it."""
    listed = ",\n".join(json.dumps(f) for f in files)
    ranges = '[\n{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100" }\n]'
    text = f'{{ "PostgreSQL-Backup-Manifest-Version": {version},\n"Files": [\n{listed}\n],\n"WAL-Ranges": {ranges},\n'
    return f'{text}"Manifest-Checksum": "{hashlib.sha256(text.encode()).hexdigest()}"}}\n'.encode()


def compare(data: bytes, files: dict[str, bytes]) -> None:
    """What `unpack` does with a list and the files of an archive."""
    found = read_manifest(data)
    assert found is not None
    for name, content in files.items():
        check = found.check(name)
        if check is not None:
            for at in range(0, len(content), 4):
                check.update(memoryview(content)[at : at + 4])
            check.finish()
    found.finish()


@pytest.mark.parametrize("algorithm", [*CHECKSUMS, ""])
def test_files_are_what_they_were(algorithm: str) -> None:
    compare(manifest(entry("base/1/112", algorithm)), {"base/1/112": NUMBERS})
    with pytest.raises(ObjectDamaged, match="base/1/112 has 8 bytes, but 9"):
        compare(manifest(entry("base/1/112", algorithm)), {"base/1/112": NUMBERS[:8]})
    if algorithm:
        with pytest.raises(ObjectDamaged, match="base/1/112 is not what it was"):
            compare(manifest(entry("base/1/112", algorithm)), {"base/1/112": b"123456798"})


def test_one_is_missing() -> None:
    with pytest.raises(ObjectDamaged, match="2 files of backup_manifest are missing, such as b"):
        compare(manifest(entry("a"), entry("b"), entry("c")), {"a": NUMBERS})


def test_one_is_too_many() -> None:
    with pytest.raises(ObjectDamaged, match="evil is not in backup_manifest"):
        compare(manifest(entry("a")), {"a": NUMBERS, "evil": NUMBERS})
    with pytest.raises(ObjectDamaged, match="a is not in backup_manifest"):
        found = read_manifest(manifest(entry("a")))
        assert found is not None and found.check("a") and found.check("a")


def test_wal_and_signals_are_not_listed() -> None:
    """PostgreSQL lists no WAL; signal files and what ALTER SYSTEM has set, pg_verifybackup leaves out as well."""
    compare(
        manifest(entry("a"), entry("postgresql.auto.conf")),
        {"a": NUMBERS, "pg_wal/000000010000000000000001": b"wal", "standby.signal": b""},
    )


def test_a_name_that_is_not_utf_8() -> None:
    odd = entry("x") | {"Encoded-Path": b"base/\xff".hex()}
    del odd["Path"]
    compare(manifest(odd), {"base/\udcff": NUMBERS})


def test_the_list_itself_was_altered() -> None:
    good = manifest(entry("a"), version=2)
    compare(good, {"a": NUMBERS})
    with pytest.raises(ObjectDamaged, match="its own checksum"):
        read_manifest(good.replace(b'"a"', b'"b"'))
    with pytest.raises(ObjectDamaged, match="twice"):
        read_manifest(manifest(entry("a"), entry("a")))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"Path": 1}\n', manifest(entry("a", Size="many"))])
def test_what_is_no_list(data: bytes) -> None:
    with pytest.raises(ObjectDamaged, match="backup_manifest"):
        read_manifest(data)


def test_what_only_pg_verifybackup_knows() -> None:
    assert read_manifest(manifest(entry("a"), version=3)) is None
    assert read_manifest(manifest(entry("a", "BLAKE3"))) is None


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crc32c", None)
    assert digest_maker("CRC32C") is None
    assert read_manifest(manifest(entry("a", "SHA256"), entry("b"))) is None
