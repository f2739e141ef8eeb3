"""The server's half of aiohttp loads alone, and the whole package is there for whoever asks for it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from healthchecks.web import web
assert "aiohttp.client" not in sys.modules, "the client was loaded"
assert web.Application and web.AppRunner
import aiohttp
assert aiohttp.ClientSession.__module__ == "aiohttp.client"
assert aiohttp.web.Application is web.Application
"""


def test_the_client_is_loaded_only_on_demand() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
