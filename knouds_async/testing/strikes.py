"""Which request a fault strikes: always, by chance, the n-th, or by a script.

Rule of the file: pure and seeded; a decision is made once for a request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Final

import attrs

from knouds_async.testing._service.routes import ROUTES
from knouds_async.testing.messages import Fate, Fault, Request

__all__ = ["Faults", "Standing"]

_SUBMIT: Final = "?async=true"
_LABELS: Final = tuple(route.label for route in ROUTES)
_SELECTORS: Final = (*_LABELS, *(label + _SUBMIT for label in _LABELS if label.endswith("/run")))


@attrs.define(eq=False, kw_only=True)
class _Rule:
    """One attached fault: which requests it looks at, and which of those it strikes."""

    number: int
    said: str
    route: str | None
    strikes: Callable[[int], Fault | None]
    met: int = 0
    struck: int = 0

    def next_for(self, label: str, query: str) -> Fault | None:
        if self.route not in (None, label) and not (self.route == label + _SUBMIT and _is_submit(query)):
            return None
        self.met += 1
        return self.strikes(self.met)


@attrs.frozen
class Standing:
    """An attached fault in words, how many requests it has looked at, and how many of them it has struck."""

    number: int
    said: str
    met: int
    struck: int


class Faults:
    """The faults attached to an emulator; `struck` counts by name how often each has struck."""

    def __init__(self, seed: int) -> None:
        """Start with none; `seed` is for those that strike by chance."""
        self._seed = seed
        self.restart()

    def restart(self) -> None:
        """Detach all faults, count anew, and roll the same dice again."""
        self.struck: Counter[str] = Counter()
        self._rules: list[_Rule] = []
        self._count = 0
        self._dice = Random(f"{self._seed}:faults")

    def __bool__(self) -> bool:
        """Say whether any fault is attached."""
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
        several that would strike a request the one attached first does. Gives a number to `remove` it by. ValueError
        for what cannot be.
        """
        if route is not None and route not in _SELECTORS:
            raise ValueError(f"no route is called {route!r}; there are: {', '.join(_SELECTORS)}")
        if (fault is None) == (script is None) or (fault is None and (probability is not None or nth is not None)):
            raise ValueError("give either a fault (with probability or nth, if you like) or a script")
        strikes = _scripted(script) if fault is None else self._chosen(fault, probability, nth)
        self._count += 1
        said = _said(fault, route, probability, nth, script)
        self._rules.append(_Rule(number=self._count, said=said, route=route, strikes=strikes))
        return self._count

    def remove(self, number: int) -> None:
        """Detach one fault; KeyError when none has the number."""
        kept = [rule for rule in self._rules if rule.number != number]
        if len(kept) == len(self._rules):
            raise KeyError(number)
        self._rules = kept

    def attached(self) -> list[Standing]:
        """Tell of the attached faults, in order."""
        return [Standing(rule.number, rule.said, rule.met, rule.struck) for rule in self._rules]

    def clear(self) -> None:
        """Detach all faults."""
        self._rules.clear()

    def decide(self, label: str, request: Request) -> Fate:
        """Say which fault strikes a request on a route."""
        due = [(rule, rule.next_for(label, request.query)) for rule in self._rules]
        rule, fault = next(((rule, fault) for rule, fault in due if fault is not None), (None, None))
        if rule is not None and fault is not None:
            rule.struck += 1
            self.struck[fault.name] += 1
        return Fate(fault)

    def _chosen(
        self, fault: Fault, probability: float | None, nth: int | Collection[int] | None
    ) -> Callable[[int], Fault | None]:
        if probability is not None:
            if nth is not None or not 0 <= probability <= 1:
                raise ValueError("give a probability between 0 and 1, or nth, not both")
            return lambda _: fault if self._dice.random() < probability else None
        if nth is None:
            return lambda _: fault
        places = {nth} if isinstance(nth, int) else set(nth)
        if any(place < 1 for place in places):
            raise ValueError("nth counts from 1")
        return lambda place: fault if place in places else None


def _is_submit(query: str) -> bool:
    return _SUBMIT[1:] in query.split("&")


def _said(
    fault: Fault | None,
    route: str | None,
    probability: float | None,
    nth: int | Collection[int] | None,
    script: Sequence[Fault | None] | None,
) -> str:
    """Put an attached fault in words, much as the command line takes it."""
    place = f" on {route}" if route else ""
    if fault is None:
        return f"script: {', '.join(one.name if one else 'none' for one in script or ())}{place}"
    places = (nth,) if isinstance(nth, int) else sorted(nth or ())
    chance = "" if probability is None else f" {probability * 100:g}%"
    return f"{fault.said}{place}{' nth=' + ','.join(map(str, places)) if places else ''}{chance}"


def _scripted(script: Sequence[Fault | None] | None) -> Callable[[int], Fault | None]:
    steps = tuple(script or ())
    return lambda place: steps[place - 1] if place <= len(steps) else None
