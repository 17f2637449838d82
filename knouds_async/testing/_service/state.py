"""The emulated service's state: rate-limit windows, billing, runs, and what endpoints do with them (contract 3, 6, 7).

The windows' time is `elapsed`, seconds since the emulator's first request; `clock` only turns an end into the epoch
second that the headers show.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Literal
from uuid import UUID

import attrs

from knouds_async.testing._service.catalog import ApiKey, allows
from knouds_async.testing._service.replies import ErrorResponse
from knouds_async.testing._service.runs import EmulatedClock, Run, UsageListing
from knouds_async.testing._service.webhooks import Webhooks
from knouds_async.testing._service.workflows import WorkflowStore
from knouds_async.testing.messages import Request
from knouds_async.testing.settings import Settings, draw

__all__ = [
    "Billing",
    "Charge",
    "EndpointCall",
    "QuotaDecision",
    "RunRequest",
    "ServiceState",
    "WindowStatus",
    "Windows",
]

_ROUNDINGS: dict[str, Callable[[float], int]] = {"up": math.ceil, "down": math.floor, "nearest": round}


@attrs.frozen
class QuotaDecision:
    """Whether a request was admitted, and what its answer says about the quota."""

    is_granted: bool
    limit: int
    remaining: int
    reset: int
    retry_after: int

    def headers(self) -> dict[str, str]:
        """Return the three quota headers."""
        return {
            "x-ratelimit-limit": str(self.limit),
            "x-ratelimit-remaining": str(self.remaining),
            "x-ratelimit-reset": str(self.reset),
        }


@attrs.frozen
class WindowStatus:
    """The state of one user's window on a route; `resets_in` is in seconds, 0 when no window is open."""

    user: str
    route: str
    limit: int
    used: int
    resets_in: float


@attrs.define(eq=False)
class _Window:
    """One window of one user on one route; `others` are the times of other users' requests, latest first."""

    number: int
    length: float
    end: float
    reset: int
    limit: int
    others: list[float]
    used: int = 0

    def settle(self, elapsed: float) -> None:
        """Count the requests of others up to a time."""
        while self.others and self.others[-1] <= elapsed:
            self.others.pop()
            self.used = min(self.limit, self.used + 1)


class Windows:
    """The windows of all users and routes."""

    def __init__(self, settings: Settings, clock: EmulatedClock) -> None:
        self._settings = settings
        self._clock = clock
        self._windows: dict[tuple[str, str], _Window] = {}
        self._others_rng = Random(f"{settings.seed}:others")
        phase = settings.window_phase
        drawn = Random(f"{settings.seed}:phase").random() * settings.window_length
        self._phase = drawn if phase is None else phase

    def count(self, user: str, route: str, limit: int, elapsed: float) -> QuotaDecision:
        """Count one request of a user on a route against its window."""
        number = math.floor((elapsed - self._phase) / self._settings.window_length)
        window = self._windows.get((user, route))
        if window is None or self._is_past(window, number, elapsed):
            window = self._windows[(user, route)] = self._new(number, elapsed, limit)
        window.limit = limit
        window.settle(elapsed)
        is_granted = window.used < limit
        window.used += is_granted
        retry_after = max(1, math.ceil(window.end - elapsed))
        return QuotaDecision(is_granted, limit, max(0, limit - window.used), window.reset, retry_after)

    def at(self, elapsed: float) -> list[WindowStatus]:
        """Return the latest window of each user and route, in the order of their first use; a past one is unused."""
        found = []
        for (user, route), window in self._windows.items():
            window.settle(elapsed)
            used, resets_in = (window.used, window.end - elapsed) if elapsed < window.end else (0, 0.0)
            found.append(WindowStatus(user, route, window.limit, used, resets_in))
        return found

    def _is_past(self, window: _Window, number: int, elapsed: float) -> bool:
        # By number, not by time: an end that rounding puts a hair too early must not open the window twice.
        # Numbers of windows of another length, which was changed meanwhile, are others.
        if self._settings.window_opens == "on_the_clock" and window.length == self._settings.window_length:
            return number > window.number
        return elapsed >= window.end

    def _new(self, number: int, elapsed: float, limit: int) -> _Window:
        length = self._settings.window_length
        start = elapsed
        if self._settings.window_opens == "on_the_clock":
            start = number * length + self._phase
        end = start + length
        reset = _ROUNDINGS[self._settings.reset_rounding](self._clock.epoch_at(end))
        return _Window(number, length, end, reset, limit, self._others(start, length, limit))

    def _others(self, start: float, length: float, limit: int) -> list[float]:
        others, rng = self._settings.others, self._others_rng
        number = others(rng) if callable(others) else round(others * limit)
        return sorted((start + rng.random() * length for _ in range(number)), reverse=True)


@attrs.frozen
class Charge:
    """One payment for one run; `paid_by` "grant" is reported by the service as a cost of 0."""

    execution_id: str
    target: str
    amount: int
    at: float
    paid_by: Literal["credits", "grant"]


