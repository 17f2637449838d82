"""Small HTTP and SOCKS 5 proxies on the loopback, which lead to one port whatever host they are asked for."""

from __future__ import annotations

import base64
import contextlib
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.abc
from anyio.streams.tls import TLSListener

from tests.io.scripted import AUTHORITY

GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)  # ssl.SSLError too
WHOLE_URL = (
    b" http://knouds.test/",
    b" /",
)  # what a plain request to a proxy asks for, and what it asks the server for
REFUSED = {
    "https": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    "http": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    "socks5": b"\5\4\0\1\0\0\0\0\0\0",
}
Play = Callable[["Proxy", anyio.abc.ByteStream], Awaitable[None]]


class Proxy:
    """A proxy that serves: `asked` lists the targets; a `refusal` is what it answers instead of connecting on."""

    def __init__(self, scheme: str, port: int, upstream: int, *, user: str | None, refuses_every: int) -> None:
        login = "" if user is None else f"{user}@"
        self.url = f"{scheme}://{login}127.0.0.1:{port}"
        self.upstream = upstream
        self.user = user
        self.asked: list[str] = []
        self.refusal: bytes | None = None
        self.hangs_up = True
        self._refuses_every = refuses_every
        self.open = 0

    @property
    def refuses(self) -> bool:
        """Whether it refuses what it was asked last."""
        turn = len(self.asked)
        return self.refusal is not None or (self._refuses_every > 0 and turn % self._refuses_every == 0)

    async def refuse(self, stream: anyio.abc.ByteStream) -> None:
        """Answer the refusal, and hang up or fall silent."""
        await stream.send(REFUSED[urlsplit(self.url).scheme] if self.refusal is None else self.refusal)
        while not self.hangs_up:
            await stream.receive()

    async def lead_on(self, stream: anyio.abc.ByteStream, said: bytes, *, begin: bytes) -> None:
        """Connect on, say so, and pass everything both ways."""
        async with await anyio.connect_tcp("127.0.0.1", self.upstream) as there, anyio.create_task_group() as tasks:
            with contextlib.suppress(*GONE):
                await stream.send(said)
                await there.send(begin.replace(*WHOLE_URL))
            tasks.start_soon(copy, stream, there, tasks.cancel_scope)
            tasks.start_soon(copy, there, stream, tasks.cancel_scope)


async def copy(source: anyio.abc.ByteStream, to: anyio.abc.ByteStream, scope: anyio.CancelScope) -> None:
    """Pass on what comes; cancel the scope when it ends."""
    with contextlib.suppress(*GONE):
        while True:
            await to.send((await source.receive()).replace(*WHOLE_URL))
    scope.cancel()


async def speak_http(proxy: Proxy, stream: anyio.abc.ByteStream) -> None:
    """Serve as an HTTP proxy for one connection."""
    seen = b""
    while b"\r\n\r\n" not in seen:
        seen += await stream.receive()
    head = seen.decode("latin-1")
    proxy.asked.append(head.split()[1])
    if proxy.user is not None and base64.b64encode(proxy.user.encode()).decode() not in head:
        await stream.send(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
    elif proxy.refuses:
        await proxy.refuse(stream)
    elif head.startswith("CONNECT "):
        await proxy.lead_on(stream, b"HTTP/1.1 200 Connection established\r\n\r\n", begin=b"")
    else:
        await proxy.lead_on(stream, b"", begin=seen)


async def speak_socks(proxy: Proxy, stream: anyio.abc.ByteStream) -> None:
    """Serve as a SOCKS 5 proxy for one connection."""
    methods = await stream.receive()
    if proxy.user is None:
        await stream.send(b"\5\0")
    elif 2 not in methods[2:]:
        return await stream.send(b"\5\xff")
    else:
        await stream.send(b"\5\2")
        told = await stream.receive()
        name, _, password = proxy.user.partition(":")
        is_known = told[2:].startswith(name.encode()) and told.endswith(password.encode())
        await stream.send(b"\1\0" if is_known else b"\1\1")
    target = await stream.receive()
    proxy.asked.append(target[5:-2].decode("latin-1"))
    if proxy.refuses:
        return await proxy.refuse(stream)
    return await proxy.lead_on(stream, b"\5\0\0\3\4name\0\0", begin=b"")


SPEAK: dict[str, Play] = {"http": speak_http, "https": speak_http, "socks5": speak_socks}


@contextlib.asynccontextmanager
async def proxying(
    scheme: str, upstream: int, *, user: str | None = None, refuses_every: int = 0
) -> AsyncGenerator[Proxy]:
    """Serve a proxy on a free port of the loopback until the block ends.

    `user`: as in a URL, name and password. `refuses_every`: which connections it refuses, 2 for every other.
    """
    listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port: int = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610  (not Django's)
    if scheme == "https":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
        listener = TLSListener(listener, context, standard_compatible=False)
    proxy = Proxy(scheme, port, upstream, user=user, refuses_every=refuses_every)

    async def serve(stream: anyio.abc.ByteStream) -> None:
        proxy.open += 1
        try:
            async with stream:
                with contextlib.suppress(*GONE):
                    await SPEAK[scheme](proxy, stream)
        finally:
            proxy.open -= 1

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield proxy
        tasks.cancel_scope.cancel()
