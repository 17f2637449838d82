"""The way of a call over our own pool: what httpx would make anew for each request is made once, here.

Rule of the file: the same requests as through httpx, one layer below it: httpcore's connections send and read them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import httpcore
import httpx

from knouds_async._io.body import CutBody, collector
from knouds_async._io.sent import SentTrace
from knouds_async._io.transport import HeldBody, PooledTransport, Whole, origin_of
from knouds_async._sansio import headers
from knouds_async._sansio.calls import Call
from knouds_async.config import Secret, Timeouts


class CoreReply:
    """An answer whose body is still to be read and closed."""

    def __init__(self, response: httpcore.Response, body: HeldBody) -> None:
        """Keep both; a repeated header's values are joined by commas."""
        self.status = response.status
        self._body = body
        self._headers: dict[bytes, bytes] = {}
        for raw_name, value in response.headers:
            name = raw_name.lower()
            self._headers[name] = b"%b, %b" % (self._headers[name], value) if name in self._headers else value

    def _header(self, name: str) -> str | None:
        value = self._headers.get(name.encode())
        return None if value is None else value.decode("latin-1")

    def headers(self) -> Mapping[str, str]:
        """Give the headers that this library reads, as they came."""
        found = {name: self._header(name) for name in headers.READ}
        return {name: value for name, value in found.items() if value is not None}

    async def read(self, into: io.BytesIO) -> bytes:
        """Read the body; UnreadableBody or CutBody for what goes wrong. `into` holds what came."""
        body = collector(self._header("content-encoding") or "", into)
        try:
            async for chunk in self._body:
                body.feed(chunk)
        except httpx.TransportError as cut:
            raise CutBody(cut) from None
        return body.finish()

    async def aclose(self) -> None:
        """Let go of the connection."""
        await self._body.aclose()


class Direct:
    """Sends calls to one base URL with one key."""

    def __init__(
        self, transport: PooledTransport, base_url: str, key: Secret, timeouts: Timeouts, *, agent: str
    ) -> None:
        """Prepare what is the same in every request."""
        url = httpx.URL(base_url)
        self._transport = transport
        self._origin = origin_of(url)
        self._port = url.port
        self._prefix = url.raw_path.rstrip(b"/")
        self._key = key
        self._headers = [
            (b"Host", url.netloc),
            (b"Accept", b"application/json"),
            (b"Accept-Encoding", b"gzip"),
            (b"User-Agent", agent.encode("ascii")),
        ]
        self._timeouts = {name: getattr(timeouts, name) for name in ("connect", "read", "write", "pool")}

    async def send(self, call: Call[Any], trace: SentTrace, limit: float) -> CoreReply:
        """Send a call and give its answer; raises what httpx's own transport would."""
        return CoreReply(*await self._transport.send(self._request(call, trace, limit), self._origin))

    def _request(self, call: Call[Any], trace: SentTrace, limit: float) -> httpcore.Request:
        is_paid, lines, wait = call.pays_for is not None, self._headers, self._timeouts
        if call.body is not None:
            lines = [*lines, (b"Content-Type", b"application/json")]
        if call.body is not None or call.method in ("POST", "PUT"):
            lines = [*lines, (b"Content-Length", b"%d" % len(call.body or b""))]
        if call.keyed:  # it goes to the base URL's origin, for there is no other here
            lines = [*lines, (b"x-api-key", self._key.reveal().encode("ascii"))]
        if is_paid:  # it may take as long as it is allowed to in all
            wait = {**wait, "read": max(wait["read"], limit), "pool": max(wait["pool"], limit)}
        target = self._prefix + call.path.encode("ascii")
        return httpcore.Request(
            call.method,
            httpcore.URL(scheme=self._origin.scheme, host=self._origin.host, port=self._port, target=target),
            headers=lines,
            content=Whole(call.body or b""),
            extensions={"timeout": wait, "trace": trace, "knouds.fresh": is_paid},
        )
