"""Fault rules: which request a fault strikes: every one, with a probability, the n-th, or by a script.

Seeded; a request's fault is decided once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Final

import attrs

from knouds_async.testing._service.endpoints import ROUTES
from knouds_async.testing.messages import Fault, FaultDecision, Request

__all__ = ["AttachedFault", "Faults"]

_SUBMIT: Final = "?async=true"
_LABELS: Final = tuple(route.label for route in ROUTES)
_SELECTORS: Final = (*_LABELS, *(label + _SUBMIT for label in _LABELS if label.endswith("/run")))


@attrs.define(eq=False, kw_only=True)
class _FaultRule:
    """One attached fault: the requests it applies to, and which of those it strikes."""

    number: int
    description: str
    route: str | None
    fault_at: Callable[[int], Fault | None]
    met: int = 0
    struck: int = 0

    def next_for(self, label: str, query: str) -> Fault | None:
        if self.route not in (None, label) and not (self.route == label + _SUBMIT and _is_submit(query)):
            return None
        self.met += 1
        return self.fault_at(self.met)


@attrs.frozen
class AttachedFault:
    """An attached fault in words, how many requests it has met, and how many of them it has struck."""

    number: int
    description: str
    met: int
    struck: int


class Faults:
    """The faults attached to an emulator; `struck` counts by name how often each has struck."""

    def __init__(self, seed: int) -> None:
        """Start with no faults; `seed` is for those with a probability."""
        self._seed = seed
        self.restart()

    def restart(self) -> None:
        """Detach all faults, reset the counters, and seed the random generator again."""
        self.struck: Counter[str] = Counter()
        self._rules: list[_FaultRule] = []
        self._count = 0
        self._rng = Random(f"{self._seed}:faults")

    def __bool__(self) -> bool:
        """Return whether any fault is attached."""
        return bool(self._rules)

    def add(
        self,
        fault: Fault | None = None,
        *,
        route: str | None = None,
        probability: float | None = None,
        nth: int | Collection[int] | None = None,
        script: Sequence[Fault | None] | None = None,
    ) -> int:
        """Attach a fault to a route (as the contract writes it, "?async=true" for submits alone; None: every route).

        It strikes every request there, or each with a `probability`, or the `nth` ones (from 1). A `script`
        instead of a fault says for request after request which fault strikes (None: none), and then stops. Of
        several that would strike a request the one attached first does. Returns a number to `remove` it by. ValueError
        for what cannot be.
        """
        if route is not None and route not in _SELECTORS:
            raise ValueError(f"no route is called {route!r}; there are: {', '.join(_SELECTORS)}")
        if (fault is None) == (script is None) or (fault is None and (probability is not None or nth is not None)):
            raise ValueError("give either a fault (with probability or nth, if you like) or a script")
        fault_at = _scripted(script) if fault is None else self._chosen(fault, probability, nth)
        self._count += 1
        description = _describe(fault, route, probability, nth, script)
        self._rules.append(_FaultRule(number=self._count, description=description, route=route, fault_at=fault_at))
        return self._count

    def remove(self, number: int) -> None:
        """Detach one fault; KeyError when none has the number."""
        kept = [rule for rule in self._rules if rule.number != number]
        if len(kept) == len(self._rules):
            raise KeyError(number)
        self._rules = kept

    def attached(self) -> list[AttachedFault]:
        """Return the attached faults, in order."""
        return [AttachedFault(rule.number, rule.description, rule.met, rule.struck) for rule in self._rules]

    def clear(self) -> None:
        """Detach all faults."""
        self._rules.clear()

    def decide(self, label: str, request: Request) -> FaultDecision:
        """Decide which fault strikes a request on a route."""
        due = [(rule, rule.next_for(label, request.query)) for rule in self._rules]
        rule, fault = next(((rule, fault) for rule, fault in due if fault is not None), (None, None))
        if rule is not None and fault is not None:
            rule.struck += 1
            self.struck[fault.name] += 1
        return FaultDecision(fault)

    def _chosen(
        self, fault: Fault, probability: float | None, nth: int | Collection[int] | None
    ) -> Callable[[int], Fault | None]:
        if probability is not None:
            if nth is not None or not 0 <= probability <= 1:
                raise ValueError("give a probability between 0 and 1, or nth, not both")
            return lambda _: fault if self._rng.random() < probability else None
        if nth is None:
            return lambda _: fault
        numbers = {nth} if isinstance(nth, int) else set(nth)
        if any(number < 1 for number in numbers):
            raise ValueError("nth counts from 1")
        return lambda number: fault if number in numbers else None


def _is_submit(query: str) -> bool:
    return _SUBMIT[1:] in query.split("&")


def _describe(
    fault: Fault | None,
    route: str | None,
    probability: float | None,
    nth: int | Collection[int] | None,
    script: Sequence[Fault | None] | None,
) -> str:
    """Describe an attached fault, much as the command line takes it."""
    place = f" on {route}" if route else ""
    if fault is None:
        return f"script: {', '.join(one.name if one else 'none' for one in script or ())}{place}"
    places = (nth,) if isinstance(nth, int) else sorted(nth or ())
    chance = "" if probability is None else f" {probability * 100:g}%"
    return f"{fault.description}{place}{' nth=' + ','.join(map(str, places)) if places else ''}{chance}"


def _scripted(script: Sequence[Fault | None] | None) -> Callable[[int], Fault | None]:
    steps = tuple(script or ())
    return lambda number: steps[number - 1] if number <= len(steps) else None
