"""The control API under /__emulator__/ and the status page at /: what they are, and who may ask.

Rule of the file: pure, as the service is. No key is needed, for it is a fake service on this machine; but what changes
something must be JSON and come from no other site's page, so that a page open in a browser cannot meddle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qs

import attrs

from knouds_async.testing._console.page import page
from knouds_async.testing._console.views import JsonObject, Tally, View
from knouds_async.testing._service.bodies import json_object
from knouds_async.testing._service.lifecycle import FAILURE, Run
from knouds_async.testing._service.replies import Refusal, not_found, reply
from knouds_async.testing._service.service import Service
from knouds_async.testing.fault_text import GRAMMAR, add_fault, parse_fault
from knouds_async.testing.from_json import change_settings, key_from
from knouds_async.testing.journal import RequestLog
from knouds_async.testing.messages import Request, Response
from knouds_async.testing.settings import Settings
from knouds_async.testing.strikes import Faults

__all__ = ["Console", "Hand", "is_for_console"]

_ROOT: Final = "/__emulator__"
_MOST: Final = 1000


@attrs.frozen
class Hand:
    """What can be done to an emulator by hand; ValueError when it cannot."""

    finish: Callable[[str, object], None]
    fail: Callable[[str, str], None]
    reset: Callable[[], None]
    send_test_webhook: Callable[[], None]


@attrs.frozen
class _Asked:
    """One request to the console, and the state it is about."""

    view: View
    request: Request
    subject: str

    def body(self) -> JsonObject:
        """Read the body, {} for none; 400 when it is no JSON object."""
        return json_object(self.request.body or b"{}")

    def query(self, name: str) -> str | None:
        """Give a parameter of the query."""
        return parse_qs(self.request.query).get(name, [None])[-1]

    def whole(self, name: str, default: int) -> int:
        """Give a parameter that is a whole number; 400 when it is not."""
        text = self.query(name) or str(default)
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise Refusal(400, "INVALID_BODY", f"{name}={text}: must be a whole number")
        return int(text)


def is_for_console(request: Request) -> bool:
    """Tell whether a request is for the console, not for the service."""
    path = request.path
    return path == "/" or path == _ROOT or path.startswith(f"{_ROOT}/")


class Console:
    """The console of one emulator."""

    def __init__(self, settings: Settings, service: Service, faults: Faults, requests: RequestLog, hand: Hand) -> None:
        """Take the emulator's parts."""
        self._parts = (settings, service, faults, requests)
        self._tally = Tally(service)
        self._hand = hand
        self._settings = settings
        self._faults = faults

    def answer(self, request: Request, now: float) -> Response:
        """Answer one request to the console."""
        try:
            view = View(*self._parts, self._tally, now)
            if request.method == "HEAD":
                request = attrs.evolve(request, method="GET")
            elif request.method != "GET":
                _check_origin(request)
            handler, subject = self._route(request)
            return handler(_Asked(view, request, subject))
        except Refusal as refusal:
            return refusal.response()
        except (TypeError, ValueError) as error:
            return reply(400, {"error": str(error), "code": "INVALID_BODY"})

    def _route(self, request: Request) -> tuple[Callable[[_Asked], Response], str]:
        if request.path == "/":
            return _page, ""
        parts = request.path.removeprefix(_ROOT).strip("/").split("/")
        pattern = f"{request.method} {'/'.join([parts[0], *(':id' for _ in parts[1:2]), *parts[2:]])}"
        handler = self._handlers().get(pattern)
        if handler is None:
            raise not_found(f"{request.method} {request.path}: GET {_ROOT}/ tells what there is; it was")
        return handler, parts[1] if len(parts) > 1 else ""

    def _handlers(self) -> dict[str, Callable[[_Asked], Response]]:
        return {
            "GET ": self._index,
            "GET state": lambda asked: reply(200, asked.view.state()),
            "GET runs": _runs,
            "GET runs/:id": lambda asked: reply(200, asked.view.run(_run(asked))),
            "POST runs/:id/finish": self._finish,
            "POST runs/:id/fail": self._fail,
            "GET charges": lambda asked: reply(200, {"rows": asked.view.charges(**_paging(asked))}),
            "GET requests": lambda asked: reply(200, {"rows": asked.view.latest_requests(**_paging(asked))}),
            "GET windows": lambda asked: reply(200, {"rows": asked.view.windows()}),
            "GET faults": lambda asked: reply(200, {"rows": asked.view.attached(), "grammar": GRAMMAR}),
            "POST faults": self._add_fault,
            "DELETE faults": self._clear_faults,
            "DELETE faults/:id": self._remove_fault,
            "GET settings": lambda asked: reply(200, asked.view.shown_settings()),
            "PATCH settings": self._change,
            "POST keys": self._add_key,
            "POST test-webhook": self._test_webhook,
            "POST reset": self._reset,
        }

    def _index(self, _: _Asked) -> Response:
        routes = [f"{method} {_ROOT}/{path}" for method, _, path in (line.partition(" ") for line in self._handlers())]
        return reply(200, {"routes": routes, "faults": GRAMMAR})

    def _finish(self, asked: _Asked) -> Response:
        self._hand.finish(_run(asked).execution_id, asked.body().get("result"))
        return reply(200, asked.view.run(_run(asked)))

    def _fail(self, asked: _Asked) -> Response:
        message = asked.body().get("message", FAILURE)
        if not isinstance(message, str):
            raise Refusal(400, "INVALID_BODY", "'message' must be text")
        self._hand.fail(_run(asked).execution_id, message)
        return reply(200, asked.view.run(_run(asked)))

    def _add_fault(self, asked: _Asked) -> Response:
        """Attach {"fault": "closed after_run on submit nth=1"}, or {"script": ["closed", null], "route": …}."""
        body = asked.body()
        fault, script, route = body.get("fault"), body.get("script"), body.get("route")
        if isinstance(fault, str) and script is None:
            number = add_fault(self._faults, fault)
        elif isinstance(script, list) and fault is None and (route is None or isinstance(route, str)):
            steps = [None if step is None else parse_fault(str(step)).fault for step in script]
            number = self._faults.add(script=steps, route=route)
        else:
            raise Refusal(400, "INVALID_BODY", f"give a 'fault' or a 'script' with a 'route'. A fault reads: {GRAMMAR}")
        return reply(201, next(row for row in asked.view.attached() if row["number"] == number))

    def _clear_faults(self, asked: _Asked) -> Response:
        self._faults.clear()
        return reply(200, {"rows": asked.view.attached()})

    def _remove_fault(self, asked: _Asked) -> Response:
        try:
            self._faults.remove(int(asked.subject))
        except (KeyError, ValueError):
            raise not_found(f"The fault {asked.subject}") from None
        return reply(200, {"rows": asked.view.attached()})

    def _change(self, asked: _Asked) -> Response:
        change_settings(self._settings, asked.body())
        return reply(200, asked.view.shown_settings())

    def _add_key(self, asked: _Asked) -> Response:
        """Make a key; the only answer that shows one, and only the one that it made."""
        keys = asked.view.service.keys
        made = key_from(asked.body(), f"knouds_live_emulator_{len(keys)}")
        if made.text in keys:
            raise Refusal(409, None, "There is a key with this text already")
        keys[made.text] = made
        return reply(201, {"key": made.text, "user": made.user, "capabilities": made.capabilities})

    def _test_webhook(self, _: _Asked) -> Response:
        self._hand.send_test_webhook()
        return reply(202, {})

    def _reset(self, asked: _Asked) -> Response:
        self._hand.reset()
        self._tally.clear()
        return reply(200, asked.view.state())


def _page(asked: _Asked) -> Response:
    if asked.request.method != "GET":
        raise not_found("Endpoint")
    return page(asked.view, host=asked.request.headers.get("host", ""), status=asked.query("status"))


def _runs(asked: _Asked) -> Response:
    status, target, now = asked.query("status"), asked.query("target"), asked.view.now

    def is_asked_for(run: Run) -> bool:
        return status in (None, run.status_at(now)) and target in (None, run.target)

    rows = asked.view.runs(**_paging(asked), keep=is_asked_for)
    return reply(200, {"rows": rows, "total": len(asked.view.service.runs)})


def _run(asked: _Asked) -> Run:
    run = asked.view.service.run(asked.subject)
    if run is None:
        raise not_found("Execution")
    return run


def _paging(asked: _Asked) -> dict[str, int]:
    return {"limit": min(_MOST, asked.whole("limit", 50)), "offset": asked.whole("offset", 0)}


def _check_origin(request: Request) -> None:
    """Refuse what another site's page sends: a form cannot send JSON, and a script tells where it comes from."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise Refusal(403, None, "The console takes nothing from another site's page")
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if request.body and kind != "application/json":
        raise Refusal(415, None, "The console takes JSON: content-type must be application/json")
