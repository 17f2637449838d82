"""Downloads: the files of results, fetched by a client that has neither key nor cookies (contract 12).

A file is fetched in pieces, and continued where a connection broke. It is there whole or not at all (`TargetFile`):
written under another name in the same folder, then moved into place. What a response means is decided in `files`; every
address is checked before anything is sent to it, redirects included.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Final
from urllib.parse import urlsplit

import anyio
import attrs
import httpx

from knouds_async._io.concurrency import FIFOLimiter, HomeLoop, in_thread
from knouds_async._io.exchange import http_errors, httpx_of
from knouds_async._io.pool import own_client
from knouds_async._sansio import files
from knouds_async._sansio.files import Hosts, Redirected, Rejected, Start
from knouds_async.config import OnBytes, is_integer
from knouds_async.errors import ClientClosedError, DownloadError, DownloadFault, InvalidArgumentError
from knouds_async.types import Media, RunResult

_AT_ONCE: Final = 4


class Downloads:
    """Fetches files for one AsyncKnouds, from `hosts` alone (None: the vendor's) and from a service on this machine.

    It goes through the caller's HTTP client, of which no headers, cookies and auth are used and which is not closed, or
    through one that is created for the first file.
    """

    def __init__(
        self,
        hosts: Iterable[str] | None,
        base_url: str,
        http: httpx.AsyncClient | None,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self._hosts = Hosts.of(hosts, base_url)
        self._http = http
        self._ssl_context = ssl_context
        self._own: httpx.AsyncClient | None = None
        self._slots = FIFOLimiter(_CONNECTIONS)
        self._home = HomeLoop()
        self._is_closed = False

    async def one(
        self,
        media: Media,
        path_or_dir: str | os.PathLike[str],
        *,
        overwrite: bool,
        max_bytes: int,
        on_progress: OnBytes | None,
    ) -> Path:
        """Fetch one file; see `AsyncKnouds.download`."""
        _check(media, max_bytes)
        self._check_open()
        given = _text(path_or_dir)
        try:
            folder, name = await in_thread(lambda: _place(given))
        except (OSError, ValueError) as error:
            raise unwritable(media, error) from None

        def named(extension: str | None) -> Path:
            return folder / (name or files.default_name(media, extension))

        is_known = name is not None or media.url_extension is not None
        if is_known and not overwrite and await in_thread(lambda: os.path.lexists(named(None))):
            raise exists(media, named(None))
        pending = PendingFile(media, max_bytes, on_progress, named)
        http = self._client(pending)
        if not self._slots.try_acquire():
            await self._slots.acquire()
        try:
            return await self._fetched(http, pending, folder, overwrite=overwrite)
        finally:
            self._slots.release()

    async def _fetched(self, http: httpx.AsyncClient, pending: PendingFile, folder: Path, *, overwrite: bool) -> Path:
        target = TargetFile(folder)
        try:
            with _file_errors(pending):
                await in_thread(target.open)
            await _attempts(http, self._hosts, pending, target)
            path = pending.name(pending.start.extension if pending.start else None)
            with _file_errors(pending):
                await in_thread(lambda: target.finish(path, overwrite=overwrite))
            return path
        finally:
            target.discard()

    def _client(self, pending: PendingFile) -> httpx.AsyncClient:
        url = _checked_url(self._hosts, pending, httpx.URL, pending.media.url)  # before anything is made for it
        if self._http is not None:
            return self._http
        if self._own is None:
            self._own = own_client(str(url), ssl_context=self._ssl_context, connections=_CONNECTIONS)
        return self._own

    async def all(
        self, run: RunResult, folder: str | os.PathLike[str], *, overwrite: bool, max_bytes: int
    ) -> tuple[Path, ...]:
        """Fetch all files of a run; see `AsyncKnouds.download_all`."""
        into = os.path.join(_text(folder), "")  # noqa: PTH118  (a Path would drop the slash that says: a folder)
        paths: dict[int, Path] = {}
        failures: list[DownloadError] = []
        slots = anyio.Semaphore(_AT_ONCE)

        async def save(media: Media) -> None:
            async with slots:
                try:
                    paths[media.number] = await self.one(
                        media, into, overwrite=overwrite, max_bytes=max_bytes, on_progress=None
                    )
                except DownloadError as error:
                    failures.append(error)
                    tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for media in run.media:
                tasks.start_soon(save, media)
        if failures:
            raise failures[0]
        return tuple(paths[media.number] for media in run.media)

    async def aclose(self) -> None:
        """Refuse further downloads and close the HTTP client that was made for them."""
        self._is_closed = True
        if self._own is not None:
            await self._own.aclose()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClientClosedError("this AsyncKnouds is closed: build a new one to download with")
        self._home.enter()


def _text(path: object) -> str:
    try:
        return os.fsdecode(path)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgumentError(f"{path!r:.200} is no path: pass a string or a pathlib.Path") from None


def _place(given: str) -> tuple[Path, str | None]:
    """Return the folder and, where the caller has chosen one, the file's name; create a folder that is not there."""
    if "\0" in given:
        raise ValueError("a path holds no null character")
    path = Path(given)
    if given.endswith(("/", os.sep)):
        path.mkdir(parents=True, exist_ok=True)
        return path, None
    return (path, None) if path.is_dir() else (path.parent, path.name)


def _check(media: object, max_bytes: object) -> None:
    if not isinstance(media, Media):
        raise InvalidArgumentError(f"{type(media).__name__} is not a file of a result: pass one of run.media")
    if not (is_integer(max_bytes) and max_bytes >= 1):
        raise InvalidArgumentError(f"max_bytes={max_bytes!r:.80}: must be an integer of at least 1")


_PIECE: Final = 256 * 1024
"""Bytes that are written at once, and that must come within `_STALLED` seconds of each other."""
_STALLED: Final = 60.0
_PROGRESS: Final = 64 * 1024
_MOST_FAILURES: Final = 5  # attempts in a row that brought less than _PROGRESS
_MOST_ATTEMPTS: Final = 100
_CONNECTIONS: Final = 16  # and so many files at once, the others wait in line
_TIMEOUT: Final = httpx.Timeout(30.0, pool=120.0)


@attrs.define(eq=False, repr=False)
class PendingFile:
    """A file that is to be fetched, and how far that has come."""

    media: Media
    most: int
    on_progress: OnBytes | None
    name: Callable[[str | None], Path]
    received: int = 0
    start: Start | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all bytes that were announced are there."""
        return self.start is not None and self.start.total in (None, self.received)


async def _attempts(http: httpx.AsyncClient, hosts: Hosts, pending: PendingFile, target: TargetFile) -> None:
    failures, why = 0, ""
    for _ in range(_MOST_ATTEMPTS):
        before = pending.received
        try:
            seen = await _attempt(http, hosts, pending, target)
        except http_errors("TransportError") as error:
            seen = Rejected(DownloadFault.DROPPED, type(error).__name__, is_temporary=True)
        if seen is None:
            return
        if not seen.is_temporary:
            raise _error(pending, seen.fault, seen.why)
        why, failures = seen.why, 0 if pending.received - before >= _PROGRESS else failures + 1
        if failures >= _MOST_FAILURES:
            raise _error(pending, seen.fault, f"{seen.why}; {failures} attempts in a row brought nothing")
        await anyio.sleep(min(8.0, 0.1 * 2**failures))
    raise _error(pending, DownloadFault.DROPPED, why)


async def _attempt(http: httpx.AsyncClient, hosts: Hosts, pending: PendingFile, target: TargetFile) -> Rejected | None:
    """Ask for the file, or for the rest of it, wherever redirects lead; None when it is whole."""
    own = httpx_of(http)
    url = _checked_url(hosts, pending, own.URL, pending.media.url)
    for _ in range(files.MOST_REDIRECTS + 1):
        try:
            response = await http.send(_request(own, url, pending), stream=True, auth=None, follow_redirects=False)
        except http_errors("InvalidURL"):  # httpx reads where a redirect leads also when it does not follow
            raise _error(pending, DownloadFault.REFUSED_ADDRESS, "a redirect leads to what is not a URL") from None
        async with _closing(response) as chunks:
            seen = files.evaluate(
                response.status_code,
                response.headers,
                pending.media,
                received=pending.received,
                most=pending.most,
                started=pending.start,
            )
            match seen:
                case Start():
                    return await _write_body(chunks, seen, pending, target)
                case Rejected():
                    if response.status_code in (206, 416):  # what is there is of no use
                        await _restart(pending, target)
                    return seen
                case Redirected(location):
                    url = _checked_url(hosts, pending, url.join, location, is_redirect=True)
    return Rejected(DownloadFault.REFUSED_ADDRESS, f"it leads through more than {files.MOST_REDIRECTS} redirects")


def _checked_url(
    hosts: Hosts, pending: PendingFile, read: Callable[[str], httpx.URL], address: str, *, is_redirect: bool = False
) -> httpx.URL:
    """Return an address that may be fetched, as `read`; the URL that is checked is the one that is sent to."""
    unreadable: tuple[type[Exception], ...] = (ValueError, *http_errors("InvalidURL"))
    try:
        url = read(address)
        refusal = hosts.refusal(url.scheme, url.host, url.port, has_user=bool(url.userinfo))
    except unreadable:
        raise _error(pending, DownloadFault.REFUSED_ADDRESS, "its address is not a URL") from None
    if refusal is not None:
        what = f"a redirect leads to {url.host or 'nowhere'}, and that address" if is_redirect else "its address"
        raise _error(pending, DownloadFault.REFUSED_ADDRESS, f"{what} was refused: {refusal}")
    return url


def _request(own: ModuleType, url: httpx.URL, pending: PendingFile) -> httpx.Request:
    """Build the request by itself: what a client would add, cookies and headers of its own, must not go there."""
    validator = pending.start.validator if pending.start is not None else None
    extensions = {"timeout": _TIMEOUT.as_dict()}
    request: httpx.Request = own.Request(
        "GET", url, headers=files.request_headers(pending.received, validator), extensions=extensions
    )
    return request


async def _write_body(
    chunks: AsyncIterator[bytes], start: Start, pending: PendingFile, target: TargetFile
) -> Rejected | None:
    """Write what comes, to its end; Rejected when it breaks off, stalls, grows too large or is no such file."""
    if start.at == 0:
        await _restart(pending, target)
    pending.start = start
    broken: Rejected | None = None
    is_last = False
    while not is_last and broken is None:
        piece, is_last, broken = await _next_piece(chunks)
        if pending.received + len(piece) > pending.most:
            return Rejected(DownloadFault.TOO_LARGE, f"it has more than {pending.most} bytes")
        if pending.received == 0 and files.is_markup(piece):
            return Rejected(DownloadFault.WRONG_TYPE, f"it is no {pending.media.kind} but a page")
        with _file_errors(pending):
            await in_thread(partial(target.write, piece))
        pending.received += len(piece)
        if pending.on_progress is not None:
            pending.on_progress(pending.received, start.total)
    if broken is None and not pending.is_whole:
        return Rejected(DownloadFault.DROPPED, "it was cut short", is_temporary=True)
    return broken


async def _next_piece(chunks: AsyncIterator[bytes]) -> tuple[bytes, bool, Rejected | None]:
    """Read the next piece; return it, whether it is the last, and what cut it short, which keeps what came before."""
    piece = bytearray()
    try:
        with anyio.move_on_after(_STALLED):
            while len(piece) < _PIECE:
                chunk = await anext(chunks, None)
                if chunk is None:
                    return bytes(piece), True, None
                piece += chunk
            return bytes(piece), False, None
    except http_errors("TransportError") as error:
        return bytes(piece), False, Rejected(DownloadFault.DROPPED, type(error).__name__, is_temporary=True)
    return bytes(piece), False, Rejected(DownloadFault.DROPPED, "the host stalled", is_temporary=True)


async def _restart(pending: PendingFile, target: TargetFile) -> None:
    pending.received, pending.start = 0, None
    with _file_errors(pending):
        await in_thread(target.restart)


@asynccontextmanager
async def _closing(response: httpx.Response) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Yield the body of a response, and close it however the block ends."""
    chunks = response.aiter_raw()
    try:
        yield chunks
    finally:
        with anyio.CancelScope(shield=True):
            await response.aclose()
            # Left to the garbage collector, the generators that read it would end in a ResourceWarning on trio.
            with contextlib.suppress(*http_errors("TransportError", "StreamError")):
                await anext(chunks, None)


@contextlib.contextmanager
def _file_errors(pending: PendingFile) -> Generator[None]:
    """Raise what the file system says as a DownloadError."""
    try:
        yield
    except FileExistsError as error:
        raise _error(pending, DownloadFault.EXISTS, f"{error.filename2 or error.filename} is there already") from None
    except OSError as error:
        raise _error(pending, DownloadFault.NOT_WRITTEN, f"it cannot be written here: {error.strerror}") from None


def exists(media: Media, path: Path) -> DownloadError:
    """Return the error for a file that is there already."""
    said = f"{path} is there already; pass overwrite=True to replace it"
    return DownloadError(f"a file was not downloaded: {said}", reason=DownloadFault.EXISTS, host=_host(media))


def unwritable(media: Media, error: OSError | ValueError) -> DownloadError:
    """Return the error for a place where nothing can be written."""
    why = getattr(error, "strerror", None) or str(error)
    said = f"a file was not downloaded: it cannot be written here: {why}"
    return DownloadError(said, reason=DownloadFault.NOT_WRITTEN, host=_host(media))


def _error(pending: PendingFile, fault: DownloadFault, why: str) -> DownloadError:
    host = _host(pending.media)
    return DownloadError(
        f"{pending.media.kind} from {host or 'nowhere'} not downloaded: {why}", reason=fault, host=host
    )


def _host(media: Media) -> str | None:
    """Name the host of a file and nothing else of its address: that may hold a signature."""
    try:
        return urlsplit(media.url).hostname
    except ValueError:
        return None


_NO_LINKS: Final = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK)


