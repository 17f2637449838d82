"""A headless Chromium that opens pages, does things in them and draws them, spoken to over its debugging protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import anyio
from aiohttp import ClientSession, ClientWebSocketResponse

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
]


class Page:
    """One page of a browser, on asyncio."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = count(1)

    async def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result; events are passed over."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") != number:
                continue
            if "error" in message:
                raise RuntimeError(str(message["error"]))
            return message["result"]

    async def evaluate(self, script: str) -> Any:
        """Run a script in the page and return its value, once it is there."""
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    async def open(self, url: str) -> None:
        """Open a page, and wait until it is loaded."""
        await self.call("Page.navigate", url=url)
        await self.until(f"location.href !== 'about:blank' && document.readyState === 'complete' && {json.dumps(url)}")

    async def until(self, condition: str) -> Any:
        """Wait until a condition holds in the page, which may still be loading, and return its value."""
        with anyio.fail_after(30):
            while True:
                with suppress(RuntimeError):
                    if value := await self.evaluate(condition):
                        return value
                await anyio.sleep(0.05)

    async def text(self) -> str:
        """Return what a reader sees."""
        return str(await self.evaluate("document.body.innerText"))

    async def submit(self, send: str, **fields: str) -> None:
        """Fill in and send the form that sends this to the control API, as a reader does who answers yes to all."""
        form = f"document.querySelector({json.dumps(f'form[data-send={json.dumps(send)}]')})"
        await self.until(f"{form} !== null")
        await self.evaluate(
            f"confirm = () => true; for (const [name, value] of Object.entries({json.dumps(fields)}))"
            f"{form}.elements[name].value = value; {form}.querySelector('button').click()"
        )

    async def draw(self, width: int, height: int) -> bytes:
        """Return a picture of the page in a window of this size."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        picture = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(picture["data"])


@asynccontextmanager
async def browsing(folder: Path, *options: str) -> AsyncIterator[Page]:
    """Start a browser with a profile in a folder, and yield its one page."""
    profile = folder / "profile"
    command = [str(BROWSER), *OPTIONS, f"--user-data-dir={profile}", *options, "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603, ASYNC220
    try:
        port_file = profile / "DevToolsActivePort"
        with anyio.fail_after(60):
            while not port_file.exists() or "\n" not in port_file.read_text():  # noqa: ASYNC110
                await anyio.sleep(0.05)
        port = port_file.read_text().partition("\n")[0]
        async with ClientSession(f"http://127.0.0.1:{port}") as session:
            async with session.get("/json/list") as listed:
                (target,) = [one for one in await listed.json() if one["type"] == "page"]
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(profile, ignore_errors=True)
