"""The way of a call through an httpx client: the caller's own, one behind a proxy, or one whose requests are mocked.

Rule of the file: what such a client adds to requests by itself (default parameters, cookies, auth) is its owner's wish;
the path, the key and where it goes are ours.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import anyio
import httpx

from knouds_async._io.body import UnreadableBody, read_body
from knouds_async._io.sent import SentTrace
from knouds_async._sansio import headers
from knouds_async._sansio.calls import Call
from knouds_async._sansio.replies import Answer
from knouds_async._sansio.retry import Garbled
from knouds_async.config import Secret, Timeouts


class ThroughHttpx:
    """Sends calls to one base URL with one key."""

    def __init__(self, http: httpx.AsyncClient, base_url: str, key: Secret, timeouts: Timeouts, *, agent: str) -> None:
        """Use `http` as it is."""
        self._http = http
        self._base_url = base_url
        self._origin = _origin(httpx.URL(base_url))
        self._key = key
        self._timeouts = timeouts
        self._headers = {"accept": "application/json", "accept-encoding": "gzip", "user-agent": agent}

    async def send(self, call: Call[Any], trace: SentTrace, limit: float, read: io.BytesIO) -> Answer | Garbled | None:
        """Send a call once and give its answer as it came, the key perhaps in it; None: not within `limit` seconds.

        `read` collects the body, and holds what came of it when the rest did not.
        Raises what the client raises. Cancelled: the connection is closed; `trace` tells what may have left.
        """
        with anyio.move_on_after(limit):
            return await self._perform(call, trace, limit, read)
        return None

    async def _perform(self, call: Call[Any], trace: SentTrace, limit: float, read: io.BytesIO) -> Answer | Garbled:
        response = await self._http.send(self._request(call, trace, limit), stream=True, follow_redirects=False)
        found = {name: response.headers.get(name) for name in headers.READ}
        seen = {name: value for name, value in found.items() if value is not None}
        try:
            body = await read_body(response, into=read)
        except UnreadableBody as odd:
            return Garbled(response.status_code, seen, f"the body of the answer {odd}", is_cut=False)
        except httpx.TransportError as cut:
            why = f"{type(cut).__name__}: {cut}"
            return Garbled(response.status_code, seen, f"the answer was cut short ({why})", is_cut=True)
        finally:
            with contextlib.suppress(Exception):  # what was read is worth more than a tidy end
                await response.aclose()
        return Answer(response.status_code, seen, body)

    def _request(self, call: Call[Any], trace: SentTrace, limit: float) -> httpx.Request:
        wait = self._timeouts
        is_paid = call.pays_for is not None
        read_time, pool = (max(wait.read, limit), max(wait.pool, limit)) if is_paid else (wait.read, wait.pool)
        request = self._http.build_request(
            call.method,
            self._base_url + call.path,
            content=call.body,
            headers=self._headers if call.body is None else {**self._headers, "content-type": "application/json"},
            timeout=httpx.Timeout(connect=wait.connect, read=read_time, write=wait.write, pool=pool),
            extensions={"trace": trace, "knouds.fresh": is_paid},
        )
        request.url = httpx.URL(self._base_url + call.path)  # a caller's client may have default parameters
        if call.keyed and _origin(request.url) == self._origin:
            request.headers["x-api-key"] = self._key.reveal()
        return request


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
