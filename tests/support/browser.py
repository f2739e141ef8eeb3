"""A headless Chromium, driven over its own protocol: no sleeping, no guessing when a page is done."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.http_node import eventually

PROGRAM = shutil.which("chromium")
OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
OPTIONS += ["--no-first-run", "--disable-extensions", "--disable-background-networking", "--remote-debugging-port=0"]


class Refused(Exception):
    """The browser could not do what it was asked to: often because the page was replaced meanwhile."""


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        async with asyncio.timeout(60):
            while True:
                answer = await self._socket.receive_json()
                if answer.get("id") == self._number:
                    if "error" in answer:
                        raise Refused(str(answer["error"]))
                    return dict(answer["result"])

    async def open(self, url: str, *, width: int, height: int, dark: bool = False, scripts: bool = True) -> None:
        await self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])
        await self.send("Page.navigate", url=url)

    async def text(self) -> str:
        """The HTML of what is shown, "" while there is none. Works without scripts too."""
        try:
            root = await self.send("DOM.getDocument", depth=0)
            body = await self.send("DOM.querySelector", nodeId=root["root"]["nodeId"], selector="main")
            return str((await self.send("DOM.getOuterHTML", nodeId=body["nodeId"]))["outerHTML"])
        except Refused:
            return ""

    async def shows(self, words: str) -> None:
        """Wait until `words` are on the page."""

        async def there() -> bool:
            return words in await self.text()

        await eventually(there, 60.0)

    async def value(self, expression: str) -> Any:
        return (await self.send("Runtime.evaluate", expression=expression))["result"].get("value")

    async def picture(self) -> bytes:
        """As a PNG."""
        found = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(found["data"])


@asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    assert PROGRAM is not None
    profile = Path(tempfile.mkdtemp(prefix="fpweb", dir="/tmp"))
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *OPTIONS,
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | {"HOME": str(profile)},
    )
    port_file = profile / "DevToolsActivePort"

    async def port() -> str:
        assert process.returncode is None, "chromium ended"
        return port_file.read_text().split()[0] if port_file.exists() and port_file.read_text() else ""

    try:
        at = await eventually(port, 60.0)
        async with aiohttp.ClientSession() as session:
            targets: list[dict[str, Any]] = []

            async def tab() -> bool:
                async with session.get(f"http://127.0.0.1:{at}/json/list") as answer:
                    targets[:] = [t for t in await answer.json() if t["type"] == "page"]
                return bool(targets)

            await eventually(tab, 60.0)
            async with session.ws_connect(targets[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                await page.send("Page.enable")
                yield page
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        shutil.rmtree(profile, ignore_errors=True)
