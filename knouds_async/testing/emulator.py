"""The emulator: the Knouds service in memory, without a clock, a socket or a wait of its own.

No I/O: `now` is any monotonic time in seconds that the caller passes. Everything due happens when a request's `now` has
passed it.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import Any

import attrs

from knouds_async.testing._console.console import Console, ControlHooks, is_for_console
from knouds_async.testing._console.page import page
from knouds_async.testing._service.catalog import DEFAULT_USER
from knouds_async.testing._service.endpoints import UNKNOWN, Route, answer, match, with_date
from knouds_async.testing._service.runs import FAILURE, Run
from knouds_async.testing._service.state import Charge, ServiceState
from knouds_async.testing.asgi import EmulatorApp, delivering
from knouds_async.testing.faults import Faults
from knouds_async.testing.messages import (
    Broken,
    Fault,
    FaultDecision,
    Later,
    LoggedRequest,
    Outcome,
    Request,
    RequestLog,
    Response,
)
from knouds_async.testing.settings import Delivery, Settings

__all__ = ["Emulator"]


@attrs.define(eq=False)
class _Arrival:
    """A request in transit, and its answer once it has arrived."""

    request: Request
    outcome: Outcome | None = None


def _faults(settings: Settings) -> Faults:
    return Faults(settings.seed)


@attrs.define(kw_only=True, eq=False, repr=False, slots=False)
class Emulator(Settings):
    """The whole service of the contract in memory; see `Settings` for its settings.

    `handle` answers one request; `faults.add` makes some go wrong. The status page is at /, a control API for tests in
    other languages under /__emulator__/; requests for them are not counted.
    Deterministic: the same settings, requests and times give the same answers.
    ValueError for settings that are impossible.
    """

    requests: RequestLog = attrs.field(init=False, factory=RequestLog)
    faults: Faults = attrs.field(init=False, default=attrs.Factory(_faults, takes_self=True))

    def __attrs_post_init__(self) -> None:
        """Check the settings together and start the service."""
        self.check_together()
        self._made_with: dict[str, Any] = {field.name: getattr(self, field.name) for field in attrs.fields(Settings)}
        self._service = ServiceState(self)
        hooks = ControlHooks(
            finish=self.finish, fail=self.fail, reset=self.reset, send_test_webhook=self.send_test_webhook, page=page
        )
        self._console = Console(self, self._service, self.faults, self.requests, hooks)
        self._in_transit: list[tuple[float, int, _Arrival]] = []
        self._sent = 0

    def __repr__(self) -> str:
        """Return the tier and how much it has seen, without the key."""
        return f"<Emulator tier={self.tier!r} requests={self.requests.count} runs={len(self.runs)}>"

    def connect(self, request: Request, now: float) -> Request | Broken:
        """Decide which fault strikes a request before it is sent; return the request, or `Broken` if it never arrives.

        For transports and servers that break connections; callers of `handle` alone can leave it out.
        """
        self.settle(now)
        if not self.faults or is_for_console(request):
            return request
        label = _label(match(request.method, request.path)[0])
        decision = self.faults.decide(label, request)
        if decision.fault is None or decision.fault.stage != "unread":
            return attrs.evolve(request, decision=decision)
        self.requests.arrived(label)
        outcome = decision.fault.act(None)
        self.requests.answered(request, label, outcome, now)
        return outcome if isinstance(outcome, Broken) else request

    def handle(self, request: Request, now: float) -> Outcome:
        """Answer one request that arrives at `now`: at once, `Later`, or `Broken` by a fault."""
        self.settle(now)
        return self._receive(request, now)

    def deliver(self, request: Request, at: float) -> Later:
        """Send a request that arrives at `at` (seconds), whether or not its sender still waits then."""
        arrival = _Arrival(request)
        self._sent += 1
        heapq.heappush(self._in_transit, (at, self._sent, arrival))

        def outcome_at(now: float) -> Outcome:
            self.settle(now)
            if arrival.outcome is None:
                raise ValueError(f"the request arrives at {at}: resume it then, not at {now}")
            return arrival.outcome

        return Later(at, outcome_at)

    def due_deliveries(self, now: float, *, unix_now: float | None = None) -> list[Delivery]:
        """Return the webhook deliveries that are due at `now`, each once.

        `unix_now`: the time of their signatures; by default the emulated service's own clock, which starts at `epoch`.
        """
        self.settle(now)
        return self._service.webhooks.due(now, unix_now)

    def next_delivery_at(self) -> float:
        """Return when the next delivery may be due, on the caller's clock; inf when no run has a webhook."""
        return self._service.webhooks.next_at()

    def delivery_answered(self, delivery: Delivery, status: int | None, now: float) -> None:
        """Record how a delivery was answered (None: not at all); it is sent again unless the status was 2xx."""
        self._service.webhooks.answered(delivery, status, now)

    def delivering(self, post: Callable[[Delivery], Awaitable[int]] | None = None) -> AbstractAsyncContextManager[None]:
        """Deliver the webhooks while the block runs, signed by this machine's clock.

        `post` sends one delivery and returns the status of its answer; by default to its `url`, plain http only.
        It is sent again after an OSError, ten seconds without an answer, or an answer other than 2xx.
        """
        return delivering(self._service.webhooks, post)

    def resume(self, later: Later, now: float) -> Outcome:
        """Return an answer that was to come later; ValueError before its time."""
        self.settle(now)
        return later.finish(now)

    def settle(self, now: float) -> None:
        """Process everything due by `now`: requests in transit arrive, runs finish."""
        in_transit = self._in_transit
        while in_transit and in_transit[0][0] <= now:
            at, _, arrival = heapq.heappop(in_transit)
            self._service.clock.advance(at)
            arrival.outcome = self._receive(arrival.request, at)
        self._service.clock.advance(now)

    @cached_property
    def app(self) -> EmulatorApp:
        """The ASGI app of this emulator, in anyio's time.

        It answers with a `Date` of its own: tell a server not to add another (uvicorn: `date_header=False`).
        """
        return EmulatorApp(self.handle, self.resume, self.delivering)

    @property
    def runs(self) -> Sequence[Run]:
        """All runs the service started, in order."""
        return self._service.runs

    @property
    def charges(self) -> Sequence[Charge]:
        """All payments, in order."""
        return self._service.billing.charges

    @property
    def credits_spent(self) -> int:
        """The credits all runs have cost, trial credits left out."""
        return self._service.billing.spent

    @property
    def refusals(self) -> Sequence[LoggedRequest]:
        """All requests that were refused with 429."""
        return self.requests.refusals

    def assert_charged_once(self, *, allow_equal_inputs: bool = False) -> None:
        """Fail when a run was paid for twice or, unless allowed, when two runs have the same target and inputs."""
        __tracebackhide__ = True
        _fail_with(_not_charged_once(self.runs, self.charges, allow_equal_inputs=allow_equal_inputs))

    def assert_all_collected(self) -> None:
        """Fail when a finished run was never observed, by a poll, an answer or an accepted delivery."""
        __tracebackhide__ = True
        _fail_with(_not_observed(self.runs, self._service.clock.now))

    def assert_no_429(self) -> None:
        """Fail when any request was refused by the rate limit."""
        __tracebackhide__ = True
        _fail_with(_refused(self.refusals))

    def finish(self, execution_id: str, result: object = None) -> None:
        """Complete an asynchronous run now, with its usual result or a JSON value; ValueError if it is not running."""
        self._finish_now(execution_id, error=None, result=result)

    def fail(self, execution_id: str, message: str = FAILURE) -> None:
        """Fail an asynchronous run now; ValueError if it is not running."""
        self._finish_now(execution_id, error=message or FAILURE)

    def send_test_webhook(self) -> None:
        """Send `webhook.test` to the webhook, as the dashboard does; ValueError when there is no `webhook_url`."""
        if self.webhook_url is None:
            raise ValueError("the emulator has no webhook_url to test")
        self._service.webhooks.test(self.webhook_url, DEFAULT_USER, self._service.clock.now)

    def reset(self) -> None:
        """Restore the initial state: settings, runs, charges, requests, windows, faults, random generators, clock.

        Requests in transit never arrive. `media_url` stays: it is where the files are served.
        """
        for name, value in self._made_with.items():
            if name != "media_url":
                setattr(self, name, value)
        self._in_transit.clear()
        self.requests.clear()
        self.faults.restart()
        self._service.start()

    def _finish_now(self, execution_id: str, *, error: str | None, result: object = None) -> None:
        run, now = self._service.run(execution_id), self._service.clock.now
        if run is None or not run.is_async:
            raise ValueError(f"there is no asynchronous run {execution_id!r}")
        if run.is_finished_at(now):
            raise ValueError(f"the run {execution_id} is already {run.status_at(now)}")
        self._service.end(run, now, error=error, result=result)

    def _receive(self, request: Request, now: float) -> Outcome:
        if is_for_console(request):
            return with_date(self._service, self._console.answer(request, now), now)
        route, subject = match(request.method, request.path)
        label = _label(route)
        fault = self._fault_for(request, label)
        if fault is not None and fault.stage == "held":
            return self.deliver(attrs.evolve(request, decision=FaultDecision()), now + fault.seconds)
        self.requests.arrived(label)
        if fault is None:
            outcome: Outcome = answer(self._service, route, subject, request, now)
        elif fault.stage == "after":
            outcome = _apply(fault, answer(self._service, route, subject, request, now))
        else:
            outcome = with_date(self._service, fault.act(None), now)
        return self._logged(outcome, request, label, now)

    def _fault_for(self, request: Request, label: str) -> Fault | None:
        if request.decision is not None:
            return request.decision.fault
        return self.faults.decide(label, request).fault if self.faults else None

    def _logged(self, outcome: Outcome, request: Request, label: str, at: float) -> Outcome:
        if isinstance(outcome, Later):
            finish = outcome.finish
            return Later(outcome.at, lambda now: self._logged(finish(now), request, label, at))
        self.requests.answered(request, label, outcome, at)
        return outcome


