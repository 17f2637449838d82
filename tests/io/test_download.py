"""Downloads over real sockets, from hosts that are slow, hostile, large and unsteady."""

import errno
import hashlib
import os
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import attrs
import httpx
import pytest
from aiohttp import web

from knouds_async import (
    AsyncKnouds,
    ClientClosedError,
    DownloadError,
    DownloadFault,
    InvalidArgumentError,
    Media,
    RunResult,
)
from knouds_async._io import download
from knouds_async.testing import Emulator, serve
from tests.io.proxies import proxying

KEY = "knouds_live_test_0123456789"
BIG = random.Random(0).randbytes(3 * 1024 * 1024)  # the same always: one in 30,000 would begin like a page


@pytest.fixture
def anyio_backend() -> str:
    """Use asyncio in real time: these are real sockets and threads."""
    return "asyncio"


@attrs.define
class Host:
    """A media host: what it serves, what it does wrong, and what it was asked."""

    files: dict[str, bytes] = attrs.field(factory=dict)
    headers: dict[str, str] = attrs.field(factory=lambda: {"Content-Type": "image/png", "ETag": '"v1"'})
    drops_after: list[int] = attrs.field(factory=list)
    redirects: dict[str, str] = attrs.field(factory=dict)
    asked: list[web.Request] = attrs.field(factory=list)
    statuses: list[int] = attrs.field(factory=list)
    has_ranges: bool = True
    minds_if_range: bool = True
    url: str = ""
    go: anyio.Event | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Serve a file, or the rest of it, and drop the connection where it is set to."""
        self.asked.append(request)
        if self.go is not None:
            await self.go.wait()
        name = request.path.lstrip("/")
        if name in self.redirects:
            return web.Response(
                status=302, headers={"Location": self.redirects[name], "Set-Cookie": "tracker=1; Path=/"}
            )
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        if name not in self.files:
            return web.Response(status=404)
        whole, start = self.files[name], 0
        headers = {**self.headers, "Set-Cookie": "tracker=1; Path=/"}
        asked_for = request.headers.get("Range")
        is_same = request.headers.get("If-Range") == headers.get("ETag") or not self.minds_if_range
        if asked_for and self.has_ranges and is_same:
            start = int(asked_for.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
        body = whole[start:]
        response = web.StreamResponse(status=206 if "Content-Range" in headers else 200, headers=headers)
        response.content_length = len(body)
        await response.prepare(request)
        if self.drops_after:
            await response.write(body[: self.drops_after.pop(0)])
            await anyio.sleep(0.01)
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(body)
        return response


StartHost = Callable[..., Awaitable[Host]]


@pytest.fixture
async def start_host() -> AsyncIterator[StartHost]:
    """Return what puts a media host on a port."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Host:
            host = Host(**options)
            app = web.Application()
            app.router.add_get("/{name:.*}", host.answer)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            return host

        yield start


@pytest.fixture
async def knouds() -> AsyncIterator[AsyncKnouds]:
    """Return a client of a service on loopback, which may have its files there too."""
    async with AsyncKnouds(KEY, base_url="http://127.0.0.1:1") as client:
        yield client


def image(host: Host, name: str = "a.png", number: int = 1) -> Media:
    """Return an image that lies on a host."""
    return Media("image", f"{host.url}/{name}", execution_id="run-1", number=number)


