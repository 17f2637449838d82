"""Faults in words, for the command line, the control API and test markers: "closed after_run on submit nth=1,3".

The kinds and their arguments are read from `faults.py`, so that a new one can be named at once.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs

from knouds_async.testing import faults
from knouds_async.testing.messages import Fault
from knouds_async.testing.strikes import Faults

__all__ = ["GRAMMAR", "KINDS", "PLACES", "FaultSpec", "add_fault", "parse_fault", "takes"]

GRAMMAR: Final = "KIND [NAME=VALUE ...] [after_run] [on ROUTE] [nth=1,3 | probability=0.2 | 20%]"

KINDS: Final[dict[str, Callable[..., Fault]]] = {
    name: getattr(faults, name) for name in faults.__all__ if name != "Fault"
}

PLACES: Final = {
    "submit": "POST /api/workflows/:slug/run?async=true",
    "run": "POST /api/workflows/:slug/run",
    "submit-model": "POST /api/models/:internalName/run?async=true",
    "run-model": "POST /api/models/:internalName/run",
    "poll": "GET /api/executions/:id",
    "cancel": "POST /api/executions/:id/cancel",
    "usage": "GET /api/usage",
    "whoami": "GET /api/whoami",
}
"""Short names of the routes that matter; every other is named as the contract writes it, "GET /api/workflows"."""

_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "int": int,
    "float": float,
    "float | None": float,
    "str": str,
    "bytes": str.encode,
}
_METHODS: Final = ("GET", "POST", "PUT", "DELETE")


@attrs.frozen
class FaultSpec:
    """A fault and when it strikes: the arguments of `Faults.add`."""

    fault: Fault
    route: str | None = None
    probability: float | None = None
    nth: tuple[int, ...] | None = None


def add_fault(faults: Faults, text: str) -> int:
    """Attach a fault given in words and return its number; ValueError when they make no sense."""
    one = parse_fault(text)
    return faults.add(one.fault, route=one.route, probability=one.probability, nth=one.nth)


def parse_fault(text: str) -> FaultSpec:
    """Read a fault in words, as `GRAMMAR` has them; ValueError names what is wrong and what there is."""
    kind, *words = text.split() or [""]
    if kind not in KINDS:
        raise ValueError(
            f"fault {text!r}: no fault is called {kind!r}{_near(kind, KINDS)}; there are: {_listed(KINDS)}"
        )
    route, words = _route(text, words)
    options: dict[str, Any] = {}
    when: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name == "nth":
            when["nth"] = tuple(_read(text, word, int, part) for part in value.split(","))
        elif name == "probability" or re.fullmatch(r"[0-9.]+%", word):
            when["probability"] = _read(text, word, float, value or word[:-1]) / (1 if value else 100)
        else:
            options[name] = _option(text, kind, word)
    if len(when) == 2:
        raise ValueError(f"fault {text!r}: give nth or a probability, not both")
    return FaultSpec(KINDS[kind](**_complete(text, kind, options)), route, **when)


def takes(kind: str) -> list[str]:
    """Return the arguments of a kind of fault, as they are written: "seconds=...", "[after_run]"."""
    found = []
    for name, parameter in inspect.signature(KINDS[kind]).parameters.items():
        written = name if parameter.annotation == "bool" else f"{name}=..."
        found.append(written if parameter.default is inspect.Parameter.empty else f"[{written}]")
    return found


def _route(text: str, words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split "on ROUTE" from the words; a route is a short name, or a method and a path."""
    if "on" not in words:
        return None, list(words)
    place = words.index("on")
    before, after = list(words[:place]), list(words[place + 1 :])
    if after and after[0] in PLACES:
        return PLACES[after[0]], before + after[1:]
    if len(after) >= 2 and after[0].upper() in _METHODS:
        return f"{after[0].upper()} {after[1]}", before + after[2:]
    found = after[0] if after else ""
    raise ValueError(
        f"fault {text!r}: 'on' is followed by one of {_listed(PLACES)}, or by a method and a path, not by {found!r}"
    )


def _option(text: str, kind: str, word: str) -> Any:
    """Read an argument of a kind of fault: "seconds=30", or a bare "after_run"."""
    name, has_value, value = word.partition("=")
    parameter = inspect.signature(KINDS[kind]).parameters.get(name)
    if parameter is None:
        takes = _listed(inspect.signature(KINDS[kind]).parameters) or "nothing"
        raise ValueError(
            f"fault {text!r}: {word!r} makes no sense here; {kind} takes {takes}. A fault reads: {GRAMMAR}"
        )
    if parameter.annotation == "bool":
        if value.lower() not in ("", "true", "false"):
            raise ValueError(f"fault {text!r}: {name} is true or false, not {value!r}")
        return value.lower() != "false"
    if not has_value:
        raise ValueError(f"fault {text!r}: {name} needs a value, {name}=...")
    return _read(text, word, _READERS[parameter.annotation], value)


def _complete(text: str, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(KINDS[kind]).parameters.values()
    needed = [one.name for one in parameters if one.default is inspect.Parameter.empty and one.name not in options]
    if needed:
        raise ValueError(f"fault {text!r}: {kind} needs {needed[0]}=...")
    return options


def _read(text: str, word: str, reader: Callable[[str], Any], value: str) -> Any:
    try:
        return reader(value)
    except ValueError:
        raise ValueError(f"fault {text!r}: {word!r} is not a number") from None


def _near(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _listed(names: Any) -> str:
    return ", ".join(names)
