"""Processes in network, pid and time namespaces of their own, and what lies between them and the world.

A process in its namespace sees a loopback device with some ports; behind each stands a relay of this process, which
passes on what comes, late if need be, and holds or cuts it. With the device down the kernel itself loses every packet.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

_NETWORK: Final = 0x40000000  # CLONE_NEWNET
_SET_FLAGS: Final = 0x8914  # SIOCSIFFLAGS
_UP: Final = 0x1 | 0x8 | 0x40  # up, loopback, running
_UNSHARE: Final = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--time"]


@cache
def are_allowed() -> bool:
    """Return whether this kernel and this user have all these namespaces."""
    try:
        tried = subprocess.run([*_UNSHARE, "true"], check=False, capture_output=True)  # noqa: S603
    except OSError:
        return False
    return tried.returncode == 0


class Isolated:
    """A process in namespaces of its own, or an ordinary one where that is not allowed."""

    def __init__(self, command: list[str], *, booted: int) -> None:
        """Start it; `booted`: seconds by which its monotonic clocks are ahead."""
        clocks = [f"--monotonic={booted}", f"--boottime={booted}"]
        prefix = [*_UNSHARE, *clocks] if are_allowed() else []
        self.process = subprocess.Popen(  # noqa: S603
            [*prefix, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self._is_apart = bool(prefix)
        self.is_ready = self.process.stdout.readline() == "ready\n"
        self._pid = self._inner_pid() if self._is_apart else self.process.pid

    def _inner_pid(self) -> int:
        outer = self.process.pid
        children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        return int(children[0]) if children else outer

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def listen(self, port: int) -> socket.socket:
        """Return a socket that listens at a port of its loopback device, which is up from then on; else at any port."""
        at = port if self._is_apart else 0
        return self._within(lambda: socket.create_server(("127.0.0.1", at)), is_up=True)

    def set_link(self, *, up: bool) -> None:
        """Set its loopback device up or down; it does nothing to a process without a namespace."""
        if self._is_apart:
            with suppress(OSError):  # it has ended
                self._within(lambda: None, is_up=up)

    def _within(self, work: Callable[[], T], *, is_up: bool) -> T:
        """Set the device, and do something, in the network of the process: a thread of ours enters it."""
        found: list[T] = []
        failed: list[OSError] = []

        def enter() -> None:
            try:
                if self._is_apart:
                    _enter(self._pid)
                    _set_loopback(up=is_up)
                found.append(work())
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return found[0]


def _enter(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if libc.setns(descriptor, _NETWORK) != 0:
            raise OSError(ctypes.get_errno(), "the network of a machine cannot be entered")
    finally:
        os.close(descriptor)


def _set_loopback(*, up: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH14x", b"lo", _UP if up else 0))


class Relay:
    """Passes on what comes to a socket to a port of ours; each way takes `delay` seconds."""

    def __init__(self, to: int, *, delay: float = 0.0) -> None:
        self._to, self._delay = to, delay
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers = set[asyncio.StreamWriter]()
        self._wanted: tuple[bytes, asyncio.Event] | None = None
        self._server: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._connected, sock=listening)

    async def passes(self, words: bytes, *, within: float) -> None:
        """Wait until something with these words is passed on, or so many seconds."""
        passed = asyncio.Event()
        self._wanted = words, passed
        with suppress(TimeoutError):
            await asyncio.wait_for(passed.wait(), within)

    def hold(self, seconds: float) -> None:
        """Pass nothing on for a while."""
        self._flows.clear()
        asyncio.get_running_loop().call_later(seconds, self._flows.set)

    def cut(self) -> None:
        """Cut all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    def close(self) -> None:
        """End it."""
        if self._server is not None:
            self._server.close()
        self._flows.set()
        self.cut()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(inner_writer)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on(reader, inner_writer))
                both.create_task(self._pass_on(inner_reader, writer))
        finally:
            for each in (writer, inner_writer):
                self._writers.discard(each)
                each.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on one way; what is held stays with the system, so that a reset throws it away."""
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while True:
                await self._flows.wait()
                data = await reader.read(65536)
                await self._flows.wait()
                if reader.exception() is not None:
                    break
                if not data:
                    break
                if self._wanted is not None and self._wanted[0] in data:
                    self._wanted[1].set()
                if self._delay:
                    loop.call_later(self._delay, writer.write, data)
                else:
                    writer.write(data)
        await asyncio.sleep(self._delay)
        writer.close()


def python(file: Path, *words: str) -> list[str]:
    """Return the command of a program in this folder."""
    return [sys.executable, str(file), *words]
