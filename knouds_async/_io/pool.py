"""Which connection a request gets: idle ones youngest first, never more than allowed.

Rule of the file: everything is synchronous, so no cancellation can interrupt the books.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from knouds_async._io.connection import Connection, Origin
from knouds_async._sansio.clock import Reading

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["IdleConnections", "Pool"]


class IdleConnections:
    """Idle connections: a stack per origin and, over all of them, a queue by age."""

    def __init__(self) -> None:
        """Start empty."""
        self._by_age: OrderedDict[Connection, None] = OrderedDict()
        self._stacks: dict[Origin, deque[Connection]] = {}

    def __len__(self) -> int:
        """Count the connections of all origins."""
        return len(self._by_age)

    def put(self, connection: Connection) -> None:
        """Add the connection that has become idle last."""
        self._by_age[connection] = None
        self._stacks.setdefault(connection.origin, deque()).append(connection)

    def youngest(self, origin: Origin) -> Connection | None:
        """Show the connection to `origin` that has been idle for the shortest time."""
        stack = self._stacks.get(origin)
        return stack[-1] if stack else None

    def oldest(self) -> Connection | None:
        """Show the connection to anywhere that has been idle for the longest time."""
        return next(iter(self._by_age), None)

    def remove(self, connection: Connection) -> None:
        """Take out a connection that `youngest` or `oldest` has shown."""
        del self._by_age[connection]
        stack = self._stacks[connection.origin]
        if stack[-1] is connection:
            stack.pop()
        else:
            stack.popleft()  # the oldest of all is the oldest of its own origin too
        if not stack:
            del self._stacks[connection.origin]


class Pool:
    """Connections in use and idle: while no more than `limit` are in use, no more than that are open."""

    def __init__(
        self, connect: Callable[[Origin], Connection], *, limit: int, keepalive_expiry: float, fresh_within: float
    ) -> None:
        """Start empty; `connect` prepares a new connection, times are in seconds."""
        self.idle: Final = IdleConnections()
        self.in_use = 0
        self.is_closed = False
        self._connect = connect
        self._limit = limit
        self._keepalive_expiry = keepalive_expiry
        self._fresh_within = fresh_within

    def take(self, origin: Origin, now: Reading, *, is_fresh: bool) -> Connection:
        """Return a connection to use: the one used last, if it is still good, or a new one."""
        self._close_expired(now)
        longest = self._fresh_within if is_fresh else self._keepalive_expiry
        while (found := self.idle.youngest(origin)) is not None and _idle(found, now) <= longest:
            self.idle.remove(found)
            if not found.is_dropped():
                self.in_use += 1
                return found
            found.close()
        while self.in_use + len(self.idle) >= self._limit and (oldest := self.idle.oldest()) is not None:
            self._close(oldest)
        connection = self._connect(origin)
        self.in_use += 1
        return connection

    def give_back(self, connection: Connection, now: Reading) -> None:
        """Take back a connection, to be used again if both sides agree."""
        self.in_use -= 1
        if connection.rest(now) and not self.is_closed:
            self.idle.put(connection)
        else:
            connection.close()

    def discard(self, connection: Connection) -> None:
        """Take back a connection, and close it."""
        self.in_use -= 1
        connection.close()

    def close(self) -> None:
        """Close the idle connections, and what comes back from now on."""
        self.is_closed = True
        while (oldest := self.idle.oldest()) is not None:
            self._close(oldest)

    def _close_expired(self, now: Reading) -> None:
        while (oldest := self.idle.oldest()) is not None and _idle(oldest, now) > self._keepalive_expiry:
            self._close(oldest)

    def _close(self, connection: Connection) -> None:
        self.idle.remove(connection)
        connection.close()


def _idle(connection: Connection, now: Reading) -> float:
    """Return for how many seconds a connection has been idle, by the clock that saw the most of them."""
    return now.since(connection.idle_since) if connection.idle_since is not None else 0.0