def names(folder: Path) -> list[str]:
    """Return the names of all that is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def meanwhile(path: Path) -> Callable[[int, int | None], None]:
    """Return a progress callback that makes a file of that name."""

    def write(got: int, total: int | None) -> None:
        path.write_bytes(b"old")

    return write


async def fails(download: Awaitable[object]) -> DownloadFault:
    """Return why a download fails."""
    with pytest.raises(DownloadError) as caught:
        await download
    return caught.value.reason


async def test_saves_a_file_under_the_runs_name(start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path) -> None:
    """Into a folder it goes as execution, number and extension, whole, and nothing else is left there."""
    host = await start_host(files={"..%2f..%2fevil.png": b"\x89PNG", "a.png": BIG})
    seen: list[tuple[int, int | None]] = []
    path = await knouds.download(image(host), tmp_path, on_progress=lambda got, total: seen.append((got, total)))
    assert path == tmp_path / "run-1-1.png"
    assert path.read_bytes() == BIG
    assert names(tmp_path) == [path.name]
    assert seen[-1] == (len(BIG), len(BIG))
    assert [got for got, _ in seen] == sorted(got for got, _ in seen)


async def test_no_key_and_no_cookie_is_sent(start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path) -> None:
    """Neither in the first request nor after a cookie was set, nor along a redirect, nor from the caller's client."""
    host = await start_host(files={"a.png": b"x", "b.png": b"y"}, redirects={"c.png": "/b.png"})
    for name in ("a", "b", "c"):
        await knouds.download(image(host, f"{name}.png"), tmp_path / f"{name}.png")
    async with httpx.AsyncClient(headers={"x-api-key": KEY}, cookies={"session": "1"}, auth=("u", "p")) as theirs:
        other = AsyncKnouds(KEY, base_url="http://127.0.0.1:1", http_client=theirs)
        await other.download(image(host), tmp_path / "d.png")
        await other.aclose()
    assert len(host.asked) == 5
    for request in host.asked:
        assert not {"x-api-key", "Cookie", "Authorization"} & set(request.headers)
        assert KEY not in str(request.headers)


async def test_continues_after_a_drop(start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path) -> None:
    """A file whose connection drops three times arrives whole, each time asked for from where it was."""
    host = await start_host(files={"a.png": BIG}, drops_after=[1_000_000, 500_000, 700_000])
    path = await knouds.download(image(host), tmp_path)
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(BIG).digest()
    ranges = [request.headers.get("Range") for request in host.asked]
    assert len(ranges) == 4
    assert ranges[0] is None
    starts = [int((one or "").removeprefix("bytes=").removesuffix("-")) for one in ranges[1:]]
    assert starts == sorted(starts)
    assert starts[0] > 100_000


async def test_starts_again_when_the_file_has_changed(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path
) -> None:
    """Two halves of two files are never put together: what changed meanwhile is fetched from its start."""
    host = await start_host(files={"a.png": BIG}, drops_after=[1_000_000])
    changed = BIG[::-1]

    def change(got: int, total: int | None) -> None:
        host.files["a.png"], host.headers["ETag"] = changed, '"v2"'

    path = await knouds.download(image(host), tmp_path, on_progress=change)
    assert path.read_bytes() == changed


@pytest.mark.parametrize("etag", ['"v1"', '"v2"'])
async def test_the_rest_of_another_file_is_not_taken(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path, etag: str
) -> None:
    """A host that sends the rest of what it has now, whatever was asked for, is asked anew: by its ETag or its size."""
    host = await start_host(files={"a.png": BIG}, drops_after=[1_000_000], minds_if_range=False)
    changed = BIG[:0:-1] if etag == '"v1"' else BIG[::-1]

    def change(got: int, total: int | None) -> None:
        host.files["a.png"], host.headers["ETag"] = changed, etag

    path = await knouds.download(image(host), tmp_path, on_progress=change)
    assert path.read_bytes() == changed


async def test_the_rest_without_a_validator_is_not_taken(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path
) -> None:
    """A rest that does not say of which file it is may be of another: the whole file is requested again."""
    host = await start_host(files={"a.png": BIG}, drops_after=[1_000_000], minds_if_range=False)

    def change(got: int, total: int | None) -> None:
        host.files["a.png"] = BIG[::-1]
        host.headers.pop("ETag", None)

    path = await knouds.download(image(host), tmp_path, on_progress=change)
    assert path.read_bytes() == BIG[::-1]


@pytest.mark.parametrize("options", [{"headers": {"Content-Type": "image/png"}}, {"has_ranges": False}])
async def test_starts_again_where_the_rest_is_not_served(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path, options: dict[str, Any]
) -> None:
    """A host without validators or ranges gives the file whole after a drop."""
    host = await start_host(files={"a.png": BIG}, drops_after=[1_000_000], **options)
    assert (await knouds.download(image(host), tmp_path)).read_bytes() == BIG


