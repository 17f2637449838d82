"""The status page: what it shows and loads, and that a real browser draws it and keeps it up to date.

The tests in a browser need Chromium on PATH, and are skipped without one; it is another process, so their time is real.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anyio
import pytest

from knouds_async.testing import Emulator, Request, serve
from tests.testing.browser import BROWSER, browsing
from tests.testing.console import ControlClient, busy

RUN = "/api/workflows/jingle/run"
PNG = b"\x89PNG\r\n\x1a\n"


class Texts(HTMLParser):
    """Checks that tags are balanced, and collects texts and attributes."""

    VOID = ("meta", "link", "br", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Handle an opening tag."""
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Handle a closing tag; it must close the last one."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Handle a text."""
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
    assert re.findall(r'(?:src|href)="(?!\?|\./"|__emulator__/"|data:,)', answer.body.decode()) == []


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


def test_the_limits_stay_when_nothing_is_asked() -> None:
    """Before the first request, and long after the last, the page shows the limits of the emulator's own key."""
    emulator = Emulator(tier="pro", window_phase=0.0)
    hand = ControlClient(emulator)
    shown = Texts(hand.raw("GET /").body.decode()).texts
    assert shown.count(" 0 of 100") == 4
    emulator.handle(Request("POST", RUN, "async=true", {"x-api-key": emulator.api_key}, b'{"inputs": {}}'), 1.0)
    assert " 1 of 100" in Texts(hand.raw("GET /", now=2.0).body.decode()).texts
    assert Texts(hand.raw("GET /", now=600.0).body.decode()).texts.count(" 0 of 100") == 4
    assert hand("GET windows", now=600.0)["rows"] == []
    emulator.api_key = "another"  # which the account does not have
    assert Texts(hand.raw("GET /", now=600.0).body.decode()).texts.count(" 0 of 100") == 1
    assert "the account is unlimited" in ControlClient(Emulator(tier="enterprise")).raw("GET /").body.decode()


def test_a_run_leads_to_its_result_and_its_id(ask: Any) -> None:
    """Each row links to a page of its run, with the whole id, inputs, result and links to the files, all escaped."""
    emulator, ids = busy(ask)
    hand = ControlClient(emulator)
    overview = hand.raw("GET /", now=12.0).body.decode()
    assert all(f'<a href="?run={one}"' in overview for one in ids)
    page = hand.raw(f"GET /?run={ids[1]}", now=12.0).body.decode()
    texts = Texts(page).texts
    assert ids[1] in texts
    assert "completed" in texts
    (url,) = [given["href"] for tag, given in Texts(page).seen if tag == "a" and str(given["href"]).startswith("https")]
    assert url == hand(f"GET runs/{ids[1]}", now=12.0)["result"]["images"][0]["url"]
    assert "<b>lamp</b>" not in page
    assert "data-send" in page.partition("</header>")[0]
    assert "data-send" not in page.partition("</header>")[2]


def test_an_address_in_a_result_runs_nothing(ask: Any) -> None:
    """A result is linked to where it is an address of the web, and is no markup and no script."""
    emulator, asker = Emulator(duration=10.0), ask
    run = asker(emulator).submit()
    emulator.finish(run, {"url": "javascript:alert(1)", "more": ['https://x.test/"><script>alert(1)</script>']})
    page = ControlClient(emulator).raw(f"GET /?run={run}", now=1.0).body.decode()
    links = [str(given["href"]) for tag, given in Texts(page).seen if tag == "a"]
    assert [link for link in links if "alert" in link] == ['https://x.test/"><script>alert(1)</script>']
    assert page.count("<script") == 1


def test_a_run_that_is_not_there_is_404(ask: Any) -> None:
    """As after a fresh start, the page of a run says so and leads back."""
    answer = ControlClient(Emulator()).raw("GET /?run=%3Cb%3E")
    assert answer.status == 404
    assert "No run has this id" in Texts(answer.body.decode()).texts
    assert b"<b>" not in answer.body


def test_a_synchronous_run_cannot_be_ended_by_hand() -> None:
    """Its page has no form for that, since the request waits for it."""
    emulator = Emulator(duration=10.0)
    emulator.handle(Request("POST", RUN, "", {"x-api-key": emulator.api_key}, b'{"inputs": {}}'), 0.0)
    page = ControlClient(emulator).raw(f"GET /?run={emulator.runs[0].execution_id}", now=1.0).body.decode()
    assert "processing" in page
    assert "data-send" not in page.partition("</header>")[2]


def in_a_browser(test: Any) -> Any:
    """Mark a test that opens the page in a browser."""
    needs = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
    return pytest.mark.slow(needs(pytest.mark.parametrize("anyio_backend", ["asyncio"])(test)))


def submit(emulator: Emulator) -> str:
    """Submit a run whose inputs would break a page that does not escape them, and return its id."""
    headers = {"x-api-key": emulator.api_key}
    body = b'{"inputs": {"product_name": "<script>document.title=\'broken\'</script>"}}'
    path = "/api/workflows/my-thumbnail-pipeline/run"
    emulator.handle(Request("POST", path, "async=true", headers, body), anyio.current_time())
    return emulator.runs[-1].execution_id


@in_a_browser
async def test_it_continues_by_itself(tmp_path: Path) -> None:
    """A run that is submitted while the page is open shows in it: its script runs, and no other does."""
    emulator = Emulator(duration=3600.0)
    async with serve(emulator) as url, browsing(tmp_path) as page:
        await page.open(url)
        assert "Live" in await page.text()
        first, second = submit(emulator), submit(emulator)
        await page.until(f"document.body.innerText.includes('{second[:8]}')")
        assert first[:8] in await page.text()
        assert await page.evaluate("document.title") == "Knouds emulator"
        assert "<script>" in await page.text()


