"""The emulator's request log, for assertions: a count, the latest requests, the refused ones."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

import attrs

from knouds_async.testing.messages import Broken, Request, Response

__all__ = ["LoggedRequest", "RequestLog"]

_KEPT = 10_000


@attrs.frozen
class LoggedRequest:
    """One answered request: its route as the contract writes it, the status (None: no answer came), when it arrived."""

    method: str
    path: str
    route: str
    query: str
    status: int | None
    at: float


class RequestLog:
    """All requests, counted by route; iterates over the latest 10 000 answered ones."""

    def __init__(self) -> None:
        """Start empty."""
        self.clear()

    def clear(self) -> None:
        """Clear the log."""
        self.count = 0
        self.by_route: Counter[str] = Counter()
        self.refusals: list[LoggedRequest] = []
        self._latest: deque[LoggedRequest] = deque(maxlen=_KEPT)

    def __len__(self) -> int:
        """Return the number of requests that arrived."""
        return self.count

    def __iter__(self) -> Iterator[LoggedRequest]:
        """Iterate over the latest answered requests, oldest first."""
        return iter(self._latest)

    def arrived(self, route: str) -> None:
        """Count a request."""
        self.count += 1
        self.by_route[route] += 1

    def answered(self, request: Request, route: str, outcome: Response | Broken, at: float) -> None:
        """Log how a request was answered."""
        response = outcome.response if isinstance(outcome, Broken) else outcome
        status = None if response is None else response.status
        entry = LoggedRequest(request.method, request.path, route, request.query, status, at)
        self._latest.append(entry)
        if status == 429:
            self.refusals.append(entry)