@pytest.mark.slow
async def test_gives_up_on_a_host_that_only_drops(start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path) -> None:
    """Five attempts in a row that bring next to nothing are enough, and nothing is left behind."""
    host = await start_host(files={"a.png": BIG}, drops_after=[10] * 50)
    assert await fails(knouds.download(image(host), tmp_path)) is DownloadFault.DROPPED
    assert len(host.asked) == 5
    assert names(tmp_path) == []


@pytest.mark.slow
async def test_gives_up_on_a_host_that_drops_for_ever(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path
) -> None:
    """A hundred attempts are enough, though each of them brings something."""
    host = await start_host(files={"a.png": BIG * 3}, drops_after=[70_000] * 120)
    assert await fails(knouds.download(image(host), tmp_path)) is DownloadFault.DROPPED
    assert len(host.asked) == 100
    assert names(tmp_path) == []


async def test_repeats_what_may_pass(start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path) -> None:
    """A 503 is retried; a 403, as of a signature that has expired, is not."""
    host = await start_host(files={"a.png": b"x"}, statuses=[503, 502])
    assert (await knouds.download(image(host), tmp_path)).read_bytes() == b"x"
    host.statuses, host.asked = [403], []
    assert await fails(knouds.download(image(host), tmp_path / "b.png")) is DownloadFault.REFUSED_STATUS
    assert len(host.asked) == 1


async def test_huge_files_are_refused(start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path) -> None:
    """A file of more than `max_bytes` is refused by its announced size, or where it has grown too large."""
    host = await start_host(files={"a.png": BIG})
    assert await fails(knouds.download(image(host), tmp_path, max_bytes=len(BIG) - 1)) is DownloadFault.TOO_LARGE
    assert await knouds.download(image(host), tmp_path, max_bytes=len(BIG))

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "image/png"})
        await response.prepare(request)
        while request.transport is not None and not request.transport.is_closing():
            await response.write(bytes(65_536))
        return response

    app = web.Application()
    app.router.add_get("/a.png", endless)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    media = Media("image", f"http://127.0.0.1:{runner.addresses[0][1]}/a.png")
    assert await fails(knouds.download(media, tmp_path, max_bytes=1_000_000)) is DownloadFault.TOO_LARGE
    await runner.cleanup()
    assert names(tmp_path) == ["run-1-1.png"]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "text/html"}, b"x"),
        ({"Content-Type": "application/octet-stream"}, b"<!DOCTYPE html>"),
        ({"Content-Type": "image/png", "Content-Encoding": "br"}, b"x"),
    ],
)
async def test_what_is_no_image_is_refused(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path, headers: dict[str, str], body: bytes
) -> None:
    """Another type, a page in disguise, or an encoding that was not requested leave no file."""
    host = await start_host(files={"a.png": body}, headers=headers)
    assert await fails(knouds.download(image(host), tmp_path)) is DownloadFault.WRONG_TYPE
    assert names(tmp_path) == []


async def test_nothing_is_overwritten_unasked(start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path) -> None:
    """A file that is there stays, also one that appears meanwhile, or a link; when asked, it is replaced whole."""
    host = await start_host(files={"a.png": b"new", "b": b"new"})
    there = tmp_path / "run-1-1.png"
    there.write_bytes(b"old")
    assert await fails(knouds.download(image(host), tmp_path)) is DownloadFault.EXISTS
    assert host.asked == []
    late = tmp_path / "late.png"
    said = knouds.download(image(host), late, on_progress=meanwhile(late))
    assert await fails(said) is DownloadFault.EXISTS
    assert late.read_bytes() == b"old"
    dangling = tmp_path / "link.png"
    dangling.symlink_to(tmp_path / "elsewhere.png")
    assert await fails(knouds.download(image(host), dangling)) is DownloadFault.EXISTS
    assert await knouds.download(image(host), there, overwrite=True) == there
    assert there.read_bytes() == b"new"
    assert names(tmp_path) == ["late.png", "link.png", "run-1-1.png"]


