"""How long things take on the emulated service: a number, a distribution, or a callable over a random generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import attrs

__all__ = ["Lognormal", "Seconds", "checked", "draw", "is_law", "is_number"]


def _is_above_zero(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{attribute.name} must be above zero and finite, not {value!r}")


@attrs.frozen
class Lognormal:
    """Durations spread log-normally round a median (seconds); `sigma` is the spread of their logarithm."""

    median: float = attrs.field(validator=_is_above_zero)
    sigma: float = attrs.field(default=0.35, validator=attrs.validators.ge(0))

    def __call__(self, dice: Random) -> float:
        """Draw one duration, in seconds."""
        return self.median * math.exp(dice.gauss(0.0, self.sigma))


Seconds = float | Callable[[Random], float]


def is_number(value: object) -> bool:
    """Tell whether a value is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def checked(name: str, law: Seconds) -> Seconds:
    """Give a law as it is; ValueError when it is a number that is no duration."""
    if not callable(law) and not (is_number(law) and 0 <= law < math.inf):
        raise ValueError(f"{name} must be finite seconds, zero or more, or a callable, not {law!r}")
    return law


def is_law(_: object, attribute: attrs.Attribute[Any], value: Seconds) -> None:
    """Check an attribute that is a law, as attrs' validators do."""
    checked(attribute.name, value)


def draw(law: Seconds, dice: Random) -> float:
    """Take one duration from a law; ValueError when a callable gives something that is no duration."""
    seconds = law(dice) if callable(law) else law
    if not 0 <= seconds < math.inf:
        raise ValueError(f"a duration must be a finite number of seconds, zero or more; {law!r} gave {seconds!r}")
    return seconds
