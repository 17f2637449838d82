"""An emulator on a loopback port, served by uvicorn on the running loop: the signals stay the command's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from uvicorn import Config, Server

from knouds_async.cli import output
from knouds_async.cli.exits import ServingError
from knouds_async.testing import Emulator


class _Server(Server):
    """uvicorn without its signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


@asynccontextmanager
async def served(emulator: Emulator, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve an emulator while the block runs and give its base URL; port 0 takes a free one.

    ServingError when the port is taken or the host is not this machine's. Requests under way at the end are cut.
    """
    listener = _listen(host, port)
    server = _Server(
        # `Date` is the emulator's own: its clock is not this machine's.
        Config(
            emulator.app,
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            date_header=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{listener.getsockname()[1]}"
    finally:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # cutting what is under way is meant
        server.should_exit = True
        await serving


async def serve_for_good(emulator: Emulator, host: str, port: int) -> None:
    """Serve an emulator until the task is cancelled, and say how to reach it."""
    async with served(emulator, host=host, port=port) as base_url:
        output.note(f"An emulator of Knouds at {base_url} (nothing is paid); Ctrl-C ends it. In another shell:\n")
        output.give(f"export KNOUDS_BASE_URL={base_url}")
        output.give(f"export KNOUDS_KEY={emulator.api_key}")
        output.finish()
        await asyncio.Event().wait()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)  # from here on connections are taken; they wait until uvicorn is up
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ServingError(f"cannot serve on {host} port {port}: {error.strerror or error}") from None
    return listener
