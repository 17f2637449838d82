"""Whether a request may have been sent: judged by what httpcore's trace has shown, not by how it failed.

Rule of the file: in doubt it was sent. Only that keeps a paid run from being submitted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from knouds_async._io.lent import errors

__all__ = ["SentTrace"]

_SENDING: Final = ("http11.", "http2.")
_HEAD: Final = ("http11.send_request_headers.started", "http2.send_request_headers.started")
_BEFORE_SENDING: Final = ("pool.wait.started", "connection.", "proxy.", "socks.")


_FAILED_BEFORE_SENDING: Final = (
    "ConnectError",
    "ConnectTimeout",
    "PoolTimeout",
    "UnsupportedProtocol",
    "LocalProtocolError",
)


class CallerLeft(Exception):  # noqa: N818  (it ends a task that nobody waits for)
    """Nobody waits for the answer any more."""


class SentTrace:
    """Watches one attempt at a request: put it in the request's `extensions["trace"]`, one for each attempt.

    `before_first_byte`: called when the request is about to leave. Where it raises, nothing leaves, then or later.
    `is_withheld`: whether the request is still to be handed to a transport.
    """

    __slots__ = ("_before_first_byte", "_has_begun_sending", "_is_connecting", "_last_event", "_refusal", "is_withheld")

    def __init__(self, before_first_byte: Callable[[], None] | None = None) -> None:
        """Start with nothing seen."""
        self.is_withheld = False
        self._before_first_byte = before_first_byte
        self._last_event = ""
        self._is_connecting = False  # a proxy is asked to CONNECT, by a request of its own
        self._has_begun_sending = False
        self._refusal: BaseException | None = None

    async def __call__(self, event: str, details: object) -> None:
        """Note an event; never waits. Raises what `before_first_byte` raises."""
        if self._has_begun_sending:
            return
        if not event.startswith(_SENDING):
            self._last_event = event
            return
        if event in _HEAD:
            self._is_connecting = _method(details) == b"CONNECT"
        if not (self._is_connecting and event.startswith("http11.")):  # no proxy is asked over HTTP/2
            self._begin(event)

    def _begin(self, event: str) -> None:
        """Count the request as sent, for good, unless it must not be: httpcore tells the end of that one too."""
        if self._refusal is None:
            self.check()
            self._has_begun_sending = True
        elif event.endswith(".started") and not event.endswith("response_closed.started"):
            raise self._refusal

    def check(self) -> None:
        """Ask whether the first byte may leave, and raise what keeps all of them from leaving."""
        if self._before_first_byte is None:
            return
        try:
            self._before_first_byte()
        except BaseException as refusal:
            self._refusal = refusal
            raise

    @property
    def has_begun_sending(self) -> bool:
        """Whether it was seen to leave."""
        return self._has_begun_sending

    def withdraw(self) -> None:
        """Keep the request from leaving, if it has not yet: CallerLeft is raised where it would."""
        self._before_first_byte = _leave

    def may_have_been_sent(self, error: Exception | None, *, transport_is_known: bool) -> bool:
        """Return whether any byte of the request may have left; False is a proof that none has.

        `transport_is_known` means one of ours or exactly `httpx.AsyncHTTPTransport`: only those raise, say,
        `ConnectTimeout` for nothing but a connection that could not be made. That counts when no event was seen,
        as with mocks, which replace the code that would have fired them.
        """
        if self._has_begun_sending:
            return True
        if (
            self.is_withheld
            or self._refusal is not None
            or self._is_connecting
            or self._last_event.startswith(_BEFORE_SENDING)
        ):
            return False
        return not (transport_is_known and error is not None and type(error) in errors(*_FAILED_BEFORE_SENDING))


def _leave() -> NoReturn:
    raise CallerLeft


def _method(details: object) -> object:
    """Return the method of the request that an event is of."""
    return getattr(details.get("request"), "method", None) if isinstance(details, Mapping) else None
