"""One attempt of a call over HTTP: it ends as answered, garbled, not sent, or sent and unanswered; it never raises.

Rule of the file: requests with the key in them exist below it only. No HTTP object and no key leaves it: foreign errors
become words, and a cancellation passes with its traceback cut, so that no frame of it shows a header.
"""

from __future__ import annotations

import io
from typing import Any, Final

import httpcore
import httpx

from knouds_async._io.direct import Direct
from knouds_async._io.sent import SentTrace
from knouds_async._io.through_httpx import ThroughHttpx
from knouds_async._sansio.calls import Call
from knouds_async._sansio.replies import Answer
from knouds_async._sansio.retry import Garbled, NotSent, Outcome, Unanswered
from knouds_async.config import Secret, Timeouts

_MASK: Final = "***"
_PART: Final = 64 * 1024  # a receipt is far shorter


class Exchange:
    """Sends calls to one base URL with one key."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        *,
        base_url: str,
        key: Secret,
        timeouts: Timeouts,
        agent: str,
        is_known: bool,
        direct: Direct | None = None,
    ) -> None:
        """Use `direct` where it is given and nobody listens in on `http`, and `http` otherwise.

        `is_known`: whether the transport of `http` is one whose errors tell what was sent.
        """
        self._through_httpx = ThroughHttpx(http, base_url, key, timeouts, agent=agent)
        self._direct = direct
        self._key = key
        self._timeouts = timeouts
        self._is_known = is_known

    async def attempt(self, call: Call[Any], trace: SentTrace, *, total: float | None = None) -> Outcome:
        """Send a call once and give what came of it, within `total` seconds or the call's own timeout.

        Cancelled: the connection is closed; `trace` tells whether the request may have left.
        """
        limit = total if total is not None else getattr(self._timeouts, call.patience.value)
        way = self._through_httpx if self._direct is None or _is_replaced() else self._direct
        error: Exception | None = None
        read = io.BytesIO()
        try:
            if (outcome := await way.send(call, trace, limit, read)) is not None:
                return self._without_key(outcome, read)
        except Exception as failure:  # noqa: BLE001  (a caller's own transport may raise anything)
            error = failure
        except BaseException as stop:  # noqa: BLE001  (raised again)
            raise stop.with_traceback(None) from None
        return self._classify(error, trace, limit, read)

    def longest_queue(self, call: Call[Any], total: float | None) -> float:
        """Give the seconds to wait for a connection; a paid request waits at least as long as it may take itself."""
        limit = total if total is not None else getattr(self._timeouts, call.patience.value)
        return max(self._timeouts.pool, limit) if call.pays_for is not None else self._timeouts.pool

    def close(self) -> None:
        """Close the connections of our own."""
        if self._direct is not None:
            self._direct.close()

    def _without_key(self, outcome: Answer | Garbled, read: io.BytesIO) -> Answer | Garbled:
        """Mask an answer that echoes the request: it must not carry the key into errors."""
        seen = {name: self._masked(value) for name, value in outcome.headers.items()}
        if isinstance(outcome, Answer):
            return Answer(outcome.status, seen, self._unkeyed(outcome.body))
        return Garbled(outcome.status, seen, self._masked(outcome.seen), outcome.is_cut, self._part(read))

    def _classify(self, error: Exception | None, trace: SentTrace, limit: float, read: io.BytesIO) -> Outcome:
        """Tell from the trace, not from the error's class, whether the request may have left."""
        seen = self._words(error) if error is not None else f"no complete answer within {limit:g} s"
        known = error if isinstance(error, httpx.TransportError) else None
        may_have_left = trace.may_have_been_sent(known, transport_is_known=self._is_known)
        return Unanswered(seen, self._part(read)) if may_have_left else NotSent(seen)

    def _words(self, error: Exception) -> str:
        """Name an error in words that cannot hold the key."""
        text = self._masked(str(error))
        return f"{type(error).__name__}: {text}" if text else type(error).__name__

    def _masked(self, text: str) -> str:
        return text.replace(self._key.reveal(), _MASK)

    def _unkeyed(self, body: bytes) -> bytes:
        return body.replace(self._key.reveal().encode(), _MASK.encode())

    def _part(self, read: io.BytesIO) -> bytes:
        """Give the beginning of a body that did not come whole: the id of a run may be in it."""
        return self._unkeyed(bytes(read.getbuffer()[:_PART]))


_SENDERS: Final = (
    (httpcore.AsyncHTTPConnection, "handle_async_request"),
    (httpx.AsyncClient, "send"),
    (httpx.AsyncClient, "_transport_for_url"),
)


def _is_replaced() -> bool:
    """Tell whether anything of what sends httpx's requests was replaced from outside, as respx does in tests.

    Whoever did so means to see every request, so none may go past them.
    """
    for kind, name in _SENDERS:
        home = getattr(getattr(kind, name, None), "__globals__", {}).get("__name__", "")
        if not home.startswith(("httpx.", "httpcore.")):
            return True
    return False
