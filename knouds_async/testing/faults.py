"""What can go wrong between a client and the service, to be attached to an emulator: `emulator.faults.add(...)`.

Each function below creates one `Fault`; `strikes.py` decides which request it strikes.
Money is at stake in one thing only: whether the service carried the request out, so most take `after_run`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import lru_cache

import attrs

from knouds_async.testing._service.replies import encoded, reply
from knouds_async.testing.messages import Broken, Fault, Response, Wire

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
    if after_run:
        return _broken("stalled", Wire.SLOW, after_run=True, seconds=seconds)
    return Fault("stalled", "held", lambda _: Broken(Wire.STALLED), seconds)


def bad_gateway(*, after_run: bool = False) -> Fault:
    """A proxy answers 502 with HTML, before or after the request is carried out."""
    return _instead("bad_gateway", Response(502, {"content-type": "text/html"}, _HTML), after_run=after_run)


def service_error(status: int = 503, *, after_run: bool = False) -> Fault:
    """The service answers 500 or 503 with its JSON, before or after the request is carried out."""
    body = {"error": "Service unavailable", "code": "INTERNAL_ERROR"}
    return _instead("service_error", reply(status, body), after_run=after_run)


def unknown_error(status: int = 400, code: str = "SOMETHING_NEW") -> Fault:
    """The service refuses with a code that nobody has documented; the request is not carried out."""
    return _instead("unknown_error", reply(status, {"error": "Something new", "code": code, "hint": ["new"]}))


def not_found() -> Fault:
    """The service answers 404, as for an execution that it does not know yet."""
    return _instead("not_found", reply(404, {"error": "Execution not found", "code": "EXECUTION_NOT_FOUND"}))


def rate_limited() -> Fault:
    """Something in front of the service answers 429 without a header or a time; the request is not carried out."""
    return _instead("rate_limited", reply(429, {"error": "Too many requests"}))


def redirect(location: str = "https://elsewhere.example/", status: int = 307) -> Fault:
    """Something in front of the service sends the client to another origin; the request is not carried out."""
    return _instead("redirect", Response(status, {"location": location}, b""))


def login_page(*, after_run: bool = False) -> Fault:
    """Something in front answers 200 with HTML, before or after the request is carried out."""
    return _instead("login_page", Response(200, {"content-type": "text/html"}, _LOGIN), after_run=after_run)


def truncated() -> Fault:
    """The connection is closed in the middle of the answer's body."""
    return _broken("truncated", Wire.TRUNCATED, after_run=True)


def dripping(seconds: float) -> Fault:
    """The answer's body comes one byte at a time, so many seconds apart."""
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
    return _changed("huge_body", lambda answer: attrs.evolve(answer, body=answer.body.ljust(size)))


def gzip_bomb(size: int = 64 * 2**20, layers: int = 1) -> Fault:
    """The answer is a small body that unpacks to a size, in bytes, packed once or more often."""

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