async def test_works_without_hard_links(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without hard links a file still goes to its place, and still overwrites nothing."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    host = await start_host(files={"a.png": b"new"})
    path = await knouds.download(image(host), tmp_path)
    assert path.read_bytes() == b"new"
    late = tmp_path / "late.png"
    said = knouds.download(image(host), late, on_progress=meanwhile(late))
    assert await fails(said) is DownloadFault.EXISTS
    assert (late.read_bytes(), len(names(tmp_path))) == (b"old", 2)


async def test_a_temporary_that_cannot_be_removed_is_no_error(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is in its place, and that is what counts."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuse)
    host = await start_host(files={"a.png": b"new"})
    assert (await knouds.download(image(host), tmp_path)).read_bytes() == b"new"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT])
async def test_other_errors_of_a_link_are_raised(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Hard links are done without only where the file system has none: a full disk is an error, and nothing is left."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    host = await start_host(files={"a.png": b"new"})
    assert await fails(knouds.download(image(host), tmp_path)) is DownloadFault.NOT_WRITTEN
    assert names(tmp_path) == []


async def test_a_name_that_was_reserved_is_released(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without hard links, and when the file cannot be moved either, no empty file stays under the name."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Not supported")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    host = await start_host(files={"a.png": b"new"})
    assert await fails(knouds.download(image(host), tmp_path)) is DownloadFault.NOT_WRITTEN
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/a.png",
        "http://10.0.0.1/a.png",
        "file:///etc/passwd",
        "http://[",
        "//evil.example/x",
        "js:1",
    ],
)
async def test_redirects_are_checked(start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path, target: str) -> None:
    """A redirect to any other host, scheme or nonsense is refused before anything is sent there."""
    host = await start_host(redirects={"a.png": target})
    assert await fails(knouds.download(image(host), tmp_path)) is DownloadFault.REFUSED_ADDRESS
    assert len(host.asked) == 1


async def test_redirects_within_the_hosts_are_followed(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path
) -> None:
    """To another allowed origin five times at most; a loop ends."""
    other = await start_host(files={"b.png": b"x"})
    host = await start_host(redirects={"a.png": f"{other.url}/b.png", "loop.png": "/loop.png"})
    assert (await knouds.download(image(host), tmp_path)).read_bytes() == b"x"
    assert await fails(knouds.download(image(host, "loop.png"), tmp_path / "l.png")) is DownloadFault.REFUSED_ADDRESS


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/a.png",
        "https://localhost/a.png",
        "http://knouds-media.s3.amazonaws.com/a.png",
        "https://u:p@knouds-media.s3.amazonaws.com/a.png",
        "https://knouds-media.s3.amazonaws.com.evil.example/a.png",
        "https://evil.example\\@knouds-media.s3.amazonaws.com/a.png",
        "https://knouds-media.s3.amazonaws.com:8443/a.png",
        "javascript:alert(1)",
        "a.png",
        "",
        "http://[",
        "https://\ud800/",
        "https://xn--/",
    ],
)
async def test_other_addresses_are_refused_unsent(url: str, tmp_path: Path) -> None:
    """A client of the real service fetches from the vendor's bucket alone: nothing else is ever connected to."""
    connected: list[httpx.Request] = []

    def note(request: httpx.Request) -> httpx.Response:
        connected.append(request)
        return httpx.Response(200)

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(note)) as http,
        AsyncKnouds(KEY, http_client=http) as vendor,
    ):
        assert await fails(vendor.download(Media("image", url), tmp_path)) is DownloadFault.REFUSED_ADDRESS
    assert connected == []


async def test_the_address_stays_out_of_the_error(start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path) -> None:
    """An error names the host alone: the rest of an address may be a signature."""
    host = await start_host()
    media = Media("image", f"{host.url}/secret-path.png?X-Amz-Signature=abc", execution_id="run-1")
    with pytest.raises(DownloadError) as caught:
        await knouds.download(media, tmp_path)
    assert caught.value.host == "127.0.0.1"
    assert "secret-path" not in str(caught.value)
    assert "Signature" not in str(caught.value)


