"""Keys instead of a password: RFC 7677's own example, and what is no verifier of it."""

import base64

import pytest

from postgres import scram

RFC_7677 = (
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"
    "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)


def test_the_example_of_the_rfc() -> None:
    found = scram.keys(RFC_7677, "pencil")
    assert found is not None
    assert base64.b64encode(found.server).decode() == RFC_7677.rpartition(":")[2]
    assert [len(base64.b64decode(key)) for key in found.options().values()] == [32, 32]
    assert list(found.options()) == ["scram_client_key", "scram_server_key"], "as libpq calls them"


def test_keys_are_not_shown() -> None:
    assert repr(scram.keys(RFC_7677, "pencil")) == "Keys()"


@pytest.mark.parametrize(
    ("why", "verifier", "password"),
    [
        ("another password", RFC_7677, "Pencil"),
        ("no password", RFC_7677, ""),
        ("md5", "md5c1e7a0b2b1c2d3e4f5a6b7c8d9e0f1a2", "pencil"),
        ("another method", RFC_7677.replace("256", "512", 1), "pencil"),
        ("rounds that are no number", RFC_7677.replace("4096", "many"), "pencil"),
        ("no rounds at all", RFC_7677.replace("4096", "0"), "pencil"),
        ("rounds that would take for ever", RFC_7677.replace("4096", "4096000000"), "pencil"),
        ("a salt that is no base64", RFC_7677.replace("W22Za", "?????"), "pencil"),
        ("a stored key of another", RFC_7677.replace("WG5d8", "WG5d9"), "pencil"),
        ("a server key of another", RFC_7677.replace("wfPLw", "wfPLx"), "pencil"),
        ("cut off", RFC_7677[:60], "pencil"),
        ("empty", "", "pencil"),
    ],
)
def test_no_keys_of(why: str, verifier: str, password: str) -> None:
    assert scram.keys(verifier, password) is None, why
