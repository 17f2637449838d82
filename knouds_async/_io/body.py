"""Reading a response's body without trusting its size: bounded steps, gzip at most, never more than allowed.

Rule of the file: what cannot be read becomes `UnreadableBody`, which holds a reason and nothing of the response.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from typing import TYPE_CHECKING, Final

from knouds_async._io.lent import errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

__all__ = ["CutBody", "UnreadableBody", "collector", "read_body"]

_MOST: Final = 32 * 1024 * 1024
_STEP: Final = 64 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS


class UnreadableBody(Exception):  # noqa: N818  (it is turned into a public error before anyone sees it)
    """The body cannot be read; `reason` says why, as in "the body" + reason, in no words of the server's."""

    def __init__(self, reason: str) -> None:
        """Keep the reason."""
        super().__init__(reason)
        self.reason: Final = reason


class CutBody(Exception):  # noqa: N818  (likewise)
    """The body broke off; `error` is the transport's."""

    def __init__(self, error: Exception) -> None:
        """Keep the error."""
        super().__init__()
        self.error: Final = error


class _Plain:
    """Collects a body as it comes, up to `most` bytes."""

    def __init__(self, most: int, read: io.BytesIO) -> None:
        self._most = most
        self._read = read  # its value is given out without a second copy, which joining chunks would make

    def feed(self, chunk: bytes) -> None:
        if self._read.tell() + len(chunk) > self._most:
            raise UnreadableBody(f"is longer than {self._most} bytes")
        self._read.write(chunk)

    def finish(self) -> bytes:
        return self._read.getvalue()


class _Gzip(_Plain):
    """Inflates a body of one gzip member in small steps."""

    def __init__(self, most: int, read: io.BytesIO) -> None:
        super().__init__(most, read)
        self._inflate = zlib.decompressobj(_GZIP)
        self._raw_left = most + _STEP  # a gzip stream may go on for ever without inflating to anything
        self._has_begun = False

    def feed(self, chunk: bytes) -> None:
        self._raw_left -= len(chunk)
        if self._raw_left < 0:
            raise UnreadableBody(f"is a gzip stream of more than {self._most} bytes")
        self._has_begun = self._has_begun or bool(chunk)
        while chunk:
            super().feed(self._step(chunk))
            chunk = self._inflate.unconsumed_tail

    def finish(self) -> bytes:
        if self._has_begun and not self._inflate.eof:
            raise UnreadableBody("is a gzip stream that is cut off")
        return super().finish()

    def _step(self, chunk: bytes) -> bytes:
        try:
            piece = self._inflate.decompress(chunk, _STEP)
        except zlib.error:
            raise UnreadableBody("is a damaged gzip stream") from None
        if self._inflate.unused_data:
            raise UnreadableBody("goes on after the end of its gzip stream")
        return piece


async def read_body(
    response: httpx.Response, *, most: int = _MOST, into: io.BytesIO | None = None, encoding: str | None = None
) -> bytes:
    """Read and decode the body of a streamed response, at most `most` bytes of it once decoded.

    Memory stays below `most` and one small step, whatever the server sends. Raises `UnreadableBody` for a longer
    body, for any content-encoding but identity and a single gzip, and for a gzip stream that is damaged, cut off
    or followed by something; the response is closed then. httpx's transport errors and cancellation pass through.
    `into`: collects the decoded body, and still holds what came of it when the rest did not. `encoding`: its
    content-encoding, where that was read already.
    The time it takes is for the caller to bound (traps, "Hostile or odd answers").
    """
    if response.is_stream_consumed:
        return _already_read(response, most)
    chunks = response.aiter_raw()
    try:
        told = response.headers.get("content-encoding", "") if encoding is None else encoding
        body = collector(told, into or io.BytesIO(), most=most)
        async for chunk in chunks:
            body.feed(chunk)
        return body.finish()
    except UnreadableBody:
        await _abandon(response, chunks)
        raise


def collector(encoding: str, into: io.BytesIO, *, most: int = _MOST) -> _Plain:
    """Return what collects a body of this content-encoding (several headers joined by commas), piece by piece."""
    encodings = [name.strip().lower() for name in encoding.split(",")]
    if encodings in ([""], ["identity"]):
        return _Plain(most, into)
    if encodings == ["gzip"]:
        return _Gzip(most, into)
    raise UnreadableBody("has a content-encoding other than identity or a single gzip")


def _already_read(response: httpx.Response, most: int) -> bytes:
    """Return what an event hook or a mock has read before us."""
    try:
        content = response.content
    except errors("ResponseNotRead"):
        raise UnreadableBody("was read by something else") from None
    if len(content) > most:
        raise UnreadableBody(f"is longer than {most} bytes")
    return content


async def _abandon(response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
    """Close the response, then let the generators that were reading it run into that and end.

    Left to the garbage collector they would end in a ResourceWarning on trio.
    """
    await response.aclose()
    with contextlib.suppress(*errors("TransportError", "StreamError")):
        await anext(chunks, None)
