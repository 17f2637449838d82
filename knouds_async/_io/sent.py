"""Whether a request may have been sent: judged by what httpcore's trace has shown, not by how it failed.

Rule of the file: in doubt it was sent. Only that keeps a paid run from being submitted twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

__all__ = ["SentTrace"]

_SENDING: Final = ("http11.", "http2.")
_BEFORE_SENDING: Final = ("pool.wait.started", "connection.")


@functools.cache
def _failed_before_sending() -> frozenset[type[Exception]]:
    import httpx  # it is loaded with the first client, not with the package

    return frozenset(
        {
            httpx.ConnectError,
            httpx.ConnectTimeout,
            httpx.PoolTimeout,
            httpx.UnsupportedProtocol,
            httpx.LocalProtocolError,
        }
    )


class SentTrace:
    """Watches one attempt at a request: put it in the request's `extensions["trace"]`, one for each attempt.

    `before_first_byte` is called when the first byte is about to leave; what it raises keeps all of them from leaving.
    """

    __slots__ = ("_before_first_byte", "_has_begun_sending", "_is_refused", "_last_event")

    def __init__(self, before_first_byte: Callable[[], None] | None = None) -> None:
        """Start with nothing seen."""
        self._before_first_byte = before_first_byte
        self._last_event = ""
        self._has_begun_sending = False
        self._is_refused = False

    async def __call__(self, event: str, details: object) -> None:  # noqa: ARG002  (httpcore gives both)
        """Note an event; never waits."""
        if self._has_begun_sending or self._is_refused:  # httpcore goes on with events of closing
            return
        self._last_event = event
        if event.startswith(_SENDING):
            self.check()
            # For good: a proxy's CONNECT is "sent" like any request, and connection events follow it.
            self._has_begun_sending = True

    def check(self) -> None:
        """Ask whether the first byte may leave, and raise what keeps it from leaving."""
        if self._before_first_byte is None:
            return
        try:
            self._before_first_byte()
        except BaseException:
            self._is_refused = True
            raise

    def may_have_been_sent(self, error: Exception | None, *, transport_is_known: bool) -> bool:
        """Say whether any byte of the request may have left; False is a proof that none has.

        `transport_is_known` means one of ours or exactly `httpx.AsyncHTTPTransport`: only those raise, say,
        `ConnectTimeout` for nothing but a connection that could not be made. That counts when no event was seen,
        as with mocks, which replace the code that would have fired them.
        """
        if self._is_refused:
            return False
        if self._has_begun_sending:
            return True
        if self._last_event.startswith(_BEFORE_SENDING):
            return False
        return not (transport_is_known and error is not None and type(error) in _failed_before_sending())