async def test_a_file_that_cannot_be_written_is_an_error(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path
) -> None:
    """A folder that is not there, which the error names, or a file in its place, is a DownloadError."""
    host = await start_host(files={"a.png": b"x"})
    with pytest.raises(DownloadError, match=re.escape(f"No such file or directory: {tmp_path / 'no'}")) as caught:
        await knouds.download(image(host), tmp_path / "no" / "a.png")
    assert caught.value.reason is DownloadFault.NOT_WRITTEN
    (tmp_path / "file").write_bytes(b"")
    assert await fails(knouds.download(image(host), f"{tmp_path}/file/")) is DownloadFault.NOT_WRITTEN
    for name in ("\0/", "a\0b", "a\0b/c"):
        assert await fails(knouds.download(image(host), f"{tmp_path}/{name}")) is DownloadFault.NOT_WRITTEN
    assert not host.asked or names(tmp_path) == ["file"]


async def test_a_cancelled_download_leaves_nothing(start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path) -> None:
    """Cancelled half way, no file and no part of one is there."""
    host = await start_host(files={"a.png": BIG})
    with anyio.CancelScope() as scope:
        await knouds.download(image(host), tmp_path, on_progress=lambda *_: scope.cancel())
    assert scope.cancelled_caught
    assert names(tmp_path) == []


def result(host: Host, number: int) -> RunResult:
    """Return a run with images and a video on a host."""
    images = [{"url": f"{host.url}/{place}.png"} for place in range(number)]
    return RunResult({"images": images, "videos": [{"url": f"{host.url}/v"}]}, execution_id="run-1")


async def test_all_files_of_a_run(start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path) -> None:
    """Each is saved under its number, in the order of the result, in a folder that is made for them."""
    host = await start_host(files={f"{place}.png": b"%d" % place for place in range(9)}, headers={})
    host.files["v"] = b"video"
    paths = await knouds.download_all(result(host, 9), tmp_path / "a" / "b")
    assert [path.name for path in paths] == [*[f"run-1-{place}.png" for place in range(1, 10)], "run-1-10.mp4"]
    assert [path.read_bytes() for path in paths] == [*[b"%d" % place for place in range(9)], b"video"]
    assert await knouds.download_all(RunResult({"text": "x"}), tmp_path / "c") == ()


async def test_the_first_failure_ends_all(start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path) -> None:
    """One file that is missing is the error of the whole; no part of a file is left."""
    host = await start_host(files={"0.png": b"x"})
    assert await fails(knouds.download_all(result(host, 8), tmp_path)) is DownloadFault.REFUSED_STATUS
    assert not [name for name in names(tmp_path) if name.endswith(".part")]


async def test_files_of_runs_without_an_id_have_names_too(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path
) -> None:
    """A synchronous run has no id: its files are named by their addresses, the same each time."""
    host = await start_host(files={"a.png": b"x"})
    media = Media("image", f"{host.url}/a.png")
    first = await knouds.download(media, tmp_path)
    assert first.name == f"{hashlib.sha256(media.url.encode()).hexdigest()[:16]}-1.png"
    assert await fails(knouds.download(media, tmp_path)) is DownloadFault.EXISTS


async def test_odd_arguments_are_refused(knouds: AsyncKnouds, tmp_path: Path) -> None:
    """What is no file of a result, or no size, is an argument error; a closed client downloads nothing."""
    with pytest.raises(InvalidArgumentError):
        await knouds.download("https://x/a.png", tmp_path)  # type: ignore[arg-type]
    for place in (5, None, ["a"]):
        with pytest.raises(InvalidArgumentError, match="is no path"):
            await knouds.download(Media("image", "https://x/a.png"), place)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="is no path"):
            await knouds.download_all(RunResult({}), place)  # type: ignore[arg-type]
    for size in (0, -1, 1.5, True):
        with pytest.raises(InvalidArgumentError):
            await knouds.download(Media("image", "https://x/a.png"), tmp_path, max_bytes=size)  # type: ignore[arg-type]
    await knouds.aclose()
    with pytest.raises(ClientClosedError):
        await knouds.download(Media("image", "https://x/a.png"), tmp_path)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_saves_from_the_emulator_on_both_backends(anyio_backend: str, tmp_path: Path) -> None:
    """A run of an emulator on a port is saved on asyncio and on trio, without its key reaching the files."""
    emulator = Emulator(tier="business", duration=0.05)
    async with serve(emulator) as url, AsyncKnouds(emulator.api_key, base_url=url) as knouds:
        emulator.media_url = f"{url}/media"
        execution = await knouds.models.submit("gpt-image-2", {"prompt": "x"}, expected=0.05)
        (path,) = await knouds.download_all(await execution, tmp_path)
        assert path.name == f"{execution.id}-1.png"
        assert path.read_bytes().startswith(b"\x89PNG")
        missing = attrs.evolve((await execution).images[0], url=f"{url}/media/none.txt")
        assert await fails(knouds.download(missing, tmp_path / "x.png")) is DownloadFault.REFUSED_STATUS
        assert await fails(knouds.download((await execution).images[0], tmp_path, max_bytes=9, overwrite=True)) is (
            DownloadFault.TOO_LARGE
        )