def _label(route: Route | None) -> str:
    return UNKNOWN if route is None else route.label


def _apply(fault: Fault, outcome: Outcome) -> Outcome:
    """Apply a fault to the answer once it comes; a later answer stays later."""
    if isinstance(outcome, Later):
        finish = outcome.finish
        return Later(outcome.at, lambda now: _apply(fault, finish(now)))
    return fault.act(outcome) if isinstance(outcome, Response) else outcome


def _fail_with(message: str | None) -> None:
    __tracebackhide__ = True
    if message is not None:
        raise AssertionError(message)


_SHOWN = 20


def _not_charged_once(runs: Sequence[Run], charges: Sequence[Charge], *, allow_equal_inputs: bool) -> str | None:
    """Describe runs not charged exactly once, and jobs (same target and inputs) that were run more than once."""
    paid = Counter(charge.execution_id for charge in charges)
    if strange := set(paid) - {run.execution_id for run in runs}:
        return f"{len(strange)} charge(s) were for unknown runs: {', '.join(sorted(strange)[:_SHOWN])}"
    if odd := [run for run in runs if paid[run.execution_id] != 1]:
        return f"{len(odd)} run(s) were not charged once:\n{_listed(odd, paid)}"
    if allow_equal_inputs:
        return None
    alike: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs:
        alike[_job(run)].append(run)
    repeated = {job: same for job, same in alike.items() if len(same) > 1}
    if not repeated:
        return None
    parts = [f"  {job}\n{_listed(same, paid)}" for job, same in list(repeated.items())[:_SHOWN]]
    return "\n".join([f"{len(repeated)} job(s) were run and charged more than once:", *parts, *_more(len(repeated))])


