"""What can go wrong between a client and the service, to be attached to an emulator: `emulator.faults.add(...)`.

Each function below creates one `Fault`; `Faults` decides, seeded, which request it strikes; `parse_fault` reads it from
words, for the command line, the control API and test markers: "closed after_run on submit nth=1,3".
Money is at stake in one thing only: whether the service carried the request out, so most take `after_run`.
"""

from __future__ import annotations

import difflib
import gzip
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from random import Random
from typing import Any, Final

import attrs

from knouds_async.config import is_number
from knouds_async.testing._service.endpoints import ROUTES
from knouds_async.testing._service.replies import encoded, reply
from knouds_async.testing.messages import Broken, Fault, FaultDecision, Request, Response, Wire

__all__ = [
    "Fault",
    "bad_gateway",
    "closed",
    "deep_json",
    "dripping",
    "dropped_keep_alive",
    "empty_body",
    "gzip_bomb",
    "half_headers",
    "huge_body",
    "invalid_json",
    "login_page",
    "new_fields",
    "not_found",
    "rate_limited",
    "redirect",
    "refused",
    "reset",
    "reset_unread",
    "service_error",
    "stalled",
    "truncated",
    "unknown_error",
    "unknown_status",
    "unreachable",
    "wrong_types",
]

_HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>"

_LOGIN = b"<!doctype html><html><head><title>Sign in</title></head><body><form></form></body></html>"


def refused() -> Fault:
    """No connection comes about: nothing was sent. A real server resets the connection before it reads instead."""
    return Fault("refused", "unread", lambda _: Broken(Wire.REFUSED))


def unreachable() -> Fault:
    """The attempt to connect is never answered: nothing was sent. A real server never reads instead."""
    return Fault("unreachable", "unread", lambda _: Broken(Wire.UNREACHABLE))


def reset_unread() -> Fault:
    """The connection is reset before the service has read the request: it is not carried out."""
    return Fault("reset_unread", "unread", lambda _: Broken(Wire.RESET))


def reset(*, after_run: bool = False) -> Fault:
    """The connection is reset when the request has been read, before or after it is carried out; no answer."""
    return _broken("reset", Wire.RESET, after_run=after_run)


def closed(*, after_run: bool = False) -> Fault:
    """The connection is closed when the request has been read, before or after it is carried out; no answer."""
    return _broken("closed", Wire.CLOSED, after_run=after_run)


def stalled(seconds: float | None = None, *, after_run: bool = False) -> Fault:
    """The answer takes so many seconds more, or never comes (None), before or after the request is carried out.

    A request that is held up before is carried out after that time, even if its sender has gone.
    """
    if seconds is None:
        return _broken("stalled", Wire.STALLED, after_run=after_run)
    _check_range("seconds", seconds, 0, _LONGEST)
    if after_run:
        return _broken("stalled", Wire.SLOW, after_run=True, seconds=seconds)
    return Fault("stalled", "held", lambda _: Broken(Wire.STALLED), seconds)


def bad_gateway(*, after_run: bool = False) -> Fault:
    """A proxy answers 502 with HTML, before or after the request is carried out."""
    return _instead("bad_gateway", Response(502, {"content-type": "text/html"}, _HTML), after_run=after_run)


def service_error(status: int = 503, *, after_run: bool = False) -> Fault:
    """The service answers 500 or 503 with its JSON, before or after the request is carried out."""
    _check_range("status", status, 200, 599)
    body = {"error": "Service unavailable", "code": "INTERNAL_ERROR"}
    return _instead("service_error", reply(status, body), after_run=after_run)


def unknown_error(status: int = 400, code: str = "SOMETHING_NEW") -> Fault:
    """The service refuses with a code that nobody has documented; the request is not carried out."""
    _check_range("status", status, 200, 599)
    return _instead("unknown_error", reply(status, {"error": "Something new", "code": code, "hint": ["new"]}))