async def test_no_more_than_sixteen_files_are_fetched_at_once(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path
) -> None:
    """The others wait in line for as long as it takes, at no connection's cost; who leaves the line leaves nothing."""
    host = await start_host(files={f"{number}.png": b"x" for number in range(40)})
    host.go = anyio.Event()
    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(knouds.download, image(host, f"{number}.png"), tmp_path / f"{number}.png")
        while len(host.asked) < 16:  # noqa: ASYNC110  (the host sets no event for it)
            await anyio.sleep(0.001)
        with anyio.move_on_after(0.05):
            await knouds.download(image(host, "0.png"), tmp_path / "impatient.png")
        assert len(host.asked) == 16
        host.go.set()
    assert names(tmp_path) == sorted(f"{number}.png" for number in range(40))


async def test_each_host_is_reached_as_the_environment_says(
    start_host: StartHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy is for some hosts only: each file goes its own way, and so does each redirect."""
    monkeypatch.setattr(download, "_MOST_FAILURES", 1)
    async with (
        proxying("http", 1, refuses_every=1) as proxy,
        AsyncKnouds(KEY, base_url="http://127.0.0.1:1", media_hosts=["media.test"]) as knouds,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        host = await start_host(files={"a.png": BIG}, redirects={"away.png": "https://media.test/b.png"})
        assert await knouds.read(image(host)) == BIG
        assert await fails(knouds.read(Media("image", "https://media.test/a.png"))) is DownloadFault.DROPPED
        assert await fails(knouds.read(image(host, "away.png"))) is DownloadFault.DROPPED
        assert await knouds.read(image(host)) == BIG
        assert proxy.asked == ["media.test:443"] * 2


async def test_a_download_ends_with_its_client(start_host: StartHost, knouds: AsyncKnouds) -> None:
    """What has come may be read to its end; for the rest nothing is asked any more."""
    host = await start_host(files={"a.png": BIG}, drops_after=[1_000_000])
    with pytest.raises(ClientClosedError):
        async with knouds.stream(image(host)) as pieces:
            await knouds.aclose()
            async for _ in pieces:
                pass
    assert len(host.asked) == 1


async def test_a_file_is_read_into_memory(start_host: StartHost, knouds: AsyncKnouds) -> None:
    """Its bytes come whole, after drops and after a change of the file too, and never more than allowed."""
    host = await start_host(files={"a.png": BIG}, drops_after=[1_000_000, 100_000])
    assert await knouds.read(image(host)) == BIG
    host.drops_after = [1_000_000]
    host.has_ranges = False
    assert await knouds.read(image(host)) == BIG
    assert await fails(knouds.read(image(host), max_bytes=1000)) is DownloadFault.TOO_LARGE
    assert await fails(knouds.read(image(host, "none.png"))) is DownloadFault.REFUSED_STATUS
    host.drops_after = [10] * 99
    assert await fails(knouds.read(image(host))) is DownloadFault.DROPPED


async def test_a_file_is_streamed(start_host: StartHost, knouds: AsyncKnouds) -> None:
    """Its pieces come in order, also over a dropped connection; what is refused is refused where the block begins."""
    host = await start_host(files={"a.png": BIG}, drops_after=[1_000_000])
    async with knouds.stream(image(host)) as pieces:
        assert b"".join([piece async for piece in pieces]) == BIG
    assert [request.headers.get("Range") is not None for request in host.asked] == [False, True]
    with pytest.raises(DownloadError, match="not downloaded"):
        async with knouds.stream(image(host, "none.png")):
            pytest.fail("the block is not entered")
    with pytest.raises(RuntimeError, match="inside its block"):
        await anext(pieces)


async def test_a_stream_that_cannot_be_continued_says_so(start_host: StartHost, knouds: AsyncKnouds) -> None:
    """Pieces of another answer never follow those that were given out; before the first they are asked for again."""
    host = await start_host(files={"a.png": BIG}, drops_after=[1_000_000], has_ranges=False)
    read = b""
    with pytest.raises(DownloadError, match="does not continue") as caught:
        async with knouds.stream(image(host)) as pieces:
            async for piece in pieces:
                read += piece
    assert caught.value.reason is DownloadFault.DROPPED
    assert read
    assert BIG.startswith(read)
    host.drops_after = [0]
    async with knouds.stream(image(host)) as pieces:
        assert b"".join([piece async for piece in pieces]) == BIG


@pytest.mark.parametrize("length", [{}, {"Content-Length": str(len(BIG))}])
async def test_a_stream_whose_reading_is_cancelled_misses_nothing(length: dict[str, str]) -> None:
    """The next step continues behind what was given out, also where the length of the file is not known."""
    scope = anyio.CancelScope()

    async def body(start: int) -> AsyncIterator[bytes]:
        yield BIG[start : start + 400_000]
        yield BIG[start + 400_000 : start + 400_100]  # of a piece that is never given out
        if start == 0:
            scope.cancel()
            await anyio.sleep_forever()
        yield BIG[start + 400_100 :]

    def serve(request: httpx.Request) -> httpx.Response:
        headers = {"Content-Type": "image/png", "ETag": '"v1"'}
        if (asked := request.headers.get("Range")) is None:
            return httpx.Response(200, headers={**headers, **length}, content=body(0))
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        part = {"Content-Range": f"bytes {start}-{len(BIG) - 1}/{len(BIG)}"}
        return httpx.Response(206, headers={**headers, **part}, content=body(start))

    file = Media("image", "https://knouds-media.s3.amazonaws.com/a.png")
    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(serve)) as http,
        AsyncKnouds(KEY, http_client=http) as vendor,
        vendor.stream(file) as pieces,
    ):
        read = await anext(pieces)
        with scope:
            await anext(pieces)
        assert scope.cancelled_caught
        read += b"".join([piece async for piece in pieces])
    assert read == BIG


async def test_a_stream_that_is_left_early_frees_its_place(start_host: StartHost, knouds: AsyncKnouds) -> None:
    """Leaving the block, by an error or a cancellation too, takes no place from the downloads that follow."""
    host = await start_host(files={"a.png": BIG})
    for number in range(40):
        with anyio.CancelScope() as scope:
            with pytest.raises((ValueError, anyio.get_cancelled_exc_class())):
                async with knouds.stream(image(host)) as pieces:
                    assert await anext(pieces)
                    if number % 2:
                        raise ValueError("enough")
                    scope.cancel()
                    await anext(pieces)
    assert await knouds.read(image(host)) == BIG


async def test_no_error_of_many_files_comes_in_a_group(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends a download of all files is raised bare, whatever it is."""
    host = await start_host(files={"0.png": b"x"})

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RuntimeError, match="odd"):
        await knouds.download_all(RunResult({"images": [f"{host.url}/0.png"]}), tmp_path)
    monkeypatch.undo()
    await knouds.aclose()
    with pytest.raises(ClientClosedError):
        await knouds.download_all(result(host, 3), tmp_path)


async def test_a_file_that_is_there_is_named_by_the_error(
    start_host: StartHost, knouds: AsyncKnouds, tmp_path: Path
) -> None:
    """The path of what is in the way is on the error, also where it came to be known only at the end."""
    host = await start_host(files={"a.png": b"x", "b": b"y"})
    for media in (image(host), image(host, "b", 2)):
        path = await knouds.download(media, tmp_path)
        with pytest.raises(DownloadError) as caught:
            await knouds.download(media, tmp_path)
        assert caught.value.path == path
