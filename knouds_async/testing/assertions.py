"""Assertions on the runs and charges of an emulator, with messages that show the runs at fault.

Each function returns the message of what is wrong, None when nothing is.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from knouds_async.testing._service.runs import Run
from knouds_async.testing._service.state import Charge
from knouds_async.testing.journal import LoggedRequest

__all__ = ["not_charged_once", "not_observed", "refused"]

_SHOWN = 20


def not_charged_once(runs: Sequence[Run], charges: Sequence[Charge], *, allow_equal_inputs: bool) -> str | None:
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


def not_observed(runs: Iterable[Run], now: float) -> str | None:
    """Describe finished runs whose end the client was never sent."""
    unobserved = [run for run in runs if run.is_finished_at(now) and run.seen_ended_at is None]
    return (
        f"{len(unobserved)} finished run(s) were never observed by the client:\n{_listed(unobserved)}"
        if unobserved
        else None
    )


def refused(refusals: Sequence[LoggedRequest]) -> str | None:
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
