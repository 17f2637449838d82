"""Fetches one file of a result into a folder: without key and cookies, in pieces, and on from where a drop left it.

Rule of the file: what an answer means is decided in `files`; here it is carried out. Every address is checked before
anything is sent to it, redirects included.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Final
from urllib.parse import urlsplit

import anyio
import attrs
import httpx

from knouds_async._io.http import own_client
from knouds_async._io.lent import errors, httpx_of
from knouds_async._io.slots import FIFOLimiter
from knouds_async._io.target_file import TargetFile
from knouds_async._io.uninterrupted import in_thread
from knouds_async._sansio import files
from knouds_async._sansio.files import Elsewhere, Hosts, Refused, Start
from knouds_async.config import OnBytes
from knouds_async.errors import DownloadError, DownloadFault
from knouds_async.types import Media

_PIECE: Final = 256 * 1024
"""Bytes that are written at once, and that must come within `_STALLED` seconds of each other."""
_STALLED: Final = 60.0
_PROGRESS: Final = 64 * 1024
_FRUITLESS: Final = 5  # attempts in a row that brought less than _PROGRESS
_MOST_ATTEMPTS: Final = 100
_CONNECTIONS: Final = 16  # and so many files at once, the others wait in line
_TIMEOUT: Final = httpx.Timeout(30.0, pool=120.0)


@attrs.define
class Wanted:
    """A file that is to be fetched, and how far that has come."""

    media: Media
    most: int
    on_progress: OnBytes | None
    name: Callable[[str | None], Path]
    got: int = 0
    start: Start | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all bytes that were announced are there."""
        return self.start is not None and self.start.total in (None, self.got)


class Fetcher:
    """Fetches files through the caller's HTTP client, or through one that is made when the first file is asked for."""

    def __init__(self, http: httpx.AsyncClient | None, ssl_context: ssl.SSLContext | None) -> None:
        """`http`: the caller's own; nothing of its headers, cookies and auth is used, and it is not closed."""
        self._http = http
        self._ssl_context = ssl_context
        self._own: httpx.AsyncClient | None = None
        self._slots = FIFOLimiter(_CONNECTIONS)

    async def fetch(self, hosts: Hosts, wanted: Wanted, folder: Path, *, overwrite: bool) -> Path:
        """Fetch a file and give its path; DownloadError for what goes wrong. Cancelled or failed: nothing is left."""
        http = self._client(hosts, wanted)
        if not self._slots.try_acquire():
            await self._slots.acquire()
        try:
            return await self._saved(http, hosts, wanted, folder, overwrite=overwrite)
        finally:
            self._slots.release()

    async def _saved(
        self, http: httpx.AsyncClient, hosts: Hosts, wanted: Wanted, folder: Path, *, overwrite: bool
    ) -> Path:
        target = TargetFile(folder)
        try:
            with _written(wanted):
                await in_thread(target.open)
            await _fetch(http, hosts, wanted, target)
            path = wanted.name(wanted.start.extension if wanted.start else None)
            with _written(wanted):
                await in_thread(lambda: target.finish(path, overwrite=overwrite))
            return path
        finally:
            target.discard()

    def _client(self, hosts: Hosts, wanted: Wanted) -> httpx.AsyncClient:
        url = _checked(hosts, wanted, httpx.URL, wanted.media.url)  # before anything is made for it
        if self._http is not None:
            return self._http
        if self._own is None:
            self._own = own_client(str(url), ssl_context=self._ssl_context, connections=_CONNECTIONS)
        return self._own

    async def aclose(self) -> None:
        """Close the client that was made here."""
        if self._own is not None:
            await self._own.aclose()


async def _fetch(http: httpx.AsyncClient, hosts: Hosts, wanted: Wanted, target: TargetFile) -> None:
    fruitless, why = 0, ""
    for _ in range(_MOST_ATTEMPTS):
        before = wanted.got
        try:
            seen = await _attempt(http, hosts, wanted, target)
        except errors("TransportError") as error:
            seen = Refused(DownloadFault.DROPPED, type(error).__name__, is_passing=True)
        if seen is None:
            return
        if not seen.is_passing:
            raise _error(wanted, seen.fault, seen.why)
        why, fruitless = seen.why, 0 if wanted.got - before >= _PROGRESS else fruitless + 1
        if fruitless >= _FRUITLESS:
            raise _error(wanted, seen.fault, f"{seen.why}; {fruitless} attempts in a row brought nothing")
        await anyio.sleep(min(8.0, 0.1 * 2**fruitless))
    raise _error(wanted, DownloadFault.DROPPED, why)


async def _attempt(http: httpx.AsyncClient, hosts: Hosts, wanted: Wanted, target: TargetFile) -> Refused | None:
    """Ask for the file, or for the rest of it, wherever redirects lead; None when it is whole."""
    own = httpx_of(http)
    url = _checked(hosts, wanted, own.URL, wanted.media.url)
    for _ in range(files.MOST_REDIRECTS + 1):
        try:
            response = await http.send(_request(own, url, wanted), stream=True, auth=None, follow_redirects=False)
        except errors("InvalidURL"):  # httpx reads where a redirect leads also when it does not follow
            raise _error(wanted, DownloadFault.REFUSED_ADDRESS, "a redirect leads to what is not a URL") from None
        async with _closing(response) as chunks:
            seen = files.judge(
                response.status_code,
                response.headers,
                wanted.media,
                got=wanted.got,
                most=wanted.most,
                begun=wanted.start,
            )
            match seen:
                case Start():
                    return await _take(chunks, seen, wanted, target)
                case Refused():
                    if response.status_code in (206, 416):  # what is there is of no use
                        await _begin_anew(wanted, target)
                    return seen
                case Elsewhere(location):
                    url = _checked(hosts, wanted, url.join, location, is_redirect=True)
    return Refused(DownloadFault.REFUSED_ADDRESS, f"it leads through more than {files.MOST_REDIRECTS} redirects")


