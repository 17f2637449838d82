"""What goes in and out of the emulator: a request, an answer now, later or broken; and the log of the requests.

Frozen values; the API key never shows in a repr.
"""

from __future__ import annotations

import enum
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import attrs

__all__ = [
    "Broken",
    "Fault",
    "FaultDecision",
    "Later",
    "LoggedRequest",
    "Outcome",
    "Request",
    "RequestLog",
    "Response",
    "Wire",
]


def _without_key(headers: Mapping[str, str]) -> str:
    return repr({name: "***" if name == "x-api-key" else value for name, value in headers.items()})


@attrs.frozen
class Response:
    """One HTTP response; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> object:
        """Read the body as JSON."""
        parsed: object = json.loads(self.body)
        return parsed


class Wire(enum.Enum):
    """What happens on the connection instead of a whole answer at once."""

    REFUSED = "no connection comes about"
    UNREACHABLE = "the attempt to connect is never answered"
    RESET = "the connection is reset, no answer"
    CLOSED = "the connection is closed, no answer"
    SLOW = "the answer comes whole, but late"
    STALLED = "no answer ever comes, the connection stays open"
    TRUNCATED = "the connection is closed in the middle of the body"
    DRIPPING = "the body comes one byte at a time"
    DROPPED = "the answer comes whole, then the idle connection is closed without a word"


@attrs.frozen
class Broken:
    """An answer that a fault keeps from coming through as it should.

    `processed` says whether the service carried the request out; `seconds` is the time until the connection
    breaks, or between two bytes of a dripping body.
    """

    wire: Wire
    response: Response | None = None
    processed: bool = attrs.field(default=False, kw_only=True)
    seconds: float = attrs.field(default=0.0, kw_only=True)


@attrs.frozen
class Fault:
    """Something that goes wrong with one request; `knouds_async.testing.faults` makes them.

    `stage` says when it strikes: before the service has read the request ("unread"), before it has carried it out
    ("before"), after ("after"), or by holding it up for `seconds` and then carrying it out ("held"). `act` gets the
    service's answer (None before the request was carried out) and returns what the client receives instead.
    """

    name: str
    stage: Literal["unread", "before", "after", "held"]
    act: Callable[[Response | None], Response | Broken] = attrs.field(repr=False, eq=False)
    seconds: float = 0.0

    @property
    def description(self) -> str:
        """Describe it in a few words."""
        seconds = f" seconds={self.seconds:g}" if self.seconds else ""
        return f"{self.name}{' (after the run)' if self.stage == 'after' else ''}{seconds}"


@attrs.frozen
class FaultDecision:
    """The fault that strikes a request, decided once; None is no fault."""

    fault: Fault | None = None


@attrs.frozen
class Request:
    """One HTTP request as the service sees it; header names are lower case, the path is still percent-encoded.

    `decision` is set by `Emulator.connect`: the fault that will strike the request, decided once. `hosts` is set by a
    server on a port: the host it was told to serve and the address that the request came to. The page and the control
    API then answer only to these and to localhost; None is for requests that come through no port.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str], repr=_without_key)
    body: bytes = b""
    decision: FaultDecision | None = attrs.field(default=None, repr=False, eq=False)
    hosts: tuple[str, ...] | None = attrs.field(default=None, repr=False, eq=False)


@attrs.frozen
class Later:
    """No answer before `at` (on the caller's clock): ask again then, with `Emulator.resume`."""

    at: float = attrs.field(validator=attrs.validators.lt(math.inf))
    finish: Callable[[float], Outcome] = attrs.field(repr=False, eq=False)


Outcome = Response | Later | Broken


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
