"""What can go wrong in a history, by name, so that one kind of it can be had alone; and how each is attached.

Rule of the file: dice decide, and the same dice decide the same again.
"""

from __future__ import annotations

import os
from random import Random
from typing import Final

from knouds_async.testing import Fault, faults
from knouds_async.testing.faults import Faults
from tests.scenarios.service import HELD, POLL, SUBMIT, USAGE, Cache, Stray, execution_failed, foreign, held, untold

AT_SERVICE: Final = (
    "lost",
    "reset",
    "bad_gateway",
    "rate_limited",
    "html",
    "foreign",
    "not_found",
    "late_arrival",
    "execution_failed",
    "stray",
    "cached",
    "untold",
)
"""Faults of requests and answers."""

OF_ROWS: Final = ("shared_ids", "missing_ids", "late_rows", "disorder", "short_pages", "foreign_rows", "strangers")
"""Oddities of ids and of the usage rows."""

TO_PROCESSES: Final = ("kill", "pause", "stop", "interrupt", "lock", "sleep", "clock")
"""What befalls a process, its ledger, or the machine."""

BETWEEN_PASSES: Final = ("account", "service", "rebind", "cap", "costs", "failures", "decisions", "retry_failed")
"""What people change from one pass to the next."""

KINDS: Final = frozenset((*AT_SERVICE, *OF_ROWS, *TO_PROCESSES, *BETWEEN_PASSES))


def chosen() -> frozenset[str]:
    """Return the kinds that `KNOUDS_HISTORY_KINDS` names, "lock,lost", or all."""
    named = frozenset(filter(None, os.environ.get("KNOUDS_HISTORY_KINDS", "").split(",")))
    if unknown := named - KINDS:
        raise ValueError(f"KNOUDS_HISTORY_KINDS: there is no {sorted(unknown)}; there are {sorted(KINDS)}")
    return named or KINDS


def seeds(default: int, *, start: int = 0) -> list[int]:
    """Return the one seed of `KNOUDS_HISTORY_SEED`, or as many as `KNOUDS_HISTORIES` says, from its start on."""
    if (one := os.environ.get("KNOUDS_HISTORY_SEED")) is not None:
        return [int(one)]
    first = int(os.environ.get("KNOUDS_HISTORY_START", start))
    return list(range(first, first + int(os.environ.get("KNOUDS_HISTORIES", default))))


def attach(attached: Faults, kinds: frozenset[str], dice: Random, stray: Stray, cache: Cache) -> list[str]:
    """Attach the faults of one pass, and say which."""
    attached.clear()
    for kind in AT_SERVICE:
        if kind not in kinds or dice.random() < 0.5:
            continue
        probability = dice.choice((0.25, 0.5, 0.9) if kind == "lost" else (0.1, 0.25, 0.5))
        if kind == "stray":
            place = dice.choice((SUBMIT, POLL))
            attached.add(stray.fault(), route=place, probability=probability)
            attached.add(stray.heard(), route=place)
        elif kind == "cached":
            attached.add(cache.fault(), route=USAGE, probability=probability)
        else:
            fault, route = _fault(kind, dice)
            attached.add(fault, route=route, probability=probability)
    return [f"{one.description}" for one in attached.attached() if not one.description.startswith("heard")]


def _fault(kind: str, dice: Random) -> tuple[Fault, str | None]:
    """Roll a fault of a kind, and the route that it strikes."""
    after_run = dice.random() < 0.6
    anywhere = dice.choice((SUBMIT, SUBMIT, None))
    stalled = faults.stalled(after_run=after_run)
    lost = faults.closed(after_run=after_run), faults.reset(after_run=after_run), stalled, faults.truncated()
    resets = faults.reset_unread(), faults.refused(), faults.dropped_keep_alive()
    proxies = faults.bad_gateway(after_run=after_run), faults.service_error(after_run=after_run)
    made: dict[str, tuple[Fault, str | None]] = {
        "lost": (dice.choice(lost), SUBMIT),
        "reset": (dice.choice(resets), None),
        "bad_gateway": (dice.choice(proxies), anywhere),
        "rate_limited": (faults.rate_limited(), anywhere),
        "html": (faults.login_page(after_run=after_run), anywhere),
        "foreign": (foreign(dice), anywhere),
        "not_found": (faults.not_found(), POLL),
        "untold": (untold(), POLL),
        "late_arrival": (held(dice.choice(HELD)), SUBMIT),
        "execution_failed": (execution_failed(), SUBMIT),
    }
    return made[kind]