class Billing:
    """The charges and totals; the balance itself is in the settings, so that a test can top it up."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.charges: list[Charge] = []
        self.spent = 0  # credits
        self.granted = 0  # credits of the trial grant

    def price(self, target: str) -> int:
        """Return the price of a run, in credits."""
        return self._settings.costs.get(target, self._settings.cost)

    def pay(self, execution_id: str, target: str, now: float) -> int:
        """Charge for a run and return the cost the service reports; 402 when the account cannot pay."""
        amount, settings = self.price(target), self._settings
        if settings.grant is not None:
            if settings.grant < amount:
                raise ErrorResponse(402, "grant_exhausted", "Your trial credits are used up. Upgrade to continue.")
            settings.grant -= amount
            self.granted += amount
            self.charges.append(Charge(execution_id, target, amount, now, "grant"))
            return 0
        if settings.credits < amount:
            raise ErrorResponse(402, "INSUFFICIENT_CREDITS", "Not enough credits for this run. Top up to continue.")
        settings.credits -= amount
        self.spent += amount
        self.charges.append(Charge(execution_id, target, amount, now, "credits"))
        return amount


_MOST_RESULTS = 100
_EXTENSIONS = {"images": "png", "videos": "mp4", "audios": "mp3"}


@attrs.frozen
class EndpointCall:
    """One request to an endpoint: the caller, the subject, the time; `headers` go with its answer."""

    request: Request
    caller: ApiKey
    subject: str
    now: float
    headers: dict[str, str]


@attrs.frozen
class RunRequest:
    """A run that was requested and may be started."""

    kind: Literal["workflow", "model"]
    target: str
    inputs: dict[str, object]
    model_ids: tuple[str, ...]
    is_async: bool


class ServiceState:
    """The state of the emulated service."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.webhooks = Webhooks(settings, self.result)
        self.start()

    def start(self) -> None:
        """Start or restart: no run, no window, no charge, and the clock at its epoch."""
        settings = self.settings
        self.clock = EmulatedClock(settings.epoch + settings.clock_skew)
        self.keys = settings.account_keys()
        self.models = {model.name: model for model in settings.models}
        self.workflows = WorkflowStore(settings.workflows, self.clock.iso(0.0))
        self.windows = Windows(settings, self.clock)
        self.billing = Billing(settings)
        self.usage = UsageListing(settings.usage_lag)
        self.webhooks.start(self.clock)
        self.runs: list[Run] = []
        self._indexes: dict[str, int] = {}
        self._ids = Random(f"{settings.seed}:ids")
        self._run_rng = Random(f"{settings.seed}:fates")

    def begin(self, run_request: RunRequest, caller: ApiKey, now: float) -> Run:
        """Charge for a run and start it; 402 when the account cannot pay."""
        settings, rng = self.settings, self._run_rng
        execution_id = str(UUID(int=self._ids.getrandbits(128), version=4))
        cost = self.billing.pay(execution_id, run_request.target, now)
        lasts = draw(settings.durations.get(run_request.target, settings.duration), rng)
        is_failing = rng.random() < settings.failure_rate
        run = Run(
            execution_id=execution_id,
            request_id=f"kie_{self._ids.getrandbits(48):012x}",
            kind=run_request.kind,
            target=run_request.target,
            inputs=run_request.inputs,
            model_ids=run_request.model_ids,
            makes=self.models[run_request.model_ids[-1]].makes if run_request.model_ids else "text",
            user=caller.user,
            is_async=run_request.is_async,
            cost=cost,
            started=now,
            ends=now + lasts,
            end="failed" if is_failing else "completed",
            has_result=not is_failing,
            clock=self.clock,
        )
        self.runs.append(run)
        self._indexes[execution_id] = self.usage.add(run)
        self.webhooks.add(run, self.webhook_of(caller))
        return run

    def webhook_of(self, caller: ApiKey) -> str | None:
        """Return the webhook URL for a key's runs; None when it may not receive webhooks (contract 2)."""
        may_receive = self.settings.generation == "old" or allows(caller.capabilities, "webhook:receive")
        return caller.webhook_url if may_receive else None

    def run(self, execution_id: str) -> Run | None:
        """Return a run of any user."""
        index = self._indexes.get(execution_id)
        return None if index is None else self.runs[index]

    def find_run(self, execution_id: str, user: str, now: float) -> Run:
        """Return a user's asynchronous run; 404 when there is none, or not yet."""
        run = self.run(execution_id)
        if run is None or run.user != user or not run.is_async:
            raise ErrorResponse(404, "EXECUTION_NOT_FOUND", "Execution not found")
        if now < run.started + self.settings.not_found_after_submit:
            raise ErrorResponse(404, "EXECUTION_NOT_FOUND", "Execution not found")
        return run

    def cancel(self, run: Run, now: float) -> None:
        """Request the cancellation of a run."""
        effective_at = now + draw(self.settings.cancel_delay, self._run_rng)
        run.request_cancel(now, effective_at=effective_at, late=self.settings.late_cancel)
        self._rescheduled(run)

    def end(self, run: Run, now: float, *, error: str | None = None, result: object = None) -> None:
        """Finish a run now: failed with an error's message, or completed with a result (its usual one by default)."""
        run.finish_at(now, error=error, result=result)
        self._rescheduled(run)

    def _rescheduled(self, run: Run) -> None:
        self.usage.reschedule(self._indexes[run.execution_id])
        self.webhooks.rescheduled(run)

    def result(self, run: Run) -> object:
        """Return a completed run's result: as many items as its input `count`, unless one was set."""
        if run.result is not None:
            return run.result
        if run.makes == "text":
            return {"text": f"{run.target} says hello"}
        count = run.inputs.get("count")
        number = count if type(count) is int and 1 <= count <= _MOST_RESULTS else 1
        stem = f"{self.settings.media_url.rstrip('/')}/{run.execution_id.replace('-', '')}"
        ending = _EXTENSIONS[run.makes]
        return {run.makes: [{"url": f"{stem}-{index}.{ending}"} for index in range(1, number + 1)]}
