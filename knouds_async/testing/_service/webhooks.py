"""The webhooks of the emulated service: which deliveries are due, signed as the service signs them (contract 11).

`now` is the caller's monotonic time and `unix_now` the time of the signatures. The delivery worker sends what is
returned here, and reports how it was answered.
"""

from __future__ import annotations

import hashlib
import heapq
import hmac
import math
from collections.abc import Callable
from random import Random
from typing import Final

import attrs

from knouds_async.testing._service.replies import encoded
from knouds_async.testing._service.runs import EmulatedClock, Run
from knouds_async.testing.settings import Delivery, Kind, Settings, draw

__all__ = ["Webhooks"]

_FORGER: Final = "whsec_of_somebody_else"
_HOUR: Final = 3600.0
_FIRST_RETRY: Final = 5.0  # seconds to the second attempt; twice as long to each one after


@attrs.frozen
class _PlannedDelivery:
    """A delivery before it is written and signed."""

    run: Run | None  # None: a test event
    url: str
    kind: Kind
    attempt: int = 1
    user: str = ""


class Webhooks:
    """The deliveries of one emulated service.

    `result` returns what a run made.
    """

    def __init__(self, settings: Settings, result: Callable[[Run], object]) -> None:
        self._settings = settings
        self._result = result
        self.wake: Callable[[], None] = lambda: None

    def start(self, clock: EmulatedClock) -> None:
        """Start or restart, with nothing to deliver."""
        self._clock = clock
        self._rng = Random(f"{self._settings.seed}:webhooks")
        self._count = 0
        self._runs: list[tuple[float, int, Run, str]] = []  # still running, by when they will finish
        self._urls: dict[str, str] = {}  # where those still running are delivered
        self._finished: dict[str, Run] = {}
        self._planned: list[tuple[float, int, _PlannedDelivery]] = []

    def add(self, run: Run, url: str | None) -> None:
        """Add a run that has started; it is delivered if its key has a webhook."""
        if url is not None and run.is_async:
            self._urls[run.execution_id] = url
            self._schedule_end(run, url)

    def rescheduled(self, run: Run) -> None:
        """Reschedule a run whose end has changed."""
        if (url := self._urls.get(run.execution_id)) is not None:
            self._schedule_end(run, url)

    def next_at(self) -> float:
        """Return when something will be due; inf when nothing is planned."""
        return min((heap[0][0] for heap in (self._runs, self._planned) if heap), default=math.inf)

    def due(self, now: float, unix_now: float | None) -> list[Delivery]:
        """Return the deliveries due now, each once, signed at `unix_now` (by default the service's own clock)."""
        while self._runs and self._runs[0][0] <= now:
            _, _, run, url = heapq.heappop(self._runs)
            if run.execution_id not in self._finished and run.ends <= now:
                self._finished[run.execution_id] = run
                del self._urls[run.execution_id]
                self._plan(run, url)
        signed_at = self._clock.epoch_of(now) if unix_now is None else unix_now
        found = []
        while self._planned and self._planned[0][0] <= now:
            found.append(self._sign(heapq.heappop(self._planned)[2], signed_at))
        return found

    def answered(self, delivery: Delivery, status: int | None, now: float) -> None:
        """Record an answer (None: none came); a delivery that was not accepted is sent again."""
        is_accepted = status is not None and 200 <= status < 300
        run = self._finished.get(delivery.execution_id)
        if is_accepted and run is not None and delivery.kind in ("genuine", "repeated"):
            run.mark_seen(now)
        if is_accepted or run is None or delivery.kind in ("forged", "stale"):
            return
        if delivery.attempt < self._settings.deliveries.attempts:
            retry = _PlannedDelivery(run, delivery.url, "repeated", delivery.attempt + 1)
            self._schedule_delivery(now + _FIRST_RETRY * 2 ** (delivery.attempt - 1), retry)

    def test(self, url: str, user: str, now: float) -> None:
        """Send the event that the dashboard sends to test a webhook; it belongs to no run."""
        self._schedule_delivery(now, _PlannedDelivery(None, url, "test", user=user))

    def _schedule_end(self, run: Run, url: str) -> None:
        self._count += 1
        heapq.heappush(self._runs, (run.ends, self._count, run, url))
        self.wake()

    def _schedule_delivery(self, at: float, planned: _PlannedDelivery) -> None:
        self._count += 1
        heapq.heappush(self._planned, (at, self._count, planned))
        self.wake()

    def _plan(self, run: Run, url: str) -> None:
        settings, rng = self._settings.deliveries, self._rng
        drawn = {name: rng.random() for name in ("dropped", "late", "expired", "forged", "repeated", "stale")}
        at = run.ends + draw(settings.latency, rng)
        if drawn["forged"] < settings.forged:
            self._schedule_delivery(run.ends, _PlannedDelivery(run, url, "forged"))
        if drawn["expired"] < settings.expired:
            self._schedule_delivery(run.ends, _PlannedDelivery(run, url, "expired", settings.attempts))
        if drawn["dropped"] < settings.dropped:
            return
        at += draw(settings.late_by, rng) if drawn["late"] < settings.late else 0.0
        self._schedule_delivery(at, _PlannedDelivery(run, url, "genuine"))
        if drawn["stale"] < settings.stale:
            self._schedule_delivery(at, _PlannedDelivery(run, url, "stale"))
        if drawn["repeated"] < settings.repeated:
            self._schedule_delivery(at + draw(settings.late_by, rng), _PlannedDelivery(run, url, "repeated"))

    def _sign(self, planned: _PlannedDelivery, signed_at: float) -> Delivery:
        run, kind = planned.run, planned.kind
        if run is None:
            payload: dict[str, object] = {"event": "webhook.test", "userId": planned.user, "status": "completed"}
        else:
            payload = self._payload(run)
        if kind == "forged":
            payload["result"] = {"images": [{"url": "https://forged.example/malware.exe"}]}
        elif kind == "stale":
            payload |= {"event": "execution.progress", "status": "processing", "result": None, "error": None}
        body = encoded(payload)
        moment = int(signed_at - _HOUR if kind == "expired" else signed_at)
        secret = _FORGER if kind == "forged" else self._settings.webhook_secret
        signature = hmac.new(secret.encode(), b"%d.%s" % (moment, body), hashlib.sha256).hexdigest()
        headers = {"content-type": "application/json", "x-knouds-signature": f"t={moment},v1={signature}"}
        return Delivery(
            url=planned.url,
            execution_id="" if run is None else run.execution_id,
            kind=kind,
            headers=headers,
            body=body,
            attempt=planned.attempt,
        )

    def _payload(self, run: Run) -> dict[str, object]:
        has_result = run.has_result and self._settings.deliveries.has_result
        return {
            "event": f"execution.{run.end}",
            "executionId": run.execution_id,
            "requestId": run.request_id,
            "userId": run.user,
            "workflowSlug": run.target if run.kind == "workflow" else None,
            "modelIds": run.model_ids,
            "status": run.end,
            "result": self._result(run) if has_result else None,
            "error": {"code": "EXECUTION_FAILED", "message": run.error} if run.end == "failed" else None,
            "cost": run.cost,
            "ms": round((run.ends - run.started) * 1000),
            "createdAt": self._clock.iso(run.started),
            "completedAt": self._clock.iso(run.ends),
        }
