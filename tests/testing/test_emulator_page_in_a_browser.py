"""The status page in a real browser: it is drawn, goes on by itself, and asks nobody but the emulator.

Needs Chromium on PATH; without one these tests are skipped. The browser is another process, so time is real.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from knouds_async.testing import Emulator, Request, serve
from knouds_async.testing.messages import Outcome

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
    "--timeout=20000",
]
PNG = b"\x89PNG\r\n\x1a\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH"),
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
]


class Watched(Emulator):
    """An emulator that tells when its page is asked for, and for which time."""

    views = 0
    tell: Callable[[int], None] = staticmethod(lambda _: None)

    def handle(self, request: Request, now: float) -> Outcome:
        """Answer, and tell."""
        answer = super().handle(request, now)
        if request.path == "/":
            self.views += 1
            self.tell(self.views)
        return answer


async def browse(folder: Path, url: str, *options: str) -> bytes:
    """Open a page in a browser of its own, bounded, and give what it prints."""
    profile = folder / "profile"
    command = [str(BROWSER), *OPTIONS, f"--user-data-dir={profile}", *options, url]
    with anyio.fail_after(90):
        done = await anyio.run_process(command, check=False)
    shutil.rmtree(profile, ignore_errors=True)
    return done.stdout


def submit(emulator: Emulator, now: float) -> None:
    """Submit a run whose inputs would break a page that does not escape them."""
    headers = {"x-api-key": emulator.api_key}
    body = b'{"inputs": {"product_name": "<script>document.title=\'broken\'</script>"}}'
    emulator.handle(Request("POST", "/api/workflows/my-thumbnail-pipeline/run", "async=true", headers, body), now)


async def test_it_goes_on_by_itself(tmp_path: Path) -> None:
    """A run that is submitted while the page is open shows in it: its script runs, and no other does."""
    emulator = Watched(duration=3600.0)
    submit(emulator, anyio.current_time())
    emulator.tell = lambda view: submit(emulator, anyio.current_time()) if view == 2 else None
    async with serve(emulator) as url:
        page = (await browse(tmp_path, url, "--virtual-time-budget=8000", "--dump-dom")).decode()
    assert "<title>Knouds emulator</title>" in page
    assert re.search(r'id="said"[^>]*>Live<', page)
    assert "The newest 2 of 2" in page
    assert page.count("&lt;script&gt;") >= 2


async def test_a_stopped_emulator_is_told(tmp_path: Path) -> None:
    """A page whose emulator has gone says so."""
    emulator, is_open = Watched(), anyio.Event()
    emulator.tell = lambda view: is_open.set() if view == 2 else None
    pages: list[str] = []

    async def look(url: str) -> None:
        pages.append((await browse(tmp_path, url, "--virtual-time-budget=8000", "--dump-dom")).decode())

    async with anyio.create_task_group() as tasks, serve(emulator) as url:
        tasks.start_soon(look, url)
        await is_open.wait()
    assert re.search(r'id="said"[^>]*>The emulator does not answer<', pages[0])


@pytest.mark.parametrize("size", ["1280,1400", "400,900"])
async def test_it_is_drawn(tmp_path: Path, size: str) -> None:
    """A picture comes out, on a wide and on a narrow screen, and it is not empty."""
    emulator = Emulator(tier="enterprise")
    for _ in range(200):
        submit(emulator, anyio.current_time())
    picture = tmp_path / "page.png"
    async with serve(emulator) as url:
        await browse(tmp_path, url, f"--window-size={size}", f"--screenshot={picture}")
    drawn = picture.read_bytes()
    assert drawn.startswith(PNG)
    assert len(drawn) > 15_000
