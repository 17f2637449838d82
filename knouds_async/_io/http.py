"""The HTTP client: ours, over our own pool, or the caller's as it is.

Rule of the file: redirects are never followed, HTTP/2 is off, no cookie or key of the environment is picked up.
"""

from __future__ import annotations

import ssl
from typing import Final

import httpx

from knouds_async._io import lent
from knouds_async._io.environment import check_context, host_of_proxy, proxy_for, tls_context
from knouds_async._io.exchange import Exchange
from knouds_async._io.pool import PooledTransport, Proxy
from knouds_async._sansio import responses
from knouds_async.config import Secret, Timeouts, __version__

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
        self.connections = connections if http is None else lent.connection_limit(http, connections)

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
    """Tell whether the errors of a client's transports can be trusted: ours, or exactly httpx's own."""
    return type(getattr(http, "_transport", None)) is PooledTransport or lent.is_stock(http)
