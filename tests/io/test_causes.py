"""Why no connection came about is said, and where: the service's address, or the proxy's host."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Iterator

import pytest

from knouds_async import AsyncKnouds, ConnectionFailedError, Retries
from knouds_async._io.exchange import causes_of

REFUSED = os.strerror(errno.ECONNREFUSED)


def after(error: Exception, *causes: BaseException) -> Exception:
    """Return an error that came from others, one below the other."""
    last: BaseException = error
    for cause in causes:
        last.__cause__ = cause
        last = cause
    return error


CERT = ssl.SSLCertVerificationError(1, "certificate verify failed")
CERT.verify_message = "self-signed certificate"
GROUP = ExceptionGroup(
    "many",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "x"),
        OSError(errno.ENETUNREACH, "x"),
        OSError(errno.ECONNREFUSED, "y"),
    ],
)


@pytest.mark.parametrize(
    ("causes", "words"),
    [
        ([ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)")], REFUSED),
        ([OSError("All failed"), GROUP], f"{REFUSED}; {os.strerror(errno.ENETUNREACH)}"),
        ([socket.gaierror(socket.EAI_NONAME, "Name or service not known")], "the name is not known: Name or service"),
        ([ValueError("x"), CERT], "TLS: certificate verify failed: self-signed certificate"),
        ([ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")], "TLS: "),
        ([ValueError("x")], ""),
        ([], ""),
    ],
)
def test_what_lies_below_an_error_is_named(causes: list[BaseException], words: str) -> None:
    """However deep it lies, each reason once."""
    found = causes_of(after(OSError("All connection attempts failed"), *causes))
    assert found.startswith(words)
    assert bool(found) is bool(words)


def test_what_an_error_says_itself_is_not_said_twice() -> None:
    """A reason that stands in the text already is left out; a ring of causes ends."""
    error = after(OSError(f"[Errno 111] {REFUSED}"), ConnectionRefusedError(errno.ECONNREFUSED, "x"))
    assert causes_of(error) == ""
    error.__cause__ = after(ValueError("x"), error)
    assert causes_of(error) == ""


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Return a port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_refused_connection_says_so(closed_port: int, anyio_backend: str) -> None:
    """A port where nobody listens: the error names the reason and the address."""
    url = f"http://127.0.0.1:{closed_port}"
    async with AsyncKnouds("knouds_live_x", base_url=url, retries=Retries(attempts=1)) as knouds:
        with pytest.raises(ConnectionFailedError, match=REFUSED) as caught:
            await knouds.whoami()
    assert url in str(caught.value)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_proxy_that_is_not_there_is_named_by_its_host(
    closed_port: int,
    anyio_backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host and port of the proxy stand in the error, and neither its user nor its password."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://canary:canary@127.0.0.1:{closed_port}")
    knouds = AsyncKnouds("knouds_live_x", base_url="https://knouds.example", retries=Retries(attempts=1))
    async with knouds:
        with pytest.raises(ConnectionFailedError, match=f"through the proxy 127.0.0.1:{closed_port}") as caught:
            await knouds.workflows.submit("a", {})
    assert "canary" not in str(caught.value)
    assert REFUSED in str(caught.value)