class TargetFile:
    """One file on its way into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f".knouds-{secrets.token_hex(8)}.part"
        self._file: io.FileIO | None = None

    def open(self) -> None:
        """Open an exclusive temporary in the folder; OSError when that cannot be done."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._file = io.FileIO(os.open(self._path, flags, 0o666), "wb")

    def write(self, chunk: bytes) -> None:
        """Append bytes."""
        assert self._file is not None  # noqa: S101  (here and below: it was opened)
        rest = memoryview(chunk)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]

    def restart(self) -> None:
        """Start again with an empty file."""
        assert self._file is not None  # noqa: S101
        self._file.seek(0)
        self._file.truncate()

    def finish(self, path: Path, *, overwrite: bool) -> None:
        """Move the file to its place, durably; FileExistsError when there is one and it is not to be overwritten."""
        assert self._file is not None  # noqa: S101
        os.fsync(self._file.fileno())
        self._file.close()
        if overwrite:
            self._path.replace(path)
        else:
            self._link(path)
        _sync(self._folder)

    def _link(self, path: Path) -> None:
        """Move without overwriting, in one step where the file system has hard links."""
        try:
            os.link(self._path, path)
        except OSError as error:
            if not _has_no_links(error):
                raise
            self._replace_reserved(path)
        else:
            self._path.unlink()

    def _replace_reserved(self, path: Path) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))  # the name is ours from here on
        try:
            self._path.replace(path)
        except BaseException:
            path.unlink()
            raise

    def discard(self) -> None:
        """Remove the temporary file; after `finish` there is nothing left to do."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _has_no_links(error: OSError) -> bool:
    """Return whether an error of `link` says that the file system has no hard links, or no more of them."""
    return error.errno in _NO_LINKS or getattr(error, "winerror", None) in (1, 50)  # invalid function, not supported


def _sync(folder: Path) -> None:
    """Sync a new name to disk, where folders can be synced."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
