"""The control API under /__emulator__/ and the status page at /: their routes and access checks.

No key is needed, since this is a fake service on this machine; but requests that change something must be JSON and come
from no other site's page, so that a page open in a browser cannot interfere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qs

import attrs

from knouds_async.testing._console.page import page
from knouds_async.testing._console.views import JsonObject, RunCounter, View
from knouds_async.testing._service.replies import ErrorResponse, json_object, not_found, reply
from knouds_async.testing._service.runs import FAILURE, Run
from knouds_async.testing._service.state import ServiceState
from knouds_async.testing.faults import GRAMMAR, Faults, add_fault, parse_fault
from knouds_async.testing.messages import Request, RequestLog, Response
from knouds_async.testing.settings import Settings, change_settings, key_from

__all__ = ["Console", "ControlHooks", "is_for_console"]

_ROOT: Final = "/__emulator__"
_MOST: Final = 1000


@attrs.frozen
class ControlHooks:
    """The emulator's methods that the control API calls; ValueError for what is impossible."""

    finish: Callable[[str, object], None]
    fail: Callable[[str, str], None]
    reset: Callable[[], None]
    send_test_webhook: Callable[[], None]


@attrs.frozen
class _ConsoleCall:
    """One request to the console, and the state it is about."""

    view: View
    request: Request
    subject: str

    def body(self) -> JsonObject:
        """Read the body, {} for none; 400 when it is no JSON object."""
        return json_object(self.request.body or b"{}")

    def query(self, name: str) -> str | None:
        """Return a parameter of the query."""
        return parse_qs(self.request.query).get(name, [None])[-1]

    def integer(self, name: str, default: int) -> int:
        """Return an integer parameter; 400 when it is none."""
        text = self.query(name) or str(default)
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ErrorResponse(400, "INVALID_BODY", f"{name}={text}: must be an integer")
        return int(text)


def is_for_console(request: Request) -> bool:
    """Return whether a request is for the console, not for the service."""
    path = request.path
    return path == "/" or path == _ROOT or path.startswith(f"{_ROOT}/")