@in_a_browser
async def test_a_stopped_emulator_is_told(tmp_path: Path) -> None:
    """A page whose emulator has gone says so."""
    async with browsing(tmp_path) as page:
        async with serve(Emulator()) as url:
            await page.open(url)
        await page.until("document.body.innerText.includes('The emulator does not answer')")


@in_a_browser
async def test_runs_are_ended_by_hand(tmp_path: Path) -> None:
    """From the list to a run, there finished with a result of the reader's or failed with words of theirs, and back."""
    emulator = Emulator(duration=3600.0)
    finished, failed = submit(emulator), submit(emulator)
    async with serve(emulator) as url, browsing(tmp_path) as page:
        await page.open(url)
        await page.evaluate(f"document.querySelector('a[href=\"?run={finished}\"]').click()")
        await page.until(f"document.body.innerText.includes('{finished}')")
        await page.submit(f"POST runs/{finished}/finish", result="{no JSON")
        await page.until("document.querySelector('#run output').textContent")
        assert emulator.runs[0].status == "processing"
        await page.submit(f"POST runs/{finished}/finish", result='{"text": "made by hand"}')
        await page.until("document.body.innerText.includes('made by hand') && !document.querySelector('#run form')")
        await page.open(f"{url}/?run={failed}")
        await page.submit(f"POST runs/{failed}/fail", message="no paint")
        await page.until("document.querySelector('#run').innerText.includes('no paint')")
    assert [run.status for run in emulator.runs] == ["completed", "failed"]
    assert emulator.runs[0].result == {"text": "made by hand"}


@in_a_browser
async def test_faults_are_added_and_all_is_begun_anew(tmp_path: Path) -> None:
    """A fault that cannot be is explained until the next try; faults come and go; a fresh start forgets all."""
    emulator = Emulator(duration=3600.0)
    async with serve(emulator) as url, browsing(tmp_path) as page:
        await page.open(url)
        await page.submit("POST faults", fault="moon")
        await page.until("document.querySelector('#faults output').textContent.includes('no fault is called')")
        await anyio.sleep(1.2)  # the page is fetched anew
        assert "no fault is called" in await page.text()
        for number, fault in enumerate(("closed after_run on submit nth=2", "reset on poll 5%"), 1):
            await page.submit("POST faults", fault=fault)
            await page.until(f"document.querySelector('[data-send=\"DELETE faults/{number}\"]') !== null")
        assert "no fault is called" not in await page.text()
        await page.submit("DELETE faults/1")
        await page.until("document.querySelector('[data-send=\"DELETE faults/1\"]') === null")
        assert [fault.number for fault in emulator.faults.attached()] == [2]
        run = submit(emulator)
        await page.until(f"document.body.innerText.includes('{run[:8]}')")
        await page.submit("POST reset")
        await page.until("document.body.innerText.includes('No run yet')")
    assert (len(emulator.runs), emulator.faults.attached()) == (0, [])


@in_a_browser
async def test_what_is_typed_stays(tmp_path: Path) -> None:
    """The page is fetched anew each second, and takes from a reader neither the words in a field nor the focus."""
    emulator = Emulator(duration=3600.0)
    async with serve(emulator) as url, browsing(tmp_path) as page:
        await page.open(url)
        field = "document.querySelector('[name=fault]')"
        await page.evaluate(f"{field}.focus(); {field}.value = 'half a fa'")
        run = submit(emulator)
        await page.until(f"document.body.innerText.includes('{run[:8]}')")
        assert await page.evaluate(f"[document.activeElement === {field}, {field}.value]") == [True, "half a fa"]


@in_a_browser
async def test_another_site_reads_nothing(tmp_path: Path) -> None:
    """The page of another site whose name was bound to this machine gets neither runs nor keys, and changes nothing."""
    emulator = Emulator(duration=3600.0)
    run = submit(emulator)
    async with serve(emulator) as url, browsing(tmp_path, "--host-resolver-rules=MAP evil.example 127.0.0.1") as page:
        evil = url.replace("127.0.0.1", "evil.example")
        await page.open(f"{evil}/api/health")  # the service itself answers, so that scripts have its origin
        for line in ("GET state", "GET runs", "POST keys", "POST reset", f"POST runs/{run}/fail"):
            method, _, path = line.partition(" ")
            script = f"fetch('/__emulator__/{path}', {{method: '{method}'}}).then(answer => answer.status)"
            assert await page.evaluate(script) == 421
        await page.open(evil)
        assert run[:8] not in await page.text()
    assert [run.status for run in emulator.runs] == ["processing"]


@in_a_browser
@pytest.mark.parametrize("size", [(1280, 1400), (400, 900)])
async def test_it_is_drawn(tmp_path: Path, size: tuple[int, int]) -> None:
    """Pictures come out, on a wide and on a narrow screen, and they are not empty; nothing sticks out at the side."""
    emulator = Emulator(tier="pro")
    for _ in range(99):
        submit(emulator)
    async with serve(emulator) as url, browsing(tmp_path) as page:
        for path in ("/", f"/?run={emulator.runs[0].execution_id}"):
            await page.open(url + path)
            drawn = await page.draw(*size)
            assert drawn.startswith(PNG)
            assert len(drawn) > 10_000
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
