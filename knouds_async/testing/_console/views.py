"""The emulator's state as JSON, for the control API and the status page; no key and no secret is in it.

Names are those of the contract where it has one; times are seconds since the first request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

import attrs

from knouds_async.testing._service.runs import Run
from knouds_async.testing._service.state import Charge, ServiceState
from knouds_async.testing.faults import Faults
from knouds_async.testing.messages import LoggedRequest, RequestLog
from knouds_async.testing.settings import Settings

__all__ = ["RunCounter", "View"]

JsonObject = dict[str, Any]
_HIDDEN: Final = frozenset({"api_key", "webhook_secret", "keys", "workflows", "models"})


class RunCounter:
    """Counts runs by status; a finished run is never checked again."""

    def __init__(self, service: ServiceState) -> None:
        """Start with nothing counted."""
        self._service = service
        self.clear()

    def clear(self) -> None:
        """Reset the counts."""
        self._taken = 0
        self._running: list[Run] = []
        self._finished: Counter[str] = Counter()

    def at(self, now: float) -> Counter[str]:
        """Return the number of runs by status."""
        runs = self._service.runs
        self._running += runs[self._taken :]
        self._taken = len(runs)
        running = [run for run in self._running if not run.is_finished_at(now)]
        if len(running) < len(self._running):
            self._finished.update(run.end for run in self._running if run.is_finished_at(now))
            self._running = running
        return self._finished + Counter(run.status_at(now) for run in running)


@attrs.frozen
class View:
    """The state of an emulator at a time."""

    settings: Settings
    service: ServiceState
    faults: Faults
    requests: RequestLog
    counter: RunCounter
    now: float

    def state(self) -> JsonObject:
        """Return the totals: runs, credits, requests, windows, faults."""
        charges = self.service.billing
        return {
            "elapsed": self._since(self.now),
            "tier": self.settings.tier,
            "generation": self.settings.generation,
            "runs": {"total": len(self.service.runs), **self.counter.at(self.now)},
            "charges": {"total": len(charges.charges), "credits": charges.spent, "grant": charges.granted},
            "credits": self.settings.credits,
            "requests": {"total": self.requests.count, "refused": len(self.requests.refusals)},
            "windows": self.windows(),
            "faults": self.attached(),
        }

    def windows(self) -> list[JsonObject]:
        """Return the windows that are open."""
        windows = self.service.windows.open_at(self.service.clock.elapsed(self.now))
        return [
            {
                "user": one.user,
                "route": one.route,
                "limit": one.limit,
                "used": one.used,
                "remaining": one.limit - one.used,
                "resetsIn": round(one.resets_in, 3),
            }
            for one in windows
        ]

    def attached(self) -> list[JsonObject]:
        """Return the faults that are attached."""
        return [
            {"number": one.number, "fault": one.description, "met": one.met, "struck": one.struck}
            for one in self.faults.attached()
        ]

    def runs(self, *, limit: int, offset: int = 0, keep: Callable[[Run], bool] | None = None) -> list[JsonObject]:
        """Return the newest runs that `keep` accepts."""
        newest = reversed(self.service.runs)
        kept = newest if keep is None else filter(keep, newest)
        return [self.run(run) for run in islice(kept, offset, offset + limit)]

    def run(self, run: Run) -> JsonObject:
        """Return one run."""
        is_finished = run.is_finished_at(self.now)
        return {
            "executionId": run.execution_id,
            "requestId": run.request_id,
            "kind": run.kind,
            "target": run.target,
            "inputs": run.inputs,
            "modelIds": run.model_ids,
            "userId": run.user,
            "isAsync": run.is_async,
            "status": run.status_at(self.now),
            "cost": run.cost,
            "startedAt": self._since(run.started),
            "endsAt": self._since(run.ends),
            "cancelRequestedAt": None if run.cancel_requested_at is None else self._since(run.cancel_requested_at),
            "polls": run.polls,
            "endSeenAt": None if run.seen_ended_at is None else self._since(run.seen_ended_at),
            "error": run.error if is_finished and run.end == "failed" else None,
        }

    def charges(self, *, limit: int, offset: int = 0) -> list[JsonObject]:
        """Return the newest charges."""
        return [self._charge(one) for one in islice(reversed(self.service.billing.charges), offset, offset + limit)]

    def latest_requests(self, *, limit: int, offset: int = 0) -> list[JsonObject]:
        """Return the newest requests that are kept."""
        return [self._request(one) for one in islice(reversed(list(self.requests)), offset, offset + limit)]

    def shown_settings(self) -> JsonObject:
        """Return the settings by their Python names; a callable as its repr."""
        fields = [field.name for field in attrs.fields(Settings) if field.name not in _HIDDEN]
        return {name: _plain(getattr(self.settings, name)) for name in fields}

    def _since(self, at: float) -> float:
        return round(self.service.clock.elapsed(at), 3)

    def _charge(self, charge: Charge) -> JsonObject:
        return {
            "executionId": charge.execution_id,
            "target": charge.target,
            "amount": charge.amount,
            "paidBy": charge.paid_by,
            "at": self._since(charge.at),
        }

    def _request(self, request: LoggedRequest) -> JsonObject:
        return {
            "method": request.method,
            "path": request.path,
            "route": request.route,
            "query": request.query,
            "status": request.status,
            "at": self._since(request.at),
        }


def _plain(value: object) -> object:
    if attrs.has(type(value)) and not callable(value):
        return {name: _plain(one) for name, one in attrs.asdict(value, recurse=False).items()}  # type: ignore[arg-type]
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | int | float) else repr(value)