class Console:
    """The console of one emulator."""

    def __init__(
        self, settings: Settings, service: ServiceState, faults: Faults, requests: RequestLog, hooks: ControlHooks
    ) -> None:
        """Create the console of an emulator's parts."""
        self._parts = (settings, service, faults, requests)
        self._counter = RunCounter(service)
        self._hooks = hooks
        self._settings = settings
        self._faults = faults

    def answer(self, request: Request, now: float) -> Response:
        """Answer one request to the console."""
        try:
            view = View(*self._parts, self._counter, now)
            if request.method == "HEAD":
                request = attrs.evolve(request, method="GET")
            elif request.method != "GET":
                _check_origin(request)
            handler, subject = self._route(request)
            return handler(_ConsoleCall(view, request, subject))
        except ErrorResponse as error:
            return error.response()
        except (TypeError, ValueError) as invalid:
            return reply(400, {"error": str(invalid), "code": "INVALID_BODY"})

    def _route(self, request: Request) -> tuple[Callable[[_ConsoleCall], Response], str]:
        if request.path == "/":
            return _page, ""
        parts = request.path.removeprefix(_ROOT).strip("/").split("/")
        pattern = f"{request.method} {'/'.join([parts[0], *(':id' for _ in parts[1:2]), *parts[2:]])}"
        handler = self._handlers().get(pattern)
        if handler is None:
            raise not_found(f"{request.method} {request.path}: GET {_ROOT}/ lists what there is; it was")
        return handler, parts[1] if len(parts) > 1 else ""

    def _handlers(self) -> dict[str, Callable[[_ConsoleCall], Response]]:
        return {
            "GET ": self._index,
            "GET state": lambda call: reply(200, call.view.state()),
            "GET runs": _runs,
            "GET runs/:id": lambda call: reply(200, call.view.run(_run(call))),
            "POST runs/:id/finish": self._finish,
            "POST runs/:id/fail": self._fail,
            "GET charges": lambda call: reply(200, {"rows": call.view.charges(**_paging(call))}),
            "GET requests": lambda call: reply(200, {"rows": call.view.latest_requests(**_paging(call))}),
            "GET windows": lambda call: reply(200, {"rows": call.view.windows()}),
            "GET faults": lambda call: reply(200, {"rows": call.view.attached(), "grammar": GRAMMAR}),
            "POST faults": self._add_fault,
            "DELETE faults": self._clear_faults,
            "DELETE faults/:id": self._remove_fault,
            "GET settings": lambda call: reply(200, call.view.shown_settings()),
            "PATCH settings": self._change,
            "POST keys": self._add_key,
            "POST test-webhook": self._test_webhook,
            "POST reset": self._reset,
        }

    def _index(self, _: _ConsoleCall) -> Response:
        routes = [f"{method} {_ROOT}/{path}" for method, _, path in (line.partition(" ") for line in self._handlers())]
        return reply(200, {"routes": routes, "faults": GRAMMAR})

    def _finish(self, call: _ConsoleCall) -> Response:
        self._hooks.finish(_run(call).execution_id, call.body().get("result"))
        return reply(200, call.view.run(_run(call)))

    def _fail(self, call: _ConsoleCall) -> Response:
        message = call.body().get("message", FAILURE)
        if not isinstance(message, str):
            raise ErrorResponse(400, "INVALID_BODY", "'message' must be a string")
        self._hooks.fail(_run(call).execution_id, message)
        return reply(200, call.view.run(_run(call)))

    def _add_fault(self, call: _ConsoleCall) -> Response:
        """Attach {"fault": "closed after_run on submit nth=1"}, or {"script": ["closed", null], "route": …}."""
        body = call.body()
        fault, script, route = body.get("fault"), body.get("script"), body.get("route")
        if isinstance(fault, str) and script is None:
            number = add_fault(self._faults, fault)
        elif isinstance(script, list) and fault is None and (route is None or isinstance(route, str)):
            steps = [None if step is None else parse_fault(str(step)).fault for step in script]
            number = self._faults.add(script=steps, route=route)
        else:
            raise ErrorResponse(400, "INVALID_BODY", f"give a 'fault', or a 'script' with a 'route': {GRAMMAR}")
        return reply(201, next(row for row in call.view.attached() if row["number"] == number))

    def _clear_faults(self, call: _ConsoleCall) -> Response:
        self._faults.clear()
        return reply(200, {"rows": call.view.attached()})

    def _remove_fault(self, call: _ConsoleCall) -> Response:
        try:
            self._faults.remove(int(call.subject))
        except (KeyError, ValueError):
            raise not_found(f"The fault {call.subject}") from None
        return reply(200, {"rows": call.view.attached()})

    def _change(self, call: _ConsoleCall) -> Response:
        change_settings(self._settings, call.body())
        return reply(200, call.view.shown_settings())

    def _add_key(self, call: _ConsoleCall) -> Response:
        """Create a key; the only answer that shows a key, and only the one created."""
        keys = call.view.service.keys
        made = key_from(call.body(), f"knouds_live_emulator_{len(keys)}")
        if made.text in keys:
            raise ErrorResponse(409, None, "There is a key with this text already")
        keys[made.text] = made
        return reply(201, {"key": made.text, "user": made.user, "capabilities": made.capabilities})

    def _test_webhook(self, _: _ConsoleCall) -> Response:
        self._hooks.send_test_webhook()
        return reply(202, {})

    def _reset(self, call: _ConsoleCall) -> Response:
        self._hooks.reset()
        self._counter.clear()
        return reply(200, call.view.state())


def _page(call: _ConsoleCall) -> Response:
    if call.request.method != "GET":
        raise not_found("Endpoint")
    return page(call.view, host=call.request.headers.get("host", ""), status=call.query("status"))


def _runs(call: _ConsoleCall) -> Response:
    status, target, now = call.query("status"), call.query("target"), call.view.now

    def is_asked_for(run: Run) -> bool:
        return status in (None, run.status_at(now)) and target in (None, run.target)

    rows = call.view.runs(**_paging(call), keep=is_asked_for)
    return reply(200, {"rows": rows, "total": len(call.view.service.runs)})


def _run(call: _ConsoleCall) -> Run:
    run = call.view.service.run(call.subject)
    if run is None:
        raise not_found("Execution")
    return run


def _paging(call: _ConsoleCall) -> dict[str, int]:
    return {"limit": min(_MOST, call.integer("limit", 50)), "offset": call.integer("offset", 0)}


def _check_origin(request: Request) -> None:
    """Refuse requests of other sites' pages: a form cannot send JSON, and a script sends its origin."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise ErrorResponse(403, None, "The console takes nothing from another site's page")
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if request.body and kind != "application/json":
        raise ErrorResponse(415, None, "The console takes JSON: content-type must be application/json")