def not_found() -> Fault:
    """The service answers 404, as for an execution that it does not know yet."""
    return _instead("not_found", reply(404, {"error": "Execution not found", "code": "EXECUTION_NOT_FOUND"}))


def rate_limited() -> Fault:
    """Something in front of the service answers 429 without a header or a time; the request is not carried out."""
    return _instead("rate_limited", reply(429, {"error": "Too many requests"}))


def redirect(location: str = "https://elsewhere.example/", status: int = 307) -> Fault:
    """Something in front of the service sends the client to another origin; the request is not carried out."""
    _check_range("status", status, 200, 599)
    return _instead("redirect", Response(status, {"location": location}, b""))


def login_page(*, after_run: bool = False) -> Fault:
    """Something in front answers 200 with HTML, before or after the request is carried out."""
    return _instead("login_page", Response(200, {"content-type": "text/html"}, _LOGIN), after_run=after_run)


def truncated() -> Fault:
    """The connection is closed in the middle of the answer's body."""
    return _broken("truncated", Wire.TRUNCATED, after_run=True)


def dripping(seconds: float) -> Fault:
    """The answer's body comes one byte at a time, so many seconds apart."""
    _check_range("seconds", seconds, 0, _LONGEST)
    return _broken("dripping", Wire.DRIPPING, after_run=True, seconds=seconds)


def dropped_keep_alive() -> Fault:
    """The idle connection is closed without a word after the answer."""
    return _broken("dropped_keep_alive", Wire.DROPPED, after_run=True)


def invalid_json(body: bytes = b'{"status": ') -> Fault:
    """The answer says it is JSON and is not."""
    return _changed("invalid_json", lambda answer: attrs.evolve(answer, body=body))


def empty_body() -> Fault:
    """The answer has no body."""
    return _changed("empty_body", lambda answer: attrs.evolve(answer, body=b""))


def huge_body(size: int = 64 * 2**20) -> Fault:
    """The answer is followed by blanks up to a size, in bytes."""
    _check_range("size", size, 0, _LARGEST)
    return _changed("huge_body", lambda answer: attrs.evolve(answer, body=answer.body.ljust(size)))


def gzip_bomb(size: int = 64 * 2**20, layers: int = 1) -> Fault:
    """The answer is a small body that unpacks to a size, in bytes, packed once or more often."""
    _check_range("size", size, 0, _LARGEST)
    _check_range("layers", layers, 1, 99)

    def packed(answer: Response) -> Response:
        headers = {**answer.headers, "content-encoding": ", ".join(["gzip"] * layers)}
        return Response(answer.status, headers, _packed_blanks(size, layers))

    return _changed("gzip_bomb", packed)


def unknown_status(status: str = "awaiting_review") -> Fault:
    """The answer has a status that nobody has documented."""
    return _rewritten("unknown_status", lambda body: body | {"status": status} if "status" in body else body)


def wrong_types() -> Fault:
    """Every value at the top of the answer has another type than it should."""
    return _rewritten("wrong_types", lambda body: {name: _mistyped(value) for name, value in body.items()})


def new_fields() -> Fault:
    """The answer has more in it than the contract knows, as any day it may (contract 1)."""
    return _rewritten("new_fields", lambda body: body | {"newField": {"any": ["thing", 1, None]}, "priority": "high"})


def deep_json(depth: int = 100_000) -> Fault:
    """The answer is JSON, nested so many levels deep."""
    _check_range("depth", depth, 1, _LARGEST)
    return _changed("deep_json", lambda answer: attrs.evolve(answer, body=b"[" * depth + b"]" * depth))


def half_headers() -> Fault:
    """The answer lacks `Date`, its content type, and two of the three quota headers."""
    lost = {"date", "content-type", "x-ratelimit-remaining", "x-ratelimit-reset"}
    return _changed(
        "half_headers",
        lambda answer: attrs.evolve(
            answer, headers={name: text for name, text in answer.headers.items() if name not in lost}
        ),
    )


