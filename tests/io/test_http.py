"""The HTTP client: our own pool, straight or behind a proxy, the caller's as it is."""

from __future__ import annotations

import ssl

import httpcore
import httpx
import pytest

from knouds_async._io.pool import PooledTransport, own_client, tells_what_was_sent

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from an environment without proxies."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def transport_for(url: str, context: ssl.SSLContext | None = None) -> PooledTransport:
    """Return the transport of our client for a base URL."""
    transport = own_client(url, ssl_context=context, connections=7)._transport
    assert isinstance(transport, PooledTransport)
    return transport


def is_proxied(url: str) -> bool:
    """Return whether our client goes through a proxy to a base URL."""
    return transport_for(url)._pool._proxied_by is not None


def test_without_a_proxy_it_is_our_pool() -> None:
    """The pool of our own is used, with the caller's TLS context."""
    assert transport_for("https://knouds.ai", ssl.create_default_context())._pool._proxied_by is None


def test_httpx_still_keeps_its_pool_where_ours_is_put() -> None:
    """The one private name of httpx that our transport fills: `AsyncHTTPTransport` asks it for every request."""
    assert isinstance(httpx.AsyncHTTPTransport()._pool, httpcore.AsyncConnectionPool)
    assert isinstance(transport_for("https://knouds.ai")._pool, httpcore.AsyncConnectionPool)
    assert PooledTransport.handle_async_request is httpx.AsyncHTTPTransport.handle_async_request


@pytest.mark.parametrize(
    ("variable", "url", "expected"),
    [
        ("HTTPS_PROXY", "https://knouds.ai", True),
        ("https_proxy", "https://knouds.ai", True),
        ("ALL_PROXY", "https://knouds.ai", True),
        ("HTTP_PROXY", "https://knouds.ai", False),
        ("HTTPS_PROXY", "https://127.0.0.1:8000", False),
        ("HTTPS_PROXY", "http://localhost:8000", False),
    ],
)
def test_a_proxy_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str, expected: bool
) -> None:
    """With a proxy for the scheme it is gone through; the loopback is never proxied."""
    monkeypatch.setenv(variable, "http://proxy.test:3128")
    assert is_proxied(url) is expected


def test_no_proxy_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that $NO_PROXY names is reached directly."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", "knouds.ai")
    assert not is_proxied("https://knouds.ai")


def test_redirects_and_the_environment_are_off() -> None:
    """Our client follows no redirect and picks up no credentials of the environment."""
    client = own_client("https://knouds.ai", ssl_context=None, connections=1)
    assert not client.follow_redirects
    assert not client.trust_env


def test_whose_errors_tell_what_was_sent() -> None:
    """Ours and exactly httpx's own are trusted; any other transport, a subclass or a mount is not."""

    class Subclass(httpx.AsyncHTTPTransport):
        pass

    mock = httpx.MockTransport(lambda request: httpx.Response(200))
    assert tells_what_was_sent(own_client("https://knouds.ai", ssl_context=None, connections=1))
    assert tells_what_was_sent(httpx.AsyncClient(transport=httpx.AsyncHTTPTransport()))
    assert not tells_what_was_sent(httpx.AsyncClient(transport=mock))
    assert not tells_what_was_sent(httpx.AsyncClient(transport=Subclass()))
    assert not tells_what_was_sent(httpx.AsyncClient(mounts={"https://": mock}))
