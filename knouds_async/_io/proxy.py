"""The proxy that the environment names for a URL, and connections through it, which httpcore makes.

No message shows any of a proxy's value but its scheme or its host, and never a cause: the value may hold a password.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import re
import ssl
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import httpcore
import httpx

from knouds_async import config
from knouds_async.errors import ConfigurationError

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,20}\Z")
_UNCLEAN: Final = re.compile(r"[\x00-\x20\x7f\"'`\\]|[^\x00-\x7f]")
_SCHEMES: Final = ("http", "https", "socks5", "socks5h")
_FORM: Final = (
    "it must be http://host:port (it is not shown here); what a user name or a password holds beside letters and "
    "digits is to be percent-encoded"
)


def _fault(value: str) -> str | None:
    """Return what is wrong with a proxy; None when it can be used."""
    if _UNCLEAN.search(value):
        return "it holds quotes, spaces, line ends or other characters that no URL has (it is not shown here)"
    scheme, has_scheme, _ = value.partition("://")
    if has_scheme and scheme.lower() not in _SCHEMES:
        named = f"a proxy of the kind {scheme!r}" if _SCHEME.match(scheme) else "what it names (it is not shown here)"
        return f"{named} cannot be used: it must be one of {', '.join(f'{one}://' for one in _SCHEMES)}"
    if not _is_address(_url(value)):
        return _FORM
    if scheme.lower().startswith("socks") and has_scheme and find_spec("socksio") is None:
        return "a SOCKS proxy needs the package socksio: pip install 'httpx[socks]'"
    return None


def _url(value: str) -> str:
    """Return the URL of a proxy; one without a scheme is meant as http."""
    return value if "://" in value else f"http://{value}"


def _is_address(url: str) -> bool:
    """Return whether a URL is one of a host alone; its errors would quote it."""
    try:
        httpx.Proxy(url)
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and parts.path in ("", "/") and not parts.query + parts.fragment
    except (ValueError, httpx.InvalidURL):
        return False


def is_bypassed(no_proxy: str, host: str, port: int | None) -> bool:
    """Return whether `NO_PROXY` names a host.

    Its entries, separated by commas or spaces: `*`; a name, for itself and what is below it; `*.name`, for what is
    below it; an address, IPv6 in brackets or not; a range of addresses, `10.0.0.0/8`. A port binds an entry to it.
    """
    entries: Iterable[str] = no_proxy.replace(",", " ").split()
    return any(_matches(entry.lower(), host.lower().rstrip("."), port) for entry in entries)


def _matches(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    name, bound = _split(entry)
    if bound and bound != str(port):
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        below = name.removeprefix("*").lstrip(".")
        return bool(below) and (host.endswith(f".{below}") or (host == below and not name.startswith("*")))
    with contextlib.suppress(ValueError):  # the entry is a name
        return address in ipaddress.ip_network(name, strict=False)
    return False


def _split(entry: str) -> tuple[str, str]:
    """Split an entry into what it names and the port that it is bound to, if any."""
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        return (name + rest, "") if rest.startswith("/") else (name, rest.removeprefix(":"))
    name, _, bound = entry.partition(":")
    return (entry, "") if ":" in bound else (name, bound)  # a bare IPv6 address has no port


_PORTS = {"https": 443, "http": 80}
_ADVICE = "correct it, unset it, or name the service in $NO_PROXY"


def proxy_for(url: str) -> httpcore.Proxy | None:
    """Return the proxy that the environment names for a URL (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`), if any."""
    parts, environment = urlsplit(url), config.environment()
    host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    skipped = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if config.is_loopback(host) or is_bypassed(skipped, host, port):
        return None
    proxies = config.proxies()
    kind = next((kind for kind in (parts.scheme, "all") if kind in proxies), None)
    if kind is None:
        return None
    if (why := _fault(proxies[kind])) is not None:
        named = (name for name in environment if name.lower() == f"{kind}_proxy" and environment[name] == proxies[kind])
        message = f"the proxy in ${next(named)}: {why}; {_ADVICE}"
        environment = proxies = {}  # so that no frame of ours shows a password
        raise ConfigurationError(message)
    return read_proxy(_url(proxies[kind]))


def read_proxy(url: str) -> httpcore.Proxy:
    """Return the proxy of a URL, for httpcore; it shows no password. ValueError for one that is none."""
    given = httpx.Proxy(url)  # it refuses what it does not know
    to = given.url
    address = httpcore.URL(scheme=to.raw_scheme, host=to.raw_host, port=to.port, target=b"/")
    auth = None if given.raw_auth is None else (_Hidden(given.raw_auth[0]), _Hidden(given.raw_auth[1]))
    return httpcore.Proxy(address, auth=auth)


class _Hidden(bytes):
    """Bytes that are not shown: httpcore logs what it says to a SOCKS proxy."""

    def __repr__(self) -> str:
        """Show nothing."""
        return "b'***'"


def name_of(proxy: httpcore.Proxy) -> str:
    """Return the host and the port of a proxy: what may be shown of it."""
    return f"{proxy.url.host.decode('ascii')}:{proxy.url.origin.port}"


def _bracket(connect: httpcore.Request) -> None:
    """Write an IPv6 address that is to be connected to in brackets, which httpcore leaves out."""
    host, _, port = connect.url.target.rpartition(b":")
    if b":" in host:
        connect.url.target = b"[%b]:%b" % (host, port)
        rest = [(name, value) for name, value in connect.headers if name.lower() != b"host"]
        connect.headers = [(b"Host", connect.url.target), *rest]


_BEGINS: Final = "http11.send_request_headers.started"
_NOT_CONNECTED: Final = (httpcore.ConnectError, httpcore.ConnectTimeout)


class ProxiedConnection(httpcore.AsyncConnectionInterface):
    """A connection through a proxy: httpcore's own, made in the time for connecting, with errors that name the proxy.

    It is in a pool of one, for that is what tools replace that mock httpcore.
    """

    def __init__(
        self, proxy: httpcore.Proxy, ssl_context: ssl.SSLContext | None, network: httpcore.AsyncNetworkBackend
    ) -> None:
        self._name: Final = name_of(proxy)
        self._pool: Final = httpcore.AsyncConnectionPool(ssl_context, proxy, max_connections=1, network_backend=network)
        self._is_made = False

    @property
    def _connection(self) -> httpcore.AsyncConnectionInterface | None:
        return next(iter(self._pool.connections), None)

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request, the first one once there is a connection; httpcore's errors."""
        if self._is_made:
            return await self._pool.handle_async_request(request)
        timeout = request.extensions.get("timeout", {}).get("connect") or math.inf
        trace = request.extensions.get("trace")
        connecting, is_late = anyio.CancelScope(deadline=anyio.current_time() + timeout), False

        async def note(event: str, details: Any) -> None:
            nonlocal is_late
            if event == _BEGINS and details["request"].method == b"CONNECT":
                _bracket(details["request"])
            elif event == _BEGINS and connecting.cancel_called:  # in this very step: nothing of the request has left
                is_late = True
                raise httpcore.ConnectTimeout
            elif event == _BEGINS:
                self._is_made, connecting.deadline = True, math.inf
            if trace is not None and not is_late:
                await trace(event, details)

        request.extensions = {**request.extensions, "trace": note}
        try:
            with connecting:
                return await self._pool.handle_async_request(request)
        except Exception as error:
            if self._is_made:
                raise
            kind = type(error) if isinstance(error, _NOT_CONNECTED) else httpcore.ProxyError
            raise kind(f"no connection through the proxy {self._name}: {error}".rstrip(": ")) from error
        raise httpcore.ConnectTimeout(f"no connection through the proxy {self._name} within {timeout:g} s")

    def is_available(self) -> bool:
        """Return whether it can take another request."""
        return self._connection is not None and self._connection.is_available()

    def has_expired(self) -> bool:
        """Return whether the other end has hung up."""
        return self._connection is None or self._connection.has_expired()