_LONGEST: Final = 86_400  # seconds
_LARGEST: Final = 2**32  # bytes


def _check_range(name: str, value: float, least: int, most: int) -> None:
    if not (is_number(value) and least <= value <= most):
        raise ValueError(f"{name} must be {least} to {most}, not {value!r}")


def _broken(name: str, wire: Wire, *, after_run: bool, seconds: float = 0.0) -> Fault:
    if after_run:
        return Fault(name, "after", lambda answer: Broken(wire, answer, processed=True, seconds=seconds))
    return Fault(name, "before", lambda _: Broken(wire, seconds=seconds))


def _instead(name: str, answer: Response, *, after_run: bool = False) -> Fault:
    def fresh(lost: Response | None) -> Response:
        date = lost.headers.get("date") if lost else None
        return attrs.evolve(answer, headers={**answer.headers, **({"date": date} if date else {})})

    return Fault(name, "after" if after_run else "before", fresh)


def _changed(name: str, change: Callable[[Response], Response]) -> Fault:
    return Fault(name, "after", lambda answer: Broken(Wire.CLOSED) if answer is None else change(answer))


def _rewritten(name: str, change: Callable[[dict[str, object]], dict[str, object]]) -> Fault:
    def rewrite(answer: Response) -> Response:
        body = json.loads(answer.body)
        return attrs.evolve(answer, body=encoded(change(body))) if isinstance(body, dict) else answer

    return _changed(name, rewrite)


def _mistyped(value: object) -> object:
    match value:
        case str():
            return {"text": value}
        case bool() | None:
            return "yes"
        case int() | float():
            return [value]
        case _:
            return 7


@lru_cache(maxsize=4)
def _packed_blanks(size: int, layers: int) -> bytes:
    body = b" " * size
    for _ in range(layers):
        body = gzip.compress(body, mtime=0)
    return body


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
    """The faults attached to an emulator; `struck` counts by name how often each has struck.

    `seed` is for those with a probability.
    """

    def __init__(self, seed: int) -> None:
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
            if nth is not None:
                raise ValueError("give a probability or nth, not both")
            _check_range("probability", probability, 0, 1)
            return lambda _: fault if self._rng.random() < probability else None
        if nth is None:
            return lambda _: fault
        numbers = {nth} if isinstance(nth, int) else set(nth)
        if wrong := sorted(number for number in numbers if number < 1):
            raise ValueError(f"nth counts from 1, so it is not {wrong[0]}")
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


GRAMMAR: Final = "KIND [NAME=VALUE ...] [after_run] [on ROUTE] [nth=1,3 | probability=0.2 | 20%]"

KINDS: Final[dict[str, Callable[..., Fault]]] = {name: globals()[name] for name in __all__ if name != "Fault"}

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
        is_percentage = re.fullmatch(r"[0-9.]+%", word) is not None
        name, _, value = word.partition("=")
        name = "probability" if is_percentage else name
        if name in options or name in when:
            raise ValueError(f"fault {text!r}: {name} is given twice")
        if name == "nth":
            when[name] = tuple(_read(text, word, int, part) for part in value.split(","))
        elif name == "probability":
            when[name] = _read(text, word, float, word[:-1]) / 100 if is_percentage else _read(text, word, float, value)
        else:
            options[name] = _option(text, kind, word)
    if len(when) == 2:
        raise ValueError(f"fault {text!r}: give nth or a probability, not both")
    try:
        return FaultSpec(KINDS[kind](**_complete(kind, options)), route, **when)
    except ValueError as error:
        raise ValueError(f"fault {text!r}: {error}") from None


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


def _complete(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(KINDS[kind]).parameters.values()
    needed = [one.name for one in parameters if one.default is inspect.Parameter.empty and one.name not in options]
    if needed:
        raise ValueError(f"{kind} needs {needed[0]}=...")
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
