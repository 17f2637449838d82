"""HTTP clients that are lent: whose classes they are made of, how much their pools hold, what their errors prove.

httpx and its fork httpx2 have the same names; a request, a URL or an error of the one is none to the other. Neither is
imported here: whoever lends a client has loaded its module.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Final, cast

from knouds_async.errors import ConfigurationError

if TYPE_CHECKING:
    import httpx

_MODULES: Final = ("httpx", "httpx2")
_STEPS: Final = ("send", "_send_handling_auth", "_send_handling_redirects", "_send_single_request")


def checked(client: object) -> httpx.AsyncClient | None:
    """Return a lent client, for type checkers as httpx's; ConfigurationError for what is no asynchronous client."""
    if client is None or isinstance(client, tuple(module.AsyncClient for module in _loaded())):
        return cast("httpx.AsyncClient | None", client)
    is_sync = isinstance(client, tuple(module.Client for module in _loaded()))
    why = "a synchronous client would block the event loop" if is_sync else "must be an asynchronous client"
    raise ConfigurationError(f"http_client={client!r:.80}: {why}; lend an httpx.AsyncClient or httpx2.AsyncClient")


def httpx_of(thing: object) -> ModuleType:
    """Return the module that a client or a response comes from: httpx2, or else httpx."""
    names = [kind.__module__.partition(".")[0] for kind in type(thing).__mro__]
    return sys.modules["httpx2" if "httpx2" in names else "httpx"]


def errors(*names: str) -> tuple[type[Exception], ...]:
    """Return the errors of these names, of httpx and of httpx2, as far as they are loaded."""
    return tuple(getattr(module, name) for module in _loaded() for name in names)


def _loaded() -> list[ModuleType]:
    return [sys.modules[name] for name in _MODULES if name in sys.modules]


# What is in a client, and below it.


def sends_plainly(client: object) -> bool:
    """Return whether a client sends in httpx's own way: one that has a way of its own may send more than once."""
    own = httpx_of(client).AsyncClient
    is_own = all(getattr(type(client), step, None) is getattr(own, step, 0) for step in _STEPS)
    return is_own and not vars(client).keys() & set(_STEPS)


def has_foreign_auth(client: object) -> bool:
    """Return whether a client has an auth that is not httpx's: it may send copies of a request, one after the other."""
    auth = getattr(client, "auth", None)
    return auth is not None and _top(type(auth)) not in _MODULES


def transports(client: object) -> list[object]:
    """List what a client sends through: its transport and those of its mounts."""
    mounts = getattr(client, "_mounts", None) or {}
    return [one for one in (getattr(client, "_transport", None), *mounts.values()) if one is not None]


def is_stock(client: object) -> bool:
    """Return whether a client sends by exactly httpx's own ways alone, so that its errors can be trusted."""
    is_own = {type(transport) for transport in transports(client)} == {httpx_of(client).AsyncHTTPTransport}
    return is_own and sends_plainly(client) and not has_foreign_auth(client)


def has_stock_pool(client: object) -> bool:
    """Return whether an httpcore pool lies below a client, also within a transport that wraps another."""
    return any(_pool(transport) is not None for transport in _unwrapped(client))


def connection_limit(client: object, otherwise: int) -> float:
    """Return how many connections a client allows at once, where that can be seen."""
    seen = [limit for transport in _unwrapped(client) if (limit := _limit(transport)) is not None]
    return min(seen, default=otherwise)


def _unwrapped(client: object) -> Iterator[object]:
    for transport in transports(client):
        yield transport
        yield from getattr(transport, "__dict__", {}).values()


def _pool(transport: object) -> object | None:
    pool = getattr(transport, "_pool", None)
    return pool if _top(type(pool)) in ("httpcore", "httpcore2") else None


def _limit(transport: object) -> int | None:
    pool, connector = _pool(transport), getattr(getattr(transport, "client", None), "connector", None)
    limits = getattr(transport, "limits", None)
    for owner, name in ((pool, "_max_connections"), (connector, "limit"), (limits, "max_connections")):
        limit = getattr(owner, name, None)
        if isinstance(limit, int) and limit > 0:  # aiohttp says 0 for any number
            return limit
    return None


def _top(kind: type) -> str:
    return kind.__module__.partition(".")[0]


# What proves that nothing was sent.


def connector_failed(client: object, error: Exception | None) -> bool:
    """Return whether aiohttp's connector failed, so that nothing was sent: refused, no such host, TLS, or too late.

    By the cause, not by the error: httpx-aiohttp calls it a ConnectTimeout also when the server has hung up. It proves
    nothing where somebody in between may have sent the request before.
    """
    aiohttp = sys.modules.get("aiohttp")
    names = ("ClientConnectorError", "ConnectionTimeoutError", "ClientHttpProxyError")
    proofs = tuple(kind for name in names if (kind := getattr(aiohttp, name, None)) is not None)
    return isinstance(getattr(error, "__cause__", None), proofs) and _is_plain_aiohttp(client)


def _is_plain_aiohttp(client: object) -> bool:
    """Return whether a client sends by aiohttp's own ways alone; a transport that has made no session sent nothing."""
    below = transports(client)
    kinds = {(_top(type(transport)), type(transport).__name__) for transport in below}
    made = [one for transport in below if not callable(one := getattr(transport, "client", None)) and one is not None]
    are_plain = all(_top(type(one)) == "aiohttp" and not getattr(one, "_middlewares", ()) for one in made)
    is_own = kinds == {("httpx_aiohttp", "AiohttpTransport")}
    return is_own and are_plain and sends_plainly(client) and not has_foreign_auth(client)
