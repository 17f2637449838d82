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
from contextlib import AsyncExitStack, asynccontextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Final

import anyio
import attrs
import httpx

from knouds_async import config
from knouds_async._io.concurrency import FIFOLimiter, HomeLoop, in_own_task, in_thread, native_cancellation
from knouds_async._io.exchange import abandon, http_errors, httpx_of
from knouds_async._io.pool import own_client
from knouds_async._io.proxy import name_of, proxy_for
from knouds_async._sansio import files
from knouds_async._sansio.files import Hosts, Redirected, Rejected, Start
from knouds_async.config import MOST_BYTES, OnBytes, is_integer
from knouds_async.errors import ClientClosedError, DownloadError, DownloadFault, InvalidArgumentError, safe_repr
from knouds_async.types import Media, RunResult

_AT_ONCE: Final = 4


class Downloads:
    """Fetches files for one AsyncKnouds, from `hosts` alone (None: the vendor's) and from a service on this machine.

    It goes through the caller's HTTP client, of which no headers, cookies and auth are used and which is not closed, or
    through ones of its own: the environment may name a proxy for some hosts only.
    """

    def __init__(
        self,
        hosts: Iterable[str] | None,
        base_url: str,
        http: httpx.AsyncClient | None,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self._hosts = Hosts.of(hosts, base_url)
        self._lent = http
        self._ssl_context = ssl_context
        self._own: dict[tuple[str, str | None], httpx.AsyncClient] = {}
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
        on_progress: OnBytes | None = None,
    ) -> Path:
        """Fetch one file; see `AsyncKnouds.download`."""
        _check(media, max_bytes)
        self._check_open()
        given = _text(path_or_dir)
        with _file_errors(media):
            folder, name = await in_thread(lambda: _place(given))

        def named(extension: str | None) -> Path:
            return folder / (name or files.default_name(media, extension))

        is_known = name is not None or media.url_extension is not None
        if is_known and not overwrite and await in_thread(lambda: os.path.lexists(named(None))):
            raise _exists(media, named(None))
        async with self._pieces(media, max_bytes, on_progress) as (pieces, pending):
            target = TargetFile(folder)
            try:
                with _file_errors(media):
                    await in_thread(target.open)
                await _write_all(pieces, pending, target)
                path = named(pending.start.extension if pending.start else None)
                with _file_errors(media, path):
                    await in_thread(lambda: target.finish(path, overwrite=overwrite))
                return path
            finally:
                target.discard()

    def _client(self, url: httpx.URL) -> httpx.AsyncClient:
        """Return the client for an address; ClientClosedError when there is none any more."""
        self._check_open()
        if self._lent is not None:
            return self._lent
        proxy = proxy_for(str(url))
        way = url.scheme, None if proxy is None else name_of(proxy)
        if way not in self._own:
            self._own[way] = own_client(str(url), ssl_context=self._ssl_context, connections=_CONNECTIONS)
        return self._own[way]

    @asynccontextmanager
    async def stream(self, media: Media, *, max_bytes: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """Yield the pieces of one file; see `AsyncKnouds.stream`."""
        async with self._pieces(media, max_bytes) as (pieces, pending):
            iterator = PieceIterator(pieces, pending)
            await pieces.next()  # that it begins: what is refused is refused here
            try:
                yield iterator
            finally:
                iterator.close()

    @asynccontextmanager
    async def _pieces(
        self, media: Media, max_bytes: int, on_progress: OnBytes | None = None
    ) -> AsyncIterator[tuple[Pieces, PendingFile]]:
        """Yield what reads a file, in its turn. No task group and no cancel scope is open meanwhile."""
        _check(media, max_bytes)
        self._check_open()
        pending = PendingFile(media, max_bytes, on_progress)
        own = httpx if self._lent is None else httpx_of(self._lent)
        pieces = Pieces(own, self._client, self._hosts, pending)
        await self._slots.acquire()
        try:
            yield pieces, pending
        finally:
            self._slots.release()
            await pieces.aclose()

    async def read(self, media: Media, *, max_bytes: int) -> bytes:
        """Read one file; see `AsyncKnouds.read`."""
        read = bytearray()
        async with self._pieces(media, max_bytes) as (pieces, _):
            while (piece := await pieces.next()) is not None:
                if isinstance(piece, Restart):
                    read.clear()
                else:
                    read += piece
        return bytes(read)

    async def save(self, run: RunResult, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Fetch the files of a run that are not in a folder yet, as many as can be, and return the paths of all.

        Raises the first failure. Names are made of the run's id, and a file is there whole or not at all.
        """
        return await self.all(run, folder, overwrite=False, max_bytes=MOST_BYTES, is_saving=True)

    async def all(
        self,
        run: RunResult,
        folder: str | os.PathLike[str],
        *,
        overwrite: bool,
        max_bytes: int,
        is_saving: bool = False,
    ) -> tuple[Path, ...]:
        """Fetch all files of a run; see `AsyncKnouds.download_all`. `is_saving`: see `save`."""
        into = os.path.join(_text(folder), "")  # noqa: PTH118  (a Path would drop the slash that says: a folder)
        paths: dict[int, Path] = {}
        failures: list[Exception] = []
        slots, tasks = anyio.Semaphore(_AT_ONCE), anyio.create_task_group()

        async def save(media: Media) -> None:
            async with slots:
                try:
                    paths[media.number] = await self.one(media, into, overwrite=overwrite, max_bytes=max_bytes)
                except Exception as error:  # noqa: BLE001  (raised below, in no group)
                    if is_saving and isinstance(error, DownloadError) and error.path is not None:
                        paths[media.number] = error.path
                        return
                    failures.append(error)
                    if not is_saving:
                        tasks.cancel_scope.cancel()

        async def save_all() -> None:
            async with tasks:
                for media in run.media:
                    tasks.start_soon(save, media)

        await in_own_task(save_all)
        if failures:
            raise failures[0]
        return tuple(paths[media.number] for media in run.media)

    async def aclose(self) -> None:
        """Refuse further downloads and close the HTTP client that was made for them."""
        self._is_closed = True
        async with AsyncExitStack() as stack:  # which closes all, also when it is cancelled
            for client in self._own.values():
                stack.push_async_callback(client.aclose)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClientClosedError("this AsyncKnouds is closed: build a new one to download with")
        self._home.enter()


def _text(path: object) -> str:
    try:
        return os.fsdecode(path)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgumentError(f"{safe_repr(path, 200)} is no path: pass a string or a pathlib.Path") from None


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
        raise InvalidArgumentError(f"max_bytes={safe_repr(max_bytes)}: must be an integer of at least 1")


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
    on_progress: OnBytes | None = None
    received: int = 0
    start: Start | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all bytes that were announced are there."""
        return self.start is not None and self.start.total in (None, self.received)


class Restart(Enum):
    """Says that what came of a file is of no use: it comes from its beginning."""

    FROM_BEGINNING = 0


class Pieces:
    """The pieces of one file, by as many requests as it takes; to be used in one task, and closed.

    `own`: httpx or httpx2; `client_for`: returns the client for an address.
    """

    def __init__(
        self, own: ModuleType, client_for: Callable[[httpx.URL], httpx.AsyncClient], hosts: Hosts, pending: PendingFile
    ) -> None:
        self._httpx, self._client_for, self._hosts, self._pending = own, client_for, hosts, pending
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._verdict: Rejected | None = None  # on an answer of which everything that came was given out
        self._is_over = False
        self._attempts = self._failures = self._before = 0

    async def next(self) -> bytes | Restart | None:
        """Return the next piece, or None at the end; raises DownloadError, also after attempts that brought nothing."""
        while not self._is_over:
            try:
                with native_cancellation():
                    found = await (self._open() if self._chunks is None else self._read(self._chunks))
            except http_errors("TransportError") as error:
                found = Rejected(DownloadFault.DROPPED, type(error).__name__, is_temporary=True)
            except BaseException:  # cancelled, say: what came of the next piece is lost, and is asked for again
                await self.aclose()
                raise
            if not isinstance(found, Rejected):
                return found
            await self.aclose()
            await self._pause(found)
        return None

    async def _open(self) -> Restart | Rejected | bytes | None:
        """Ask for the file, or for the rest of it, wherever redirects lead."""
        pending, self._attempts, self._before = self._pending, self._attempts + 1, self._pending.received
        url = _checked_url(self._hosts, pending, self._httpx.URL, pending.media.url)
        for _ in range(files.MOST_REDIRECTS + 1):
            seen = await self._ask(url)
            if isinstance(seen, Redirected):
                await self.aclose()
                url = _checked_url(self._hosts, pending, url.join, seen.location, is_redirect=True)
                continue
            if isinstance(seen, Rejected):
                if self._response is not None and self._response.status_code in (206, 416):  # of no use with the rest
                    pending.received, pending.start = 0, None
                return seen
            pending.start = seen
            if seen.at == 0:
                pending.received = 0
                return Restart.FROM_BEGINNING
            assert self._chunks is not None  # noqa: S101  (they came with the answer)
            return await self._read(self._chunks)
        return Rejected(DownloadFault.REFUSED_ADDRESS, f"it leads through more than {files.MOST_REDIRECTS} redirects")

    async def _ask(self, url: httpx.URL) -> Start | Redirected | Rejected:
        pending = self._pending
        try:
            self._response = response = await self._client_for(url).send(
                _request(self._httpx, url, pending), stream=True, auth=None, follow_redirects=False
            )
        except http_errors("InvalidURL"):  # httpx reads where a redirect leads also when it does not follow
            raise _error(
                pending.media, DownloadFault.REFUSED_ADDRESS, "a redirect leads to what is not a URL"
            ) from None
        self._chunks = _held(response) if response.is_stream_consumed else response.aiter_raw()
        return files.evaluate(
            response.status_code,
            response.headers,
            pending.media,
            received=pending.received,
            most=pending.most,
            started=pending.start,
        )

    async def _read(self, chunks: AsyncIterator[bytes]) -> bytes | Rejected | None:
        """Read the next piece; Rejected when it breaks off, stalls, grows too large or is no such file."""
        if self._verdict is not None:
            verdict, self._verdict = self._verdict, None
            return verdict
        pending = self._pending
        piece, is_last, broken = await _next_piece(chunks)
        if pending.received + len(piece) > pending.most:
            return Rejected(DownloadFault.TOO_LARGE, f"it has more than {pending.most} bytes")
        if pending.received == 0 and files.is_markup(piece):
            return Rejected(DownloadFault.WRONG_TYPE, f"it is no {pending.media.kind} but a page")
        pending.received += len(piece)
        if is_last and pending.is_whole:
            self._is_over = True
        elif is_last:
            broken = Rejected(DownloadFault.DROPPED, "it was cut short", is_temporary=True)
        self._verdict = broken
        return piece

    async def _pause(self, seen: Rejected) -> None:
        """Wait before the next attempt, or raise when there is none."""
        pending = self._pending
        if not seen.is_temporary:
            raise _error(pending.media, seen.fault, seen.why)
        self._failures = 0 if pending.received - self._before >= _PROGRESS else self._failures + 1
        if self._failures >= _MOST_FAILURES:
            raise _error(pending.media, seen.fault, f"{seen.why}; {self._failures} attempts in a row brought nothing")
        if self._attempts >= _MOST_ATTEMPTS:
            raise _error(pending.media, DownloadFault.DROPPED, seen.why)
        await anyio.sleep(min(8.0, 0.1 * 2**self._failures))

    async def aclose(self) -> None:
        """Close the answer that is being read."""
        response, chunks, self._response, self._chunks = self._response, self._chunks, None, None
        if response is None or chunks is None:
            return
        with anyio.CancelScope(shield=True):
            await abandon(response, chunks)


async def _held(response: httpx.Response) -> AsyncGenerator[bytes]:
    """Yield a body that was read before, as those of mocking tools are."""
    yield response.content


async def _write_all(pieces: Pieces, pending: PendingFile, target: TargetFile) -> None:
    """Write a file to its end."""
    while (piece := await pieces.next()) is not None:
        with _file_errors(pending.media):
            await in_thread(target.restart if isinstance(piece, Restart) else partial(target.write, piece))
        if not isinstance(piece, Restart) and pending.on_progress is not None:
            pending.on_progress(pending.received, pending.start.total if pending.start else None)


class PieceIterator(AsyncIterator[bytes]):
    """The pieces of one file for a caller who cannot begin again."""

    def __init__(self, pieces: Pieces, pending: PendingFile) -> None:
        self._pieces, self._pending = pieces, pending
        self._is_open, self._has_given = True, False

    def close(self) -> None:
        """Refuse to be read any more."""
        self._is_open = False

    async def __anext__(self) -> bytes:
        """Return the next piece, some 256 KiB. Cancelled: the next step continues with what comes then."""
        if not self._is_open:
            raise RuntimeError("a stream is read inside its block: async with knouds.stream(media) as pieces: ...")
        piece: bytes | Restart | None = b""
        while piece == b"" or (isinstance(piece, Restart) and not self._has_given):
            piece = await self._pieces.next()
        if piece is None:
            raise StopAsyncIteration
        if isinstance(piece, Restart):
            why = "the connection broke, and the host does not continue this file where it was"
            raise _error(self._pending.media, DownloadFault.DROPPED, why)
        self._has_given = True
        return piece


def _checked_url(
    hosts: Hosts, pending: PendingFile, read: Callable[[str], httpx.URL], address: str, *, is_redirect: bool = False
) -> httpx.URL:
    """Return an address that may be fetched, as `read`; the URL that is checked is the one that is sent to."""
    unreadable: tuple[type[Exception], ...] = (ValueError, *http_errors("InvalidURL"))
    try:
        url = read(address)
        refusal = hosts.refusal(url.scheme, url.host, url.port, has_user=bool(url.userinfo))
    except unreadable:
        raise _error(pending.media, DownloadFault.REFUSED_ADDRESS, "its address is not a URL") from None
    if refusal is not None:
        what = f"a redirect leads to {url.host or 'nowhere'}, and that address" if is_redirect else "its address"
        raise _error(pending.media, DownloadFault.REFUSED_ADDRESS, f"{what} was refused: {refusal}")
    return url


def _request(own: ModuleType, url: httpx.URL, pending: PendingFile) -> httpx.Request:
    """Build the request by itself: what a client would add, cookies and headers of its own, must not go there."""
    validator = pending.start.validator if pending.start is not None else None
    extensions = {"timeout": _TIMEOUT.as_dict()}
    request: httpx.Request = own.Request(
        "GET", url, headers=files.request_headers(pending.received, validator), extensions=extensions
    )
    return request


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


@contextlib.contextmanager
def _file_errors(media: Media, path: Path | None = None) -> Generator[None]:
    """Raise what the file system says as a DownloadError; `path`: where it is moved to."""
    try:
        yield
    except (OSError, ValueError) as error:
        if path is not None and isinstance(error, FileExistsError):
            raise _exists(media, path) from None
        parts = getattr(error, "strerror", None) or str(error), getattr(error, "filename", None)
        why = ": ".join(str(part) for part in parts if part)
        raise _error(media, DownloadFault.NOT_WRITTEN, f"it cannot be written here: {why}") from None


def _exists(media: Media, path: Path) -> DownloadError:
    error = _error(media, DownloadFault.EXISTS, f"{path} is there already; pass overwrite=True to replace it")
    error.path = path
    return error


def _error(media: Media, fault: DownloadFault, why: str) -> DownloadError:
    host = config.host_of(media.url)
    return DownloadError(f"{media.kind} from {host or 'nowhere'} not downloaded: {why}", reason=fault, host=host)


_NO_LINKS: Final = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK)


class TargetFile:
    """One file on its way into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f".knouds-{secrets.token_hex(8)}.part"
        self._file: io.BufferedWriter | None = None

    def open(self) -> None:
        """Open an exclusive temporary in the folder; OSError when that cannot be done."""
        self._file = self._path.open("xb")

    def write(self, chunk: bytes) -> None:
        """Append bytes."""
        assert self._file is not None  # noqa: S101  (here and below: it was opened)
        self._file.write(chunk)

    def restart(self) -> None:
        """Start again with an empty file."""
        assert self._file is not None  # noqa: S101
        self._file.seek(0)
        self._file.truncate()

    def finish(self, path: Path, *, overwrite: bool) -> None:
        """Move the file to its place, durably; FileExistsError when there is one and it is not to be overwritten."""
        assert self._file is not None  # noqa: S101
        self._file.flush()
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

    def _replace_reserved(self, path: Path) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))  # the name is ours from here on
        try:
            self._path.replace(path)
        except BaseException:
            path.unlink()
            raise

    def discard(self) -> None:
        """Remove the temporary file, or the name that it still has after `finish`."""
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
