"""The emulated service's state, and what its endpoints do with it: begin a run, find one, say what it made."""

from __future__ import annotations

from random import Random
from typing import Literal
from uuid import UUID

import attrs

from knouds_async.testing._service.clock import ServerClock
from knouds_async.testing._service.keys import ApiKey, allows
from knouds_async.testing._service.lifecycle import Run
from knouds_async.testing._service.replies import Refusal
from knouds_async.testing._service.usage import Usage
from knouds_async.testing._service.wallet import Wallet
from knouds_async.testing._service.webhooks import Webhooks
from knouds_async.testing._service.windows import Windows
from knouds_async.testing._service.workflow_store import WorkflowStore
from knouds_async.testing.laws import draw
from knouds_async.testing.messages import Request
from knouds_async.testing.settings import Settings

__all__ = ["Call", "Order", "Service"]

_MOST_RESULTS = 100
_EXTENSIONS = {"images": "png", "videos": "mp4", "audios": "mp3"}


@attrs.frozen
class Call:
    """One request on its way through the service: who asks, for what, when; `headers` go with its answer."""

    request: Request
    caller: ApiKey
    subject: str
    now: float
    headers: dict[str, str]


@attrs.frozen
class Order:
    """A run that is asked for and may be begun."""

    kind: Literal["workflow", "model"]
    target: str
    inputs: dict[str, object]
    model_ids: tuple[str, ...]
    is_async: bool


class Service:
    """Everything the service remembers."""

    def __init__(self, settings: Settings) -> None:
        """Start with the settings' workflows, models and keys, and no run."""
        self.settings = settings
        self.webhooks = Webhooks(settings, self.result)
        self.start()

    def start(self) -> None:
        """Begin, or begin anew: no run, no window, no charge, and the clock at its epoch."""
        settings = self.settings
        self.clock = ServerClock(settings.epoch + settings.clock_skew)
        self.keys = settings.account_keys()
        self.models = {model.name: model for model in settings.models}
        self.workflows = WorkflowStore(settings.workflows, self.clock.iso(0.0))
        self.windows = Windows(settings, self.clock)
        self.wallet = Wallet(settings)
        self.usage = Usage(settings.usage_lag)
        self.webhooks.start(self.clock)
        self.runs: list[Run] = []
        self._places: dict[str, int] = {}
        self._ids = Random(f"{settings.seed}:ids")
        self._fates = Random(f"{settings.seed}:fates")

    def begin(self, order: Order, caller: ApiKey, now: float) -> Run:
        """Charge for a run and begin it; 402 when the account cannot pay."""
        settings, fates = self.settings, self._fates
        execution_id = str(UUID(int=self._ids.getrandbits(128), version=4))
        cost = self.wallet.pay(execution_id, order.target, now)
        lasts = draw(settings.durations.get(order.target, settings.duration), fates)
        is_failing = fates.random() < settings.failure_rate
        run = Run(
            execution_id=execution_id,
            request_id=f"kie_{self._ids.getrandbits(48):012x}",
            kind=order.kind,
            target=order.target,
            inputs=order.inputs,
            model_ids=order.model_ids,
            makes=self.models[order.model_ids[-1]].makes if order.model_ids else "text",
            user=caller.user,
            is_async=order.is_async,
            cost=cost,
            started=now,
            ends=now + lasts,
            end="failed" if is_failing else "completed",
            has_result=not is_failing,
            clock=self.clock,
        )
        self.runs.append(run)
        self._places[execution_id] = self.usage.add(run)
        self.webhooks.add(run, self.webhook_of(caller))
        return run

    def webhook_of(self, caller: ApiKey) -> str | None:
        """Give where the runs of a key are delivered; nowhere when it may not receive webhooks (contract 2)."""
        may_receive = self.settings.generation == "old" or allows(caller.capabilities, "webhook:receive")
        return caller.webhook_url if may_receive else None

    def run(self, execution_id: str) -> Run | None:
        """Give a run of whoever's."""
        place = self._places.get(execution_id)
        return None if place is None else self.runs[place]

    def find_run(self, execution_id: str, user: str, now: float) -> Run:
        """Give a user's asynchronous run; 404 when there is none, or not yet."""
        run = self.run(execution_id)
        if run is None or run.user != user or not run.is_async:
            raise Refusal(404, "EXECUTION_NOT_FOUND", "Execution not found")
        if now < run.started + self.settings.not_found_after_submit:
            raise Refusal(404, "EXECUTION_NOT_FOUND", "Execution not found")
        return run

    def cancel(self, run: Run, now: float) -> None:
        """Ask for the end of a run."""
        lands = now + draw(self.settings.cancel_delay, self._fates)
        run.request_cancel(now, lands=lands, late=self.settings.late_cancel)
        self._moved(run)

    def end(self, run: Run, now: float, *, error: str | None = None, result: object = None) -> None:
        """End a run now: failed with an error's message, or completed with a result, what it would make by default."""
        run.end_at(now, error=error, result=result)
        self._moved(run)

    def _moved(self, run: Run) -> None:
        self.usage.reschedule(self._places[run.execution_id])
        self.webhooks.moved(run)

    def result(self, run: Run) -> object:
        """Give what a completed run made; as many items as its input `count` asks for, unless it was told."""
        if run.result is not None:
            return run.result
        if run.makes == "text":
            return {"text": f"{run.target} says hello"}
        count = run.inputs.get("count")
        number = count if type(count) is int and 1 <= count <= _MOST_RESULTS else 1
        stem = f"{self.settings.media_url.rstrip('/')}/{run.execution_id.replace('-', '')}"
        ending = _EXTENSIONS[run.makes]
        return {run.makes: [{"url": f"{stem}-{place}.{ending}"} for place in range(1, number + 1)]}