def _checked(
    hosts: Hosts, wanted: Wanted, read: Callable[[str], httpx.URL], address: str, *, is_redirect: bool = False
) -> httpx.URL:
    """Give an address that may be fetched, as `read`; the URL that is checked is the one that is sent to."""
    unreadable: tuple[type[Exception], ...] = (ValueError, *errors("InvalidURL"))
    try:
        url = read(address)
        refusal = hosts.refusal(url.scheme, url.host, url.port, has_user=bool(url.userinfo))
    except unreadable:
        raise _error(wanted, DownloadFault.REFUSED_ADDRESS, "its address is not a URL") from None
    if refusal is not None:
        what = f"a redirect leads to {url.host or 'nowhere'}, and that address" if is_redirect else "its address"
        raise _error(wanted, DownloadFault.REFUSED_ADDRESS, f"{what} was refused: {refusal}")
    return url


def _request(own: ModuleType, url: httpx.URL, wanted: Wanted) -> httpx.Request:
    """Build the request by itself: what a client would add, cookies and headers of its own, must not go there."""
    validator = wanted.start.validator if wanted.start is not None else None
    extensions = {"timeout": _TIMEOUT.as_dict()}
    request: httpx.Request = own.Request("GET", url, headers=files.asked(wanted.got, validator), extensions=extensions)
    return request


async def _take(chunks: AsyncIterator[bytes], start: Start, wanted: Wanted, target: TargetFile) -> Refused | None:
    """Write what comes, to its end; Refused when it breaks off, stalls, grows too large or is no such file."""
    if start.at == 0:
        await _begin_anew(wanted, target)
    wanted.start = start
    cut: Refused | None = None
    is_over = False
    while not is_over and cut is None:
        piece, is_over, cut = await _piece(chunks)
        if wanted.got + len(piece) > wanted.most:
            return Refused(DownloadFault.TOO_LARGE, f"it has more than {wanted.most} bytes")
        if wanted.got == 0 and files.is_markup(piece):
            return Refused(DownloadFault.WRONG_TYPE, f"it is no {wanted.media.kind} but a page")
        with _written(wanted):
            await in_thread(partial(target.write, piece))
        wanted.got += len(piece)
        if wanted.on_progress is not None:
            wanted.on_progress(wanted.got, start.total)
    if cut is None and not wanted.is_whole:
        return Refused(DownloadFault.DROPPED, "it was cut short", is_passing=True)
    return cut


async def _piece(chunks: AsyncIterator[bytes]) -> tuple[bytes, bool, Refused | None]:
    """Read the next piece; say whether it is the last, and what cut it, which takes nothing of what came before."""
    piece = bytearray()
    try:
        with anyio.move_on_after(_STALLED):
            while len(piece) < _PIECE:
                chunk = await anext(chunks, None)
                if chunk is None:
                    return bytes(piece), True, None
                piece += chunk
            return bytes(piece), False, None
    except errors("TransportError") as error:
        return bytes(piece), False, Refused(DownloadFault.DROPPED, type(error).__name__, is_passing=True)
    return bytes(piece), False, Refused(DownloadFault.DROPPED, "the host stalled", is_passing=True)


async def _begin_anew(wanted: Wanted, target: TargetFile) -> None:
    wanted.got, wanted.start = 0, None
    with _written(wanted):
        await in_thread(target.restart)


@asynccontextmanager
async def _closing(response: httpx.Response) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Give the body of a response, and close it however the block ends."""
    chunks = response.aiter_raw()
    try:
        yield chunks
    finally:
        with anyio.CancelScope(shield=True):
            await response.aclose()
            # Left to the garbage collector, the generators that read it would end in a ResourceWarning on trio.
            with contextlib.suppress(*errors("TransportError", "StreamError")):
                await anext(chunks, None)


@contextlib.contextmanager
def _written(wanted: Wanted) -> Generator[None]:
    """Raise what the file system says as a DownloadError."""
    try:
        yield
    except FileExistsError as error:
        raise _error(wanted, DownloadFault.EXISTS, f"{error.filename2 or error.filename} is there already") from None
    except OSError as error:
        raise _error(wanted, DownloadFault.NOT_WRITTEN, f"it cannot be written here: {error.strerror}") from None


def exists(media: Media, path: Path) -> DownloadError:
    """Make the error for a file that is there already."""
    said = f"{path} is there already; pass overwrite=True to replace it"
    return DownloadError(f"a file was not downloaded: {said}", reason=DownloadFault.EXISTS, host=_host(media))


def unwritable(media: Media, error: OSError | ValueError) -> DownloadError:
    """Make the error for a place where nothing can be written."""
    why = getattr(error, "strerror", None) or str(error)
    said = f"a file was not downloaded: it cannot be written here: {why}"
    return DownloadError(said, reason=DownloadFault.NOT_WRITTEN, host=_host(media))


def _error(wanted: Wanted, fault: DownloadFault, why: str) -> DownloadError:
    host = _host(wanted.media)
    return DownloadError(f"{wanted.media.kind} from {host or 'nowhere'} not downloaded: {why}", reason=fault, host=host)


def _host(media: Media) -> str | None:
    """Name the host of a file and nothing else of its address: that may hold a signature."""
    try:
        return urlsplit(media.url).hostname
    except ValueError:
        return None
