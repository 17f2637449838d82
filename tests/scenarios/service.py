"""The service as it can be met in the wild: its clock jumps, rows come late and in disorder, ids are shared or missing.

Rule of the file: the service itself stays honest about money: `runs` and `charges` are the truth that a judge goes by.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, Final

import attrs

from knouds_async.testing import ApiKey, Emulator, Fault, Run, faults
from knouds_async.testing.messages import Broken, Later, Outcome, Request, Response

SLUG: Final = "my-thumbnail-pipeline"
COST: Final = 12
DEAR: Final = 120
SUBMIT: Final = "POST /api/workflows/:slug/run"
POLL: Final = "GET /api/executions/:id"
USAGE: Final = "GET /api/usage"
OTHER_USER: Final = ApiKey("knouds_live_of_another_user_0123456789", user="u_other")
STRANGER: Final = "a run of somebody else"
LATENESS: Final = (0.0, 1.0, 50.0)  # seconds until the row of a run is there
HELD: Final = (5.0, 40.0, 65.0)  # seconds that a request lies in a buffer before it is carried out; 120 with the row


class OddService:
    """An emulator whose clock can jump `ahead` of its callers', with rows and ids that are not as one would like them.

    To be given to `EmulatorTransport` and `serve` in its place.
    """

    def __init__(self, emulator: Emulator, kinds: frozenset[str], dice: Random, note: Callable[[str], None]) -> None:
        self.emulator = emulator
        self.ahead = 0.0
        self._kinds, self._dice, self._note = kinds, dice, note
        service = emulator._service
        self._honest_begin, self._honest_page = service.begin, service.usage.page
        service.begin = self._begin  # type: ignore[method-assign]
        service.usage.page = self._page  # type: ignore[method-assign,assignment]
        self._seed = dice.randrange(2**32)

    def __getattr__(self, name: str) -> Any:
        """Return the emulator's for all else."""
        return getattr(self.emulator, name)

    # A clock that is ahead.

    def connect(self, request: Request, now: float) -> Request | Broken:
        """Decide the fate of a request."""
        return self.emulator.connect(request, now + self.ahead)

    def handle(self, request: Request, now: float) -> Outcome:
        """Answer one request."""
        return self._outwards(self.emulator.handle(request, now + self.ahead))

    def deliver(self, request: Request, at: float) -> Outcome:
        """Put a request on its way."""
        return self._outwards(self.emulator.deliver(request, at + self.ahead))

    def resume(self, later: Later, now: float) -> Outcome:
        """Request an answer again."""
        return self._outwards(self.emulator.resume(later, now + self.ahead))

    def settle(self, now: float) -> None:
        """Do everything that is due."""
        self.emulator.settle(now + self.ahead)

    def _outwards(self, outcome: Outcome) -> Outcome:
        if not isinstance(outcome, Later):
            return outcome
        inner = outcome
        return Later(inner.at - self.ahead, lambda now: inner.finish(max(now, inner.at)))

    # Odd runs and rows.

    def _begin(self, run_request: Any, caller: ApiKey, now: float) -> Run:
        is_dear = "costs" in self._kinds and self._dice.random() < 0.2
        emulator = self.emulator
        emulator.costs = {SLUG: DEAR} if is_dear else {}
        run = self._honest_begin(run_request, caller, now)
        emulator.costs = {}
        before = emulator.runs[-2].request_id if len(emulator.runs) > 1 else run.request_id
        if "shared_ids" in self._kinds and self._dice.random() < 0.5:
            run.request_id = before
        if "missing_ids" in self._kinds and self._dice.random() < 0.4:
            run.request_id = ""
        self._note(f"the service begins {key_of(run)} as {run.execution_id[:8]} ({run.request_id[-5:]}) for {run.user}")
        return run

    def _page(self, user: str, *which: Any, limit: int, offset: int) -> tuple[list[tuple[int, str, Run]], int]:
        if "foreign_rows" in self._kinds and self._dice.random() < 0.5:
            user = OTHER_USER.user
        rows, total = self._honest_page(user, *which, limit=10**6, offset=0)
        if "late_rows" in self._kinds:
            now = self.emulator._service.clock.now
            rows = [row for row in rows if row[2].started + self._lateness(row[2]) <= now]
            total = len(rows)
        if "disorder" in self._kinds:
            rows = sorted(rows, key=lambda row: Random(f"{self._seed}:{row[0]}:place").random())
        most = 3 if "short_pages" in self._kinds else 500
        return rows[offset : offset + min(limit, most)], total

    def _lateness(self, run: Run) -> float:
        return Random(f"{self._seed}:{run.execution_id}:late").choice(LATENESS)


