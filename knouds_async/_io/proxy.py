"""A tunnel through a proxy: what is said to it before our own request begins.

Rule of the file: none of it is our request, so none of it is told to the request's trace; it is part of connecting.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

import attrs
import httpcore
import httpx

if TYPE_CHECKING:
    import ssl

__all__ = ["Proxy"]

_SOCKS: Final = ("socks5", "socks5h")


@attrs.frozen
class Proxy:
    """An HTTP or SOCKS proxy, and what it wants to know of us."""

    scheme: str
    host: bytes
    port: int
    auth: tuple[bytes, bytes] | None = attrs.field(repr=False)

    @classmethod
    def of(cls, url: str) -> Proxy:
        """Read the proxy's URL; ValueError for one that is none, ImportError for SOCKS without socksio."""
        parsed = httpx.Proxy(url)  # it refuses what it does not know
        if parsed.url.scheme in _SOCKS:
            _socksio()
        default = {"http": 80, "https": 443}.get(parsed.url.scheme, 1080)
        return cls(parsed.url.scheme, parsed.url.raw_host, parsed.url.port or default, parsed.raw_auth)

    @property
    def is_socks(self) -> bool:
        """Whether it speaks SOCKS."""
        return self.scheme in _SOCKS

    @property
    def origin(self) -> httpcore.Origin:
        """Where it is, for httpcore."""
        return httpcore.Origin(self.scheme.encode(), self.host, self.port)

    @property
    def name(self) -> str:
        """Its host and port: what may be shown of it."""
        return f"{self.host.decode('ascii')}:{self.port}"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Who we are, for an HTTP proxy."""
        if self.auth is None:
            return []
        return [(b"Proxy-Authorization", b"Basic " + base64.b64encode(b":".join(self.auth)))]

    async def tunnel(
        self, network: httpcore.AsyncNetworkBackend, host: str, port: int, ssl_context: ssl.SSLContext | None
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the proxy over `network` and have it connect on; httpcore.ProxyError when it will not."""
        stream: httpcore.AsyncNetworkStream | None = None
        try:
            if not self.is_socks:
                return await self._connect(network, host, port, ssl_context)
            stream = await network.connect_tcp(self.host.decode("ascii"), self.port)
            await _greet(stream, host, port, self.auth)
        except httpcore.ConnectError as error:
            raise httpcore.ConnectError(f"no connection to the proxy {self.name}: {error}") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
            raise httpcore.ProxyError(f"the proxy {self.name}: {error}") from error
        return stream

    async def _connect(
        self, network: httpcore.AsyncNetworkBackend, host: str, port: int, ssl_context: ssl.SSLContext | None
    ) -> httpcore.AsyncNetworkStream:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        http = httpcore.AsyncHTTPConnection(self.origin, ssl_context=ssl_context, network_backend=network)
        answer = await http.handle_async_request(
            httpcore.Request(
                "CONNECT",
                httpcore.URL(scheme=self.scheme, host=self.host, port=self.port, target=target),
                headers=[(b"Host", target.encode("ascii")), *self.headers],
            )
        )
        if not 200 <= answer.status < 300:
            reason = bytes(answer.extensions.get("reason_phrase", b"")).decode("ascii", errors="replace")
            raise httpcore.ProxyError(f"{answer.status} {reason}".rstrip())
        stream = answer.extensions["network_stream"]
        assert isinstance(stream, httpcore.AsyncNetworkStream)  # noqa: S101  (for the type checker)
        return stream


async def _greet(stream: httpcore.AsyncNetworkStream, host: str, port: int, auth: tuple[bytes, bytes] | None) -> None:
    """Have a SOCKS proxy connect on."""
    socks = _socksio()
    method = socks.SOCKS5AuthMethod.NO_AUTH_REQUIRED if auth is None else socks.SOCKS5AuthMethod.USERNAME_PASSWORD
    talk = socks.SOCKS5Connection()
    if (await _ask(stream, talk, socks.SOCKS5AuthMethodsRequest([method]))).method != method:
        wanted = "without" if auth is None else "with"
        raise httpcore.ProxyError(f"it lets nobody in {wanted} user name and password")
    if auth is not None and not (await _ask(stream, talk, socks.SOCKS5UsernamePasswordRequest(*auth))).success:
        raise httpcore.ProxyError("it does not know the user name and password")
    to = socks.SOCKS5CommandRequest.from_address(socks.SOCKS5Command.CONNECT, (host, port))
    answer = await _ask(stream, talk, to)
    if answer.reply_code != socks.SOCKS5ReplyCode.SUCCEEDED:
        raise httpcore.ProxyError(f"{answer.reply_code.name.lower().replace('_', ' ')}")


async def _ask(stream: httpcore.AsyncNetworkStream, talk: Any, request: object) -> Any:
    """Say one thing and hear the answer, however many pieces it comes in."""
    talk.send(request)
    await stream.write(talk.data_to_send())
    is_command, heard = type(request).__name__ == "SOCKS5CommandRequest", b""
    while len(heard) < _length(heard, is_command=is_command) and (piece := await stream.read(4096)):
        heard += piece
    if not heard:
        raise httpcore.ProxyError("it hung up")
    try:
        return talk.receive_data(heard)
    except Exception as error:
        raise httpcore.ProxyError(f"it does not speak SOCKS 5 ({error})") from error


def _length(heard: bytes, *, is_command: bool) -> int:
    """Return how long the answer will be at least: two bytes, or an address and a port behind four."""
    if not is_command:
        return 2
    if len(heard) < 5:
        return 5
    return 6 + {1: 4, 3: 1 + heard[4], 4: 16}.get(heard[3], 0)


def _socksio() -> Any:
    try:
        import socksio.socks5 as socks  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise ImportError("a SOCKS proxy needs the package socksio: pip install 'httpx[socks]'") from None
    return socks
