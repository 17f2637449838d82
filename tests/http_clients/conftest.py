"""A service on a port of the loopback that counts what arrives, whichever client sends it."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import attrs
import pytest

from tests.io.scripted import AUTHORITY

EXECUTION = "550e8400-e29b-41d4-a716-446655440000"


@attrs.define
class Arrived:
    """One request that arrived."""

    method: str
    path: str
    headers: dict[str, str]


@attrs.define
class Service:
    """Counts requests and answers as the service does, after `delay` seconds, or hangs up when it is `mute`."""

    arrived: list[Arrived] = attrs.field(factory=list)
    delay: float = 0.0
    mute: bool = False
    redirect: str | None = None
    url: str = ""

    @property
    def paid(self) -> int:
        """How many paid requests arrived."""
        return sum(request.method == "POST" for request in self.arrived)


def _answer(path: str) -> dict[str, Any]:
    if path.startswith("/api/workflows") and "run" in path:
        return {"_async": True, "executionId": EXECUTION, "status": "processing"}
    if path.startswith("/api/executions"):
        return {"executionId": EXECUTION, "status": "completed", "result": {"text": "done"}}
    return {"user": {"id": "u", "email": "e@x.test", "role": "user", "tier": "business", "approved": True}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    service: Service

    def shutdown_request(self, request: Any) -> None:
        with contextlib.suppress(OSError):
            super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        service = self.server.service
        self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        service.arrived.append(Arrived(self.command, self.path, headers))
        time.sleep(service.delay)
        if service.mute:
            self.close_connection = True
        else:
            self._reply(json.dumps(_answer(self.path)).encode(), service.redirect)

    do_POST = do_GET  # noqa: N815  (http.server's name)

    def _reply(self, body: bytes, redirect: str | None) -> None:
        self.send_response(200 if redirect is None else 307)
        if redirect is not None:
            self.send_header("location", redirect)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run the test on both backends, in real time: real sockets wait for no virtual clock."""
    return str(request.param)


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Service]:
    """Serve on a port of the loopback, over TLS where there is a context."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        scheme = "http" if context is None else "https"
        server.service = Service(url=f"{scheme}://127.0.0.1:{server.server_port}")
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server.service
        server.shutdown()
        thread.join()


@pytest.fixture
def service() -> Iterator[Service]:
    """Serve on a port of the loopback."""
    with serving() as service:
        yield service


@pytest.fixture
def tls_service() -> Iterator[Service]:
    """Serve on a port of the loopback over TLS, by the name knouds.test."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert("knouds.test").configure_cert(context)
    with serving(context) as service:
        yield service


@pytest.fixture
def free_port() -> Iterator[int]:
    """Return a port that refuses connections: it is bound, so that no other process takes it, and nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