def _not_observed(runs: Iterable[Run], now: float) -> str | None:
    """Describe finished runs whose end the client was never sent."""
    unobserved = [run for run in runs if run.is_finished_at(now) and run.seen_ended_at is None]
    return (
        f"{len(unobserved)} finished run(s) were never observed by the client:\n{_listed(unobserved)}"
        if unobserved
        else None
    )


def _refused(refusals: Sequence[LoggedRequest]) -> str | None:
    """Describe the requests that were refused with 429."""
    if not refusals:
        return None
    first = refusals[0]
    by_route = ", ".join(f"{number} of {route}" for route, number in Counter(one.route for one in refusals).items())
    return (
        f"{len(refusals)} request(s) were refused with 429 ({by_route}); the first: {first.method} {first.route} "
        f"at {first.at:.3f} s"
    )


def _job(run: Run) -> str:
    return f"{run.kind} {run.target} {json.dumps(run.inputs, sort_keys=True, ensure_ascii=False)}"


def _listed(runs: Sequence[Run], paid: Counter[str] | None = None) -> str:
    lines = [f"    {_described(run)}{_payments(run, paid)}" for run in runs[:_SHOWN]]
    return "\n".join([*lines, *_more(len(runs))])


def _described(run: Run) -> str:
    polls = "not polled" if not run.polls else f"polled {run.polls} time{'s' if run.polls != 1 else ''}"
    return f"{run.execution_id} {run.target} started at {run.started:.3f} s, {run.status}, {polls}"


def _payments(run: Run, paid: Counter[str] | None) -> str:
    number = 1 if paid is None else paid[run.execution_id]
    return "" if number == 1 else f", charged {number} times"


def _more(number: int) -> list[str]:
    return [f"    and {number - _SHOWN} more"] if number > _SHOWN else []
