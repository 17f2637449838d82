"""The status page: what it shows and loads, and that a real browser draws it and keeps it up to date.

The tests in a browser need Chromium on PATH, and are skipped without one; it is another process, so their time is real.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anyio
import pytest

from knouds_async.testing import Emulator, Request, serve
from knouds_async.testing.messages import Outcome
from tests.testing.console import ControlClient, busy

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


class Texts(HTMLParser):
    """Checks that tags are balanced, and collects texts and attributes."""

    VOID = ("meta", "link", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take an opening tag."""
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Take a closing tag; it must close the last one."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Take a text."""
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)


def test_the_page_shows_the_state(ask: Any) -> None:
    """It is whole in one answer, well-formed, and shows runs, windows, charges, requests and sums."""
    emulator, ids = busy(ask)
    answer = ControlClient(emulator).raw("GET /", now=12.0)
    page = answer.body.decode()
    texts = Texts(page).texts
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for shown in ("1 processing", "2 completed", " 3 of 100", "48.0 s", "GET /api/executions/:id", "3 charges"):
        assert shown in texts
    assert [text for text in texts if text in {one[:8] for one in ids}][:3] == [one[:8] for one in ids[::-1]]
    assert "<b>lamp</b>" not in page
    assert "&lt;b&gt;lamp&lt;/b&gt;" in page


def test_the_page_can_be_read_by_all(ask: Any) -> None:
    """Language, title, headings, captions, header cells with scope, and a name for what scrolls and measures."""
    emulator, _ = busy(ask)
    seen = Texts(ControlClient(emulator).raw("GET /", now=12.0).body.decode()).seen
    tags = [tag for tag, _ in seen]
    assert (tags.count("h1"), tags.count("main"), tags.count("title")) == (1, 1, 1)
    assert ("html", {"lang": "en"}) in seen
    assert all("scope" in given for tag, given in seen if tag == "th")
    assert all(given.get("aria-label") for tag, given in seen if tag in ("meter", "progress"))
    assert all(given.get("aria-labelledby") for _, given in seen if given.get("role") == "region")
    names = {given["id"] for _, given in seen if "id" in given}
    assert {given["aria-labelledby"] for _, given in seen if "aria-labelledby" in given} <= names


def test_the_page_loads_nothing(ask: Any) -> None:
    """Style and script are in it, and its policy lets nothing else in."""
    emulator, _ = busy(ask)
    answer = ControlClient(emulator).raw("GET /", now=12.0)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert re.findall(r'(?:src|href)="(?!/|data:,)', answer.body.decode()) == []


def test_the_page_has_a_filter(ask: Any) -> None:
    """`?status=` shows the runs of one status; a status that is none shows none, and is escaped."""
    emulator, ids = busy(ask)
    hand = ControlClient(emulator)
    page = hand.raw("GET /?status=processing", now=12.0).body.decode()
    runs = page.partition('<section id="runs"')[2].partition("</section>")[0]
    assert [one[:8] in runs for one in ids] == [False, False, True]
    page = hand.raw("GET /?status=%3Cb%3E", now=12.0).body.decode()
    assert "No run with the status &lt;b&gt;" in page


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:80"])
def test_the_page_tells_its_address(host: str) -> None:
    """As the browser asked for it."""
    assert f"<code>http://{host}</code>" in ControlClient(Emulator()).raw("GET /", host=host).body.decode()


def test_a_strange_host_is_not_shown() -> None:
    """What is no host is left out."""
    assert b"evil" not in ControlClient(Emulator()).raw("GET /", host='"><script>evil').body


def test_of_many_runs_the_newest_are_shown(ask: Any) -> None:
    """Of 3000 runs the page has a hundred, and counts all."""
    emulator = Emulator(tier="enterprise")
    for _ in range(3000):
        ask(emulator).submit()
    answer = ControlClient(emulator).raw("GET /", now=1.0)
    assert "The newest 100 of 3,000" in answer.body.decode()
    assert answer.body.count(b'<th scope="row"') == 100
    assert len(answer.body) < 150_000


def in_a_browser(test: Any) -> Any:
    """Mark a test that opens the page in a browser."""
    needs = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
    return pytest.mark.slow(needs(pytest.mark.parametrize("anyio_backend", ["asyncio"])(test)))


class Watched(Emulator):
    """An emulator that records when its page is requested, and for which time."""

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


@in_a_browser
async def test_it_continues_by_itself(tmp_path: Path) -> None:
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


@in_a_browser
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


@in_a_browser
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
