"""A certificate of an authority that is not known here: one attempt, one hint, and nothing was sent."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
import pytest
import trustme
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSStream

from knouds_async import AsyncKnouds, ConnectionFailedError, NotRun

KEY = "knouds_live_test_0123456789"
AUTHORITY = trustme.CA()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Use real sockets, on both backends."""
    return str(request.param)


class Server:
    """A TLS server whose handshakes are counted."""

    url = ""
    handshakes = 0


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """Serve TLS with a certificate that nobody here believes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
    found = Server()

    async def handle(stream: ByteStream) -> None:
        found.handshakes += 1
        try:
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError):
                await TLSStream.wrap(stream, server_side=True, ssl_context=context, standard_compatible=False)
        finally:
            await anyio.aclose_forcefully(stream)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.listeners[0].extra(SocketAttribute.local_port)  # noqa: S610  (no Django)
        found.url = f"https://127.0.0.1:{port}"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, handle)
            yield found
            tasks.cancel_scope.cancel()


async def test_an_unknown_authority_is_tried_once(server: Server) -> None:
    """The error of the call names the variable, is no passing fault, and is not tried again."""
    async with AsyncKnouds(KEY, base_url=server.url) as knouds:
        for call in (knouds.whoami(), knouds.workflows.submit("a", {})):
            before = server.handshakes
            with pytest.raises(ConnectionFailedError, match="SSL_CERT_FILE") as caught:
                await call
            assert caught.value.is_lasting
            assert not caught.value.may_have_run
            assert str(caught.value).count("SSL_CERT_FILE") == 1
            await anyio.sleep(0.1)
            assert server.handshakes == before + 1


async def test_a_batch_does_not_wait_for_it(server: Server) -> None:
    """A batch takes an unknown authority for no outage: its jobs were not run, and it ends."""
    async with AsyncKnouds(KEY, base_url=server.url) as knouds:
        found = await knouds.models.gather("gpt-image-2", [{"prompt": "a"}, {"prompt": "b"}])
    assert [type(outcome) for outcome in found] == [NotRun, NotRun]


async def test_an_authority_that_is_named_is_believed(server: Server) -> None:
    """With the authority in an ssl_context of the caller's the handshake comes about."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    async with AsyncKnouds(KEY, base_url=server.url, ssl_context=context) as knouds:
        with pytest.raises(Exception, match="GET /api/whoami") as caught:
            await knouds.whoami()
    assert not getattr(caught.value, "is_lasting", False)
