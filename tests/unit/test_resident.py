"""Memory of the start is given back, and the process still runs."""

from __future__ import annotations

import hashlib
import ssl
import sys
from pathlib import Path

import pytest

from cluster.resident import release_start_up_code


def resident_code_kb() -> int:
    """What is resident of mapped code."""
    kb, code = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            code = words[1] == "r-xp" and words[4] != "0"
        elif code and words[0] == "Rss:":
            kb += int(words[1])
    return kb


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_code_is_let_go_of_and_comes_back() -> None:
    ssl.create_default_context()
    before = resident_code_kb()
    release_start_up_code()
    assert resident_code_kb() < before
    assert hashlib.sha256(b"").hexdigest().startswith("e3b0c442")
    ssl.create_default_context()
