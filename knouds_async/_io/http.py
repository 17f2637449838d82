"""The HTTP client: ours, over our own pool and as the environment says, or the caller's as it is."""

from __future__ import annotations

import ssl
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from knouds_async import config
from knouds_async._io.exchange import Exchange, connection_limit, is_stock
from knouds_async._io.pool import PooledTransport, Proxy
from knouds_async._sansio import proxies, responses
from knouds_async.config import Secret, Timeouts, __version__
from knouds_async.errors import ConfigurationError

_PORTS = {"https": 443, "http": 80}
_ADVICE = "correct it, unset it, or name the service in $NO_PROXY"


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for a URL (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`), if any."""
    parts, environment = urlsplit(url), config.environment()
    host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    skipped = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if config.is_loopback(host) or proxies.is_bypassed(skipped, host, port):
        return None
    variable = proxies.chosen(environment, parts.scheme)
    if variable is None:
        return None
    if (why := proxies.fault(variable, has_socks=find_spec("socksio") is not None)) is not None:
        name, variable, environment = variable.name, None, {}  # so that no frame of ours shows a password
        raise ConfigurationError(f"the proxy in ${name}: {why}; {_ADVICE}")
    return proxies.url_of(variable)


def host_of_proxy(url: str) -> str | None:
    """Return host and port of the proxy for a URL, and nothing else of it: the rest may hold a password."""
    return None if (named := proxy_for(url)) is None else Proxy.of(named).name


def tls_context(url: str, proxy: str | None) -> ssl.SSLContext | None:
    """Return what checks the certificates of a service; None where there is no TLS: loading them takes long."""
    if urlsplit(url).scheme != "https" and urlsplit(proxy or "").scheme != "https":
        return None
    environment = config.environment()
    name = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if environment.get(name)), "")
    path = environment.get(name, "")
    try:
        if name and not (Path(path).is_dir() if name == "SSL_CERT_DIR" else Path(path).exists()):
            raise FileNotFoundError("there is no such file or folder")
        return httpx.create_ssl_context(trust_env=True)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        if (log := environment.get("SSLKEYLOGFILE")) and getattr(error, "filename", None) == log:
            name, path = "SSLKEYLOGFILE", log
        if not name:
            raise
        why = getattr(error, "strerror", None) or str(error)
    raise ConfigurationError(
        f"${name} names {path!r}, which cannot be used: {why}; correct it, unset it, or pass ssl_context="
    )


def check_context(given: object) -> None:
    """Raise ConfigurationError for what is no context of a client's: each call would fail, and be tried again."""
    if given is not None and not isinstance(given, ssl.SSLContext):
        raise ConfigurationError(f"ssl_context={given!r:.80}: must be an ssl.SSLContext, or None for the default")
    if given is not None and given.protocol == ssl.PROTOCOL_TLS_SERVER:
        raise ConfigurationError("ssl_context=: is a server's; make a client's with ssl.create_default_context()")


responses.converter()  # what reads answers is loaded before there are any


class Http:
    """What the calls of one AsyncKnouds go through: an HTTP client of our own, or the caller's.

    `connections`: how many calls may be on the way at once: what a lent client allows, where that can be seen.
    """

    def __init__(
        self, http: httpx.AsyncClient | None, base_url: str, ssl_context: ssl.SSLContext | None, connections: int
    ) -> None:
        """Use the client that is lent, or build one that suits."""
        check_context(ssl_context)
        self._is_lent = http is not None
        self._client = own_client(base_url, ssl_context=ssl_context, connections=connections) if http is None else http
        self.connections = connections if http is None else connection_limit(http, connections)

    def exchange(self, base_url: str, key: Secret, timeouts: Timeouts) -> Exchange:
        """Make what sends calls through it, one attempt at a time."""
        return Exchange(
            self._client,
            base_url=base_url,
            key=key,
            timeouts=timeouts,
            agent=f"knouds-async/{__version__}",
            is_known=tells_what_was_sent(self._client),
            proxy=None if self._is_lent else host_of_proxy(base_url),
            is_lent=self._is_lent,
        )

    async def aclose(self) -> None:
        """Close the client, unless it is the caller's."""
        if not self._is_lent:
            await self._client.aclose()


class _NoCookies(httpx.Cookies):
    """A jar that stays empty: the service's cookies are not ours to keep, and looking for some takes a while."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Take none."""


class _OwnClient(httpx.AsyncClient):
    """httpx's client without cookies."""

    @property
    def cookies(self) -> httpx.Cookies:
        """An empty jar."""
        return _NO_COOKIES

    @cookies.setter
    def cookies(self, cookies: object) -> None:
        """Keep it empty."""


_NO_COOKIES: Final = _NoCookies()


def own_client(base_url: str, *, ssl_context: ssl.SSLContext | None, connections: int) -> httpx.AsyncClient:
    """Build the client over our pool, through the proxy that the environment names (`HTTPS_PROXY`), if any."""
    named = proxy_for(base_url)
    verify = ssl_context if ssl_context is not None else tls_context(base_url, named)
    proxy = None if named is None else Proxy.of(named)
    transport = PooledTransport(ssl_context=verify, proxy=proxy, limit=connections)
    return _OwnClient(transport=transport, trust_env=False, follow_redirects=False)


def tells_what_was_sent(http: httpx.AsyncClient) -> bool:
    """Return whether the errors of a client's transports can be trusted: ours, or exactly httpx's own."""
    return type(getattr(http, "_transport", None)) is PooledTransport or is_stock(http)
