"""Which connection a request gets: idle ones youngest first, never more than allowed.

Rule of the file: everything is synchronous, so no cancellation can interrupt the books.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

from knouds_async._io.connection import Connection, Origin
from knouds_async._io.slots import Slots

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
    """Slots and idle connections together: never more than `limit` connections, in use and idle, are open."""

    def __init__(
        self, connect: Callable[[Origin], Connection], *, limit: int, keepalive_expiry: float, fresh_within: float
    ) -> None:
        """Start empty; `connect` prepares a new connection, times are in seconds."""
        self.slots: Final = Slots(limit)
        self.idle: Final = IdleConnections()
        self.is_closed = False
        self._connect = connect
        self._keepalive_expiry = keepalive_expiry
        self._fresh_within = fresh_within

    def connection(self, origin: Origin, *, now: float, is_fresh: bool) -> Connection:
        """Give the holder of a slot a connection: the one used last, if it is still good, or a new one."""
        self._close_expired(now)
        since = now - self._fresh_within if is_fresh else -float("inf")
        while (found := self.idle.youngest(origin)) is not None and found.idle_since >= since:
            self.idle.remove(found)
            if not found.is_dropped():
                return found
            found.close()
        while self.slots.in_use + len(self.idle) > self.slots.limit and (oldest := self.idle.oldest()) is not None:
            self._close(oldest)
        return self._connect(origin)

    def give_back(self, connection: Connection, *, now: float) -> None:
        """Take back a slot and its connection, to be used again if both sides agree."""
        self.slots.give_back()
        if self.is_closed or not connection.is_idle():
            connection.close()
            return
        connection.idle_since = now
        self.idle.put(connection)

    def discard(self, connection: Connection | None) -> None:
        """Take back a slot, and close its connection."""
        self.slots.give_back()
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Close the idle connections, send those who wait away, and close what comes back from now on."""
        self.is_closed = True
        self.slots.dismiss()
        while (oldest := self.idle.oldest()) is not None:
            self._close(oldest)

    def _close_expired(self, now: float) -> None:
        while (oldest := self.idle.oldest()) is not None and now - oldest.idle_since > self._keepalive_expiry:
            self._close(oldest)

    def _close(self, connection: Connection) -> None:
        self.idle.remove(connection)
        connection.close()
