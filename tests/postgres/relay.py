"""A relay before the database, which cuts connections or holds what goes through, at a chosen point."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress


class Relay:
    """Passes on what comes, unless it holds or cuts."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        self._flows = threading.Event()
        self._flows.set()
        self._cut_at: tuple[bytes, bool] | None = None
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_at(self, words: bytes, *, is_passed_on: bool) -> None:
        """Cut the connection whose client says some words next; with `is_passed_on`, the server still hears them."""
        self._cut_at = (words, is_passed_on)

    def hold(self) -> None:
        """Pass nothing on until `flow`."""
        self._flows.clear()

    def flow(self) -> None:
        """Pass on what was held."""
        self._flows.set()

    def close(self) -> None:
        """Close everything."""
        self._flows.set()
        for each in (self._listening, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:  # it is stopped
                client.close()
                continue
            self._open += [client, server]
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, suppress(OSError, ValueError):  # closed meanwhile
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(1 << 20)
                    self._flows.wait()
                    if not data or (source is client and self._is_cut(data, server)):
                        return
                    (server if source is client else client).sendall(data)

    def _is_cut(self, data: bytes, server: socket.socket) -> bool:
        if self._cut_at is None or self._cut_at[0] not in data:
            return False
        (_, is_passed_on), self._cut_at = self._cut_at, None
        self.cuts += 1
        if is_passed_on:
            server.sendall(data)
            server.settimeout(10)
            server.recv(1 << 20)  # it has been carried out, and nobody hears of it
        return True
