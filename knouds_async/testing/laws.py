"""How long things take on the emulated service: a number, a distribution, or a callable over a random generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import attrs

__all__ = ["Lognormal", "Seconds", "checked_seconds", "draw", "is_number", "is_seconds"]


def _is_above_zero(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{attribute.name} must be above zero and finite, not {value!r}")


@attrs.frozen
class Lognormal:
    """Durations spread log-normally round a median (seconds); `sigma` is the spread of their logarithm."""

    median: float = attrs.field(validator=_is_above_zero)
    sigma: float = attrs.field(default=0.35, validator=attrs.validators.ge(0))

    def __call__(self, rng: Random) -> float:
        """Draw one duration, in seconds."""
        return self.median * math.exp(rng.gauss(0.0, self.sigma))


Seconds = float | Callable[[Random], float]


def is_number(value: object) -> bool:
    """Return whether a value is a number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def checked_seconds(name: str, value: Seconds) -> Seconds:
    """Return a duration or distribution unchanged; ValueError for a number that is no duration."""
    if not callable(value) and not (is_number(value) and 0 <= value < math.inf):
        raise ValueError(f"{name} must be finite seconds, zero or more, or a callable, not {value!r}")
    return value


def is_seconds(_: object, attribute: attrs.Attribute[Any], value: Seconds) -> None:
    """Check an attribute that is a duration or distribution, as an attrs validator."""
    checked_seconds(attribute.name, value)


def draw(value: Seconds, rng: Random) -> float:
    """Draw one duration; ValueError when a callable returns something that is no duration."""
    seconds = value(rng) if callable(value) else value
    if not 0 <= seconds < math.inf:
        raise ValueError(f"a duration must be a finite number of seconds, zero or more; {value!r} returned {seconds!r}")
    return seconds