def key_of(run: Run) -> str:
    """Return the key of the job that a run was begun for."""
    return str(run.inputs["product_name"])


# What stands between a client and the service.


def instead(answer: Response, *, after_run: bool) -> Fault:
    """Something in front answers, before or after the request is carried out."""
    return Fault(f"foreign {answer.status}", "after" if after_run else "before", lambda _: answer)


def foreign(dice: Random) -> Fault:
    """An answer of a firewall, a cache, a load balancer: none of it is the service's."""
    status = dice.choice((303, 304, 400, 401, 402, 403, 404, 409, 418, 429, 451, 460, 499, 520, 200))
    page = Response(status, {"content-type": "text/html"}, b"<html><body>Access denied by policy</body></html>")
    if status in (303, 304):
        page = Response(status, {"location": "/elsewhere"} if status == 303 else {}, b"")
    elif dice.random() < 0.3:
        page = Response(status, {"content-type": "application/json"}, b'{"message": "Forbidden"}')
    return instead(page, after_run=dice.random() < 0.6)


def execution_failed() -> Fault:
    """A submit is answered as if its run had failed already; the run continues."""
    body = b'{"error": "The provider could not be reached", "code": "EXECUTION_FAILED"}'
    return instead(Response(500, {"content-type": "application/json"}, body), after_run=True)


def untold() -> Fault:
    """A poll is answered without the cost of the run."""

    def without_cost(answer: Response | None) -> Response | Broken:
        assert answer is not None
        body = json.loads(answer.body)
        return attrs.evolve(answer, body=json.dumps({**body, "cost": None}).encode())

    return Fault("untold", "after", without_cost)


class Stray:
    """Answers that come one request too late: each request gets the answer to the one before it.

    `may_be` tells which ids may come once more: of a receipt that nobody has on record, nobody could tell that it is
    another's.
    """

    def __init__(self, may_be: Callable[[str], bool]) -> None:
        self._may_be = may_be
        self._last: Response | None = None

    def fault(self) -> Fault:
        """Make the fault; it strikes where there is an answer to mistake."""
        return Fault("stray", "after", self._swapped)

    def heard(self) -> Fault:
        """Make a fault that hits no request, and only records the answers."""
        return Fault("heard", "after", self._kept)

    def _kept(self, answer: Response | None) -> Response | Broken:
        assert answer is not None
        self._last = answer
        return answer

    def _swapped(self, answer: Response | None) -> Response | Broken:
        assert answer is not None
        before, self._last = self._last, answer
        if before is None or not self._may_be(_id_in(before)):
            return answer
        return attrs.evolve(before, headers=answer.headers)


class Cache:
    """A cache between a client and the service: some listings are what was answered to somebody before."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._kept: tuple[float, Response] | None = None

    def fault(self) -> Fault:
        """Make the fault; an answer of the cache has the old `Date`, and says how old it is."""
        return Fault("cached", "after", self._cached)

    def _cached(self, answer: Response | None) -> Response | Broken:
        assert answer is not None
        if self._kept is None or self._kept[1].status != 200:
            self._kept = self._now(), attrs.evolve(answer, headers=dict(answer.headers))
            return answer
        at, before = self._kept
        return attrs.evolve(before, headers={**before.headers, "age": str(int(self._now() - at))})


def _id_in(answer: Response) -> str:
    try:
        body = json.loads(answer.body)
    except ValueError:
        return ""
    return str(body.get("executionId", "")) if isinstance(body, dict) else ""


def held(seconds: float) -> Fault:
    """The request stays in a buffer for so long, and is then carried out, even if no client waits for it."""
    return faults.stalled(seconds)
