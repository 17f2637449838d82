"""One attempt of a call over HTTP: it ends as answered, garbled, not sent, or sent and unanswered; it never raises.

Rule of the file: the only place where a request with the key in it exists. No HTTP object leaves it: foreign errors
become words, and a cancellation passes with its traceback cut, so that no frame of it shows a header.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any, Final

import anyio
import httpx

from knouds_async._io.transport import SentTrace, UnreadableBody, read_body
from knouds_async._sansio import headers
from knouds_async._sansio.calls import Call
from knouds_async._sansio.replies import Answer
from knouds_async._sansio.retry import Garbled, NotSent, Outcome, Unanswered
from knouds_async.config import Secret, Timeouts

_MASK: Final = "***"
_PART: Final = 64 * 1024  # a receipt is far shorter


class Exchange:
    """Sends calls to one base URL with one key."""

    def __init__(
        self, http: httpx.AsyncClient, *, base_url: str, key: Secret, timeouts: Timeouts, agent: str, is_known: bool
    ) -> None:
        """Use `http`; `is_known`: whether its transport is one whose errors tell what was sent."""
        self._http = http
        self._base_url = base_url
        self._origin = _origin(httpx.URL(base_url))
        self._key = key
        self._timeouts = timeouts
        self._headers = {"accept": "application/json", "accept-encoding": "gzip", "user-agent": agent}
        self._is_known = is_known

    async def attempt(self, call: Call[Any], trace: SentTrace, *, total: float | None = None) -> Outcome:
        """Send a call once and give what came of it, within `total` seconds or the call's own timeout.

        Cancelled: the connection is closed; `trace` tells whether the request may have left.
        """
        limit = total if total is not None else getattr(self._timeouts, call.patience.value)
        error: Exception | None = None
        part = io.BytesIO()
        try:
            with anyio.move_on_after(limit):
                return await self._perform(call, trace, limit, part)
        except Exception as failure:  # noqa: BLE001  (a caller's own transport may raise anything)
            error = failure
        except BaseException as stop:  # noqa: BLE001  (raised again)
            raise stop.with_traceback(None) from None
        return self._classify(error, trace, limit, part)

    def longest_queue(self, call: Call[Any], total: float | None) -> float:
        """Give the seconds to wait for a connection; a paid request waits at least as long as it may take itself."""
        limit = total if total is not None else getattr(self._timeouts, call.patience.value)
        return max(self._timeouts.pool, limit) if call.pays_for is not None else self._timeouts.pool

    async def _perform(self, call: Call[Any], trace: SentTrace, limit: float, part: io.BytesIO) -> Outcome:
        response = await self._http.send(self._request(call, trace, limit), stream=True, follow_redirects=False)
        found = {name: response.headers.get(name) for name in headers.READ}
        seen = {name: self._masked(value) for name, value in found.items() if value is not None}
        try:
            body = await read_body(response, into=part)
        except UnreadableBody as odd:
            why = f"the body of the answer {odd}"
            return Garbled(response.status_code, seen, why, is_cut=False, part=self._part(part))
        except httpx.TransportError as cut:
            why = f"the answer was cut short ({self._words(cut)})"
            return Garbled(response.status_code, seen, why, is_cut=True, part=self._part(part))
        finally:
            with contextlib.suppress(Exception):  # what was read is worth more than a tidy end
                await response.aclose()
        # An answer that echoes the request must not carry the key into errors.
        return Answer(response.status_code, seen, self._unkeyed(body))

    def _request(self, call: Call[Any], trace: SentTrace, limit: float) -> httpx.Request:
        wait = self._timeouts
        is_paid = call.pays_for is not None
        read, pool = (max(wait.read, limit), max(wait.pool, limit)) if is_paid else (wait.read, wait.pool)
        request = self._http.build_request(
            call.method,
            self._base_url + call.path,
            content=call.body,
            headers=self._headers if call.body is None else {**self._headers, "content-type": "application/json"},
            timeout=httpx.Timeout(connect=wait.connect, read=read, write=wait.write, pool=pool),
            extensions={"trace": trace, "knouds.fresh": is_paid},
        )
        request.url = httpx.URL(self._base_url + call.path)  # a caller's client may have default parameters
        if call.keyed and _origin(request.url) == self._origin:
            request.headers["x-api-key"] = self._key.reveal()
        return request

    def _classify(self, error: Exception | None, trace: SentTrace, limit: float, part: io.BytesIO) -> Outcome:
        """Tell from the trace, not from the error's class, whether the request may have left."""
        seen = self._words(error) if error is not None else f"no complete answer within {limit:g} s"
        known = error if isinstance(error, httpx.TransportError) else None
        may_have_left = trace.may_have_been_sent(known, transport_is_known=self._is_known)
        return Unanswered(seen, self._part(part)) if may_have_left else NotSent(seen)

    def _words(self, error: Exception) -> str:
        """Name an error in words that cannot hold the key."""
        text = self._masked(str(error)).rstrip(". ")  # the sentence goes on
        return f"{type(error).__name__}: {text}" if text else type(error).__name__

    def _masked(self, text: str) -> str:
        return text.replace(self._key.reveal(), _MASK)

    def _unkeyed(self, body: bytes) -> bytes:
        return body.replace(self._key.reveal().encode(), _MASK.encode())

    def _part(self, read: io.BytesIO) -> bytes:
        """Give the beginning of a body that did not come whole: the id of a run may be in it."""
        return self._unkeyed(bytes(read.getbuffer()[:_PART]))


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
