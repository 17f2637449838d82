"""The HTTP client: ours, over our own pool, or the caller's as it is.

Rule of the file: redirects are never followed, HTTP/2 is off, no cookie or key of the environment is picked up.
"""

from __future__ import annotations

import ssl

import httpx

from knouds_async import config
from knouds_async._io.transport import PooledTransport


def own_client(base_url: str, *, ssl_context: ssl.SSLContext | None, connections: int) -> httpx.AsyncClient:
    """Build the client: our pool, or httpx's own transport where the environment names a proxy (`HTTPS_PROXY`)."""
    verify = ssl_context if ssl_context is not None else httpx.create_ssl_context(trust_env=True)
    proxy = config.proxy_for(base_url)
    if proxy is None:
        transport: httpx.AsyncBaseTransport = PooledTransport(ssl_context=verify, limit=connections)
    else:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        transport = httpx.AsyncHTTPTransport(verify=verify, proxy=proxy, limits=limits, trust_env=False)
    return httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False)


def pool_of(http: httpx.AsyncClient) -> PooledTransport | None:
    """Give the pool below a client of our own; None where a proxy is in between."""
    transport = getattr(http, "_transport", None)
    return transport if isinstance(transport, PooledTransport) else None


def tells_what_was_sent(http: httpx.AsyncClient) -> bool:
    """Tell whether the errors of a client's transport can be trusted: ours, or exactly httpx's own without mounts."""
    transport = getattr(http, "_transport", None)
    return type(transport) in (PooledTransport, httpx.AsyncHTTPTransport) and not getattr(http, "_mounts", None)
