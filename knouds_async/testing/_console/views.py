"""The emulator's state as JSON, for the control API and the status page; no key and no secret is in it.

Rule of the file: pure. Names are those of the contract where it has one; times are seconds since the first request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

import attrs

from knouds_async.testing._service.lifecycle import Run
from knouds_async.testing._service.service import Service
from knouds_async.testing._service.wallet import Charge
from knouds_async.testing.journal import LoggedRequest, RequestLog
from knouds_async.testing.settings import Settings
from knouds_async.testing.strikes import Faults

__all__ = ["Tally", "View"]

JsonObject = dict[str, Any]
_HIDDEN: Final = frozenset({"api_key", "webhook_secret", "keys", "workflows", "models"})


class Tally:
    """Counts runs by status; one that was seen to be over is never looked at again."""

    def __init__(self, service: Service) -> None:
        """Start with nothing counted."""
        self._service = service
        self.clear()

    def clear(self) -> None:
        """Forget all runs."""
        self._taken = 0
        self._open: list[Run] = []
        self._over: Counter[str] = Counter()

    def at(self, now: float) -> Counter[str]:
        """Give the number of runs by status."""
        runs = self._service.runs
        self._open += runs[self._taken :]
        self._taken = len(runs)
        still = [run for run in self._open if not run.is_over_at(now)]
        if len(still) < len(self._open):
            self._over.update(run.end for run in self._open if run.is_over_at(now))
            self._open = still
        return self._over + Counter(run.status_at(now) for run in still)


@attrs.frozen
class View:
    """The state of an emulator at a time."""

    settings: Settings
    service: Service
    faults: Faults
    requests: RequestLog
    tally: Tally
    now: float

    def state(self) -> JsonObject:
        """Give the sums: runs, credits, requests, windows, faults."""
        charges = self.service.wallet
        return {
            "elapsed": self._since(self.now),
            "tier": self.settings.tier,
            "generation": self.settings.generation,
            "runs": {"total": len(self.service.runs), **self.tally.at(self.now)},
            "charges": {"total": len(charges.charges), "credits": charges.spent, "grant": charges.granted},
            "credits": self.settings.credits,
            "requests": {"total": self.requests.count, "refused": len(self.requests.refusals)},
            "windows": self.windows(),
            "faults": self.attached(),
        }

    def windows(self) -> list[JsonObject]:
        """Give the windows that are open."""
        standing = self.service.windows.open_at(self.service.clock.elapsed(self.now))
        return [
            {
                "user": one.user,
                "route": one.route,
                "limit": one.limit,
                "used": one.used,
                "remaining": one.limit - one.used,
                "resetsIn": round(one.resets_in, 3),
            }
            for one in standing
        ]

    def attached(self) -> list[JsonObject]:
        """Give the faults that are attached."""
        return [
            {"number": one.number, "fault": one.said, "met": one.met, "struck": one.struck}
            for one in self.faults.attached()
        ]

    def runs(self, *, limit: int, offset: int = 0, keep: Callable[[Run], bool] | None = None) -> list[JsonObject]:
        """Give the newest runs, those that `keep` says yes to."""
        newest = reversed(self.service.runs)
        kept = newest if keep is None else filter(keep, newest)
        return [self.run(run) for run in islice(kept, offset, offset + limit)]

    def run(self, run: Run) -> JsonObject:
        """Give one run."""
        is_over = run.is_over_at(self.now)
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
            "error": run.error if is_over and run.end == "failed" else None,
        }

    def charges(self, *, limit: int, offset: int = 0) -> list[JsonObject]:
        """Give the newest charges."""
        return [self._charge(one) for one in islice(reversed(self.service.wallet.charges), offset, offset + limit)]

    def latest_requests(self, *, limit: int, offset: int = 0) -> list[JsonObject]:
        """Give the newest requests that are kept."""
        return [self._request(one) for one in islice(reversed(list(self.requests)), offset, offset + limit)]

    def shown_settings(self) -> JsonObject:
        """Give the settings by their Python names; a law that is no number is put in words."""
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
