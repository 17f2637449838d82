"""Whether a request may have been sent: judged by what httpcore's trace has shown, not by how it failed.

Rule of the file: in doubt it was sent. Only that keeps a paid run from being submitted twice.
"""

from __future__ import annotations

import functools
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
    """Watches one attempt at a request: put it in the request's `extensions["trace"]`, one for each attempt."""

    __slots__ = ("_has_begun_sending", "_last_event")

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._last_event = ""
        self._has_begun_sending = False

    async def __call__(self, event: str, details: object) -> None:  # noqa: ARG002  (httpcore gives both)
        """Note an event; never waits."""
        if self._has_begun_sending:
            return
        self._last_event = event
        if event.startswith(_SENDING):
            # For good: a proxy's CONNECT is "sent" like any request, and connection events follow it.
            self._has_begun_sending = True

    def may_have_been_sent(self, error: Exception | None, *, transport_is_known: bool) -> bool:
        """Say whether any byte of the request may have left; False is a proof that none has.

        `transport_is_known` means one of ours or exactly `httpx.AsyncHTTPTransport`: only those raise, say,
        `ConnectTimeout` for nothing but a connection that could not be made. That counts when no event was seen,
        as with mocks, which replace the code that would have fired them.
        """
        if self._has_begun_sending:
            return True
        if self._last_event.startswith(_BEFORE_SENDING):
            return False
        return not (transport_is_known and error is not None and type(error) in _failed_before_sending())
