"""The emulated service's state, and what its endpoints do with it: start a run, find one, return its result."""

from __future__ import annotations

from random import Random
from typing import Literal
from uuid import UUID

import attrs

from knouds_async.testing._service.clock import EmulatedClock
from knouds_async.testing._service.keys import ApiKey, allows
from knouds_async.testing._service.lifecycle import Run
from knouds_async.testing._service.replies import ErrorResponse
from knouds_async.testing._service.usage import UsageListing
from knouds_async.testing._service.wallet import Billing
from knouds_async.testing._service.webhooks import Webhooks
from knouds_async.testing._service.windows import Windows
from knouds_async.testing._service.workflow_store import WorkflowStore
from knouds_async.testing.laws import draw
from knouds_async.testing.messages import Request
from knouds_async.testing.settings import Settings

__all__ = ["EndpointCall", "RunRequest", "ServiceState"]

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
        """Start with the settings' workflows, models and keys, and no run."""
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
