"""The HTTP client: our own pool, httpx's transport behind a proxy, the caller's as it is."""

from __future__ import annotations

import ssl

import httpx
import pytest

from knouds_async._io.http import own_client, tells_what_was_sent
from knouds_async._io.transport import PooledTransport

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from an environment without proxies."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def transport_for(url: str, context: ssl.SSLContext | None = None) -> httpx.AsyncBaseTransport:
    """Give the transport of our client for a base URL."""
    return own_client(url, ssl_context=context, connections=7)._transport


def test_without_a_proxy_it_is_our_pool() -> None:
    """The pool of our own is used, with the caller's TLS context."""
    assert isinstance(transport_for("https://knouds.ai", ssl.create_default_context()), PooledTransport)


@pytest.mark.parametrize(
    ("variable", "url", "is_proxied"),
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
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str, is_proxied: bool
) -> None:
    """With a proxy for the scheme, httpx's own transport is used; the loopback is never proxied."""
    monkeypatch.setenv(variable, "http://proxy.test:3128")
    assert isinstance(transport_for(url), httpx.AsyncHTTPTransport) is is_proxied


def test_no_proxy_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that $NO_PROXY names is reached directly."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", "knouds.ai")
    assert isinstance(transport_for("https://knouds.ai"), PooledTransport)


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
