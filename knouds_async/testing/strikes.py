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

__all__ = ["Faults"]

_SUBMIT: Final = "?async=true"
_LABELS: Final = tuple(route.label for route in ROUTES)
_SELECTORS: Final = (*_LABELS, *(label + _SUBMIT for label in _LABELS if label.endswith("/run")))


@attrs.define(eq=False, kw_only=True)
class _Rule:
    """One attached fault: which requests it looks at, and which of those it strikes."""

    route: str | None
    strikes: Callable[[int], Fault | None]
    met: int = 0

    def next_for(self, label: str, query: str) -> Fault | None:
        if self.route is not None and self.route not in (label, f"{label}?{query}"):
            return None
        self.met += 1
        return self.strikes(self.met)


class Faults:
    """The faults attached to an emulator; `struck` counts by name how often each has struck."""

    def __init__(self, seed: int) -> None:
        """Start with none; `seed` is for those that strike by chance."""
        self.struck: Counter[str] = Counter()
        self._rules: list[_Rule] = []
        self._dice = Random(f"{seed}:faults")

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
    ) -> None:
        """Attach a fault to a route (as the contract writes it, "?async=true" for submits alone; None: every route).

        It strikes every request there, or each with a `probability`, or the `nth` ones (from 1). A `script`
        instead of a fault says for request after request which fault strikes (None: none), and then stops. Of
        several that would strike a request the one attached first does. ValueError for what cannot be.
        """
        if route is not None and route not in _SELECTORS:
            raise ValueError(f"no route is called {route!r}; there are: {', '.join(_SELECTORS)}")
        if (fault is None) == (script is None) or (fault is None and (probability is not None or nth is not None)):
            raise ValueError("give either a fault (with probability or nth, if you like) or a script")
        strikes = _scripted(script) if fault is None else self._chosen(fault, probability, nth)
        self._rules.append(_Rule(route=route, strikes=strikes))

    def clear(self) -> None:
        """Detach all faults."""
        self._rules.clear()

    def decide(self, label: str, request: Request) -> Fate:
        """Say which fault strikes a request on a route."""
        due = [rule.next_for(label, request.query) for rule in self._rules]
        fault = next((one for one in due if one is not None), None)
        if fault is not None:
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


def _scripted(script: Sequence[Fault | None] | None) -> Callable[[int], Fault | None]:
    steps = tuple(script or ())
    return lambda place: steps[place - 1] if place <= len(steps) else None
