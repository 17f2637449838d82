"""The way of a call through an httpx client: the caller's own, or ours behind a proxy.

Rule of the file: what such a client adds to requests by itself (default headers, cookies, auth) is its owner's wish;
path and key, and where the key goes, are ours.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import httpx

from knouds_async._io.body import CutBody, read_body
from knouds_async._io.sent import SentTrace
from knouds_async._sansio import headers
from knouds_async._sansio.calls import Call
from knouds_async.config import Secret, Timeouts


class HttpxReply:
    """An answer whose body is still to be read and closed."""

    def __init__(self, response: httpx.Response) -> None:
        """Wrap it."""
        self._response = response
        self.status = response.status_code

    def headers(self) -> Mapping[str, str]:
        """Give the headers that this library reads, as they came."""
        found = {name: self._response.headers.get(name) for name in headers.READ}
        return {name: value for name, value in found.items() if value is not None}

    async def read(self, into: io.BytesIO) -> bytes:
        """Read the body; UnreadableBody or CutBody for what goes wrong. `into` holds what came."""
        try:
            return await read_body(self._response, into=into)
        except httpx.TransportError as cut:
            raise CutBody(cut) from None

    async def aclose(self) -> None:
        """Let go of the connection."""
        await self._response.aclose()


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

    async def send(self, call: Call[Any], trace: SentTrace, limit: float) -> HttpxReply:
        """Send a call and give its answer; raises what the client raises."""
        request = self._request(call, trace, limit)
        return HttpxReply(await self._http.send(request, stream=True, follow_redirects=False))

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


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port
