"""The webhooks of the emulated service: which deliveries are due, signed as the service signs them (contract 11).

Rule of the file: pure; `now` is the caller's monotonic time and `unix_now` what the signatures are dated by. The faces
send what is handed out here, and say how it was answered.
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

from knouds_async.testing._service.clock import ServerClock
from knouds_async.testing._service.lifecycle import Run
from knouds_async.testing._service.replies import encoded
from knouds_async.testing.deliveries import Delivery, Kind
from knouds_async.testing.laws import draw
from knouds_async.testing.settings import Settings

__all__ = ["Webhooks"]

_FORGER: Final = "whsec_of_somebody_else"
_HOUR: Final = 3600.0
_AGAIN: Final = 5.0  # seconds to the second attempt; twice as long to each one after


@attrs.frozen
class _Planned:
    """A delivery before it is written and signed."""

    run: Run | None  # None: the event of a test
    url: str
    kind: Kind
    attempt: int = 1
    user: str = ""


class Webhooks:
    """The deliveries of one emulated service."""

    def __init__(self, settings: Settings, result: Callable[[Run], object]) -> None:
        """Deliver nothing before `start`; `result` gives what a run made."""
        self._all = settings
        self._result = result
        self.wake: Callable[[], None] = lambda: None

    def start(self, clock: ServerClock) -> None:
        """Begin, or begin anew, with nothing to deliver."""
        self._clock = clock
        self._dice = Random(f"{self._all.seed}:webhooks")
        self._count = 0
        self._runs: list[tuple[float, int, Run, str]] = []  # those that will end, by when
        self._urls: dict[str, str] = {}  # where those go that are not over
        self._over: dict[str, Run] = {}
        self._out: list[tuple[float, int, _Planned]] = []

    def add(self, run: Run, url: str | None) -> None:
        """Take note of a run that has begun; it is delivered when its key has a webhook."""
        if url is not None and run.is_async:
            self._urls[run.execution_id] = url
            self._push(run, url)

    def moved(self, run: Run) -> None:
        """Take note that a run ends at another time than before."""
        if (url := self._urls.get(run.execution_id)) is not None:
            self._push(run, url)

    def next_at(self) -> float:
        """Give when something will be due; inf when nothing is planned."""
        return min((heap[0][0] for heap in (self._runs, self._out) if heap), default=math.inf)

    def due(self, now: float, unix_now: float | None) -> list[Delivery]:
        """Give the deliveries to be sent now, each once, signed at `unix_now` (the service's own clock without one)."""
        while self._runs and self._runs[0][0] <= now:
            _, _, run, url = heapq.heappop(self._runs)
            if run.execution_id not in self._over and run.ends <= now:
                self._over[run.execution_id] = run
                del self._urls[run.execution_id]
                self._plan(run, url)
        signed_at = self._clock.epoch_of(now) if unix_now is None else unix_now
        found = []
        while self._out and self._out[0][0] <= now:
            found.append(self._written(heapq.heappop(self._out)[2], signed_at))
        return found

    def answered(self, delivery: Delivery, status: int | None, now: float) -> None:
        """Take note of an answer, None when none came: what was not taken is sent again."""
        is_taken = status is not None and 200 <= status < 300
        run = self._over.get(delivery.execution_id)
        if is_taken and run is not None and delivery.kind in ("genuine", "repeated"):
            run.seen_at(now)
        if is_taken or run is None or delivery.kind in ("forged", "stale"):
            return
        if delivery.attempt < self._all.deliveries.attempts:
            again = _Planned(run, delivery.url, "repeated", delivery.attempt + 1)
            self._push_out(now + _AGAIN * 2 ** (delivery.attempt - 1), again)

    def test(self, url: str, user: str, now: float) -> None:
        """Send the event that the dashboard sends to try a webhook out; it is of no run."""
        self._push_out(now, _Planned(None, url, "test", user=user))

    def _push(self, run: Run, url: str) -> None:
        self._count += 1
        heapq.heappush(self._runs, (run.ends, self._count, run, url))
        self.wake()

    def _push_out(self, at: float, planned: _Planned) -> None:
        self._count += 1
        heapq.heappush(self._out, (at, self._count, planned))
        self.wake()

    def _plan(self, run: Run, url: str) -> None:
        settings, dice = self._all.deliveries, self._dice
        rolls = {name: dice.random() for name in ("dropped", "late", "expired", "forged", "repeated", "stale")}
        at = run.ends + draw(settings.latency, dice)
        if rolls["forged"] < settings.forged:
            self._push_out(run.ends, _Planned(run, url, "forged"))
        if rolls["expired"] < settings.expired:
            self._push_out(run.ends, _Planned(run, url, "expired", settings.attempts))
        if rolls["dropped"] < settings.dropped:
            return
        at += draw(settings.late_by, dice) if rolls["late"] < settings.late else 0.0
        self._push_out(at, _Planned(run, url, "genuine"))
        if rolls["stale"] < settings.stale:
            self._push_out(at, _Planned(run, url, "stale"))
        if rolls["repeated"] < settings.repeated:
            self._push_out(at + draw(settings.late_by, dice), _Planned(run, url, "repeated"))

    def _written(self, planned: _Planned, signed_at: float) -> Delivery:
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
        secret = _FORGER if kind == "forged" else self._all.webhook_secret
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
        is_told = run.has_result and self._all.deliveries.has_result
        return {
            "event": f"execution.{run.end}",
            "executionId": run.execution_id,
            "requestId": run.request_id,
            "userId": run.user,
            "workflowSlug": run.target if run.kind == "workflow" else None,
            "modelIds": run.model_ids,
            "status": run.end,
            "result": self._result(run) if is_told else None,
            "error": {"code": "EXECUTION_FAILED", "message": run.error} if run.end == "failed" else None,
            "cost": run.cost,
            "ms": round((run.ends - run.started) * 1000),
            "createdAt": self._clock.iso(run.started),
            "completedAt": self._clock.iso(run.ends),
        }
