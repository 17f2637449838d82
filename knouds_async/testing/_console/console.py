"""The state of an emulator as JSON, the control API under /__emulator__/, and who may use it; the page is beside it.

No key is needed, since this is a fake service on this machine; but requests must name a host of its own, and those that
change something must be JSON and come from no other site's page, so that a page open in a browser cannot interfere.
No key and no secret is shown. Names are those of the contract where it has one; times are seconds since the first
request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import attrs

from knouds_async.testing._service.endpoints import limits
from knouds_async.testing._service.replies import ErrorResponse, json_object, not_found, reply
from knouds_async.testing._service.runs import FAILURE, Run
from knouds_async.testing._service.state import Charge, ServiceState, WindowStatus
from knouds_async.testing.faults import GRAMMAR, Faults, FaultSpec, add_fault, parse_fault
from knouds_async.testing.messages import Fault, LoggedRequest, Request, RequestLog, Response
from knouds_async.testing.settings import Settings, change_settings, key_from

__all__ = ["Console", "ControlHooks", "PageQuery", "View", "is_for_console"]

_ROOT: Final = "/__emulator__"
_MOST: Final = 1000
JsonObject = dict[str, Any]
_HIDDEN: Final = frozenset({"api_key", "webhook_secret", "keys", "workflows", "models"})


class RunCounter:
    """Counts runs by status; a finished run is never checked again."""

    def __init__(self, service: ServiceState) -> None:
        self._service = service
        self.clear()

    def clear(self) -> None:
        """Reset the counts."""
        self._taken = 0
        self._running: list[Run] = []
        self._finished: Counter[str] = Counter()

    def at(self, now: float) -> Counter[str]:
        """Return the number of runs by status."""
        runs = self._service.runs
        self._running += runs[self._taken :]
        self._taken = len(runs)
        running = [run for run in self._running if not run.is_finished_at(now)]
        if len(running) < len(self._running):
            self._finished.update(run.end for run in self._running if run.is_finished_at(now))
            self._running = running
        return self._finished + Counter(run.status_at(now) for run in running)


@attrs.frozen
class View:
    """The state of an emulator at a time."""

    settings: Settings
    service: ServiceState
    faults: Faults
    requests: RequestLog
    counter: RunCounter
    now: float

    def state(self) -> JsonObject:
        """Return the totals: runs, credits, requests, windows, faults."""
        charges = self.service.billing
        return {
            "elapsed": self._since(self.now),
            "tier": self.settings.tier,
            "generation": self.settings.generation,
            "runs": {"total": len(self.service.runs), **self.counter.at(self.now)},
            "charges": {"total": len(charges.charges), "credits": charges.spent, "grant": charges.granted},
            "credits": self.settings.credits,
            "requests": {"total": self.requests.count, "refused": len(self.requests.refusals)},
            "windows": self.windows(),
            "faults": self.attached(),
        }

    def windows(self) -> list[JsonObject]:
        """Return the windows that are open."""
        return [row for row in self._window_rows() if row["resetsIn"] > 0]

    def limits(self) -> list[JsonObject]:
        """Return the limits of the emulator's own key, and of others that were used, whether or not one is open."""
        rows: dict[tuple[str, str], JsonObject] = {}
        if (caller := self.service.keys.get(self.settings.api_key)) is not None:
            for route, limit in limits(self.service, caller).items():
                unused = WindowStatus(caller.user, route, limit, used=0, resets_in=0.0)
                rows[caller.user, route] = _window_row(unused)
        rows |= {(row["user"], row["route"]): row for row in self._window_rows()}
        return [*rows.values()]

    def _window_rows(self) -> list[JsonObject]:
        return [_window_row(one) for one in self.service.windows.at(self.service.clock.elapsed(self.now))]

    def attached(self) -> list[JsonObject]:
        """Return the faults that are attached."""
        return [
            {"number": one.number, "fault": one.description, "met": one.met, "struck": one.struck}
            for one in self.faults.attached()
        ]

    def runs(self, *, limit: int, offset: int = 0, keep: Callable[[Run], bool] | None = None) -> list[JsonObject]:
        """Return the newest runs that `keep` accepts."""
        newest = reversed(self.service.runs)
        kept = newest if keep is None else filter(keep, newest)
        return [self.run(run) for run in islice(kept, offset, offset + limit)]

    def run(self, run: Run) -> JsonObject:
        """Return one run."""
        is_finished = run.is_finished_at(self.now)
        return {
            "executionId": run.execution_id,
            "requestId": run.request_id,
            "kind": run.kind,
            "target": run.target,
            "inputs": run.inputs,
            "modelIds": run.model_ids,
            "userId": run.user,
            "isAsync": run.is_async,
            "status": run.status_at(self.now),
            "cost": run.cost,
            "startedAt": self._since(run.started),
            "endsAt": self._since(run.ends),
            "cancelRequestedAt": None if run.cancel_requested_at is None else self._since(run.cancel_requested_at),
            "polls": run.polls,
            "endSeenAt": None if run.seen_ended_at is None else self._since(run.seen_ended_at),
            "error": run.error if is_finished and run.end == "failed" else None,
        }

    def run_and_result(self, run: Run) -> JsonObject:
        """Return one run with its result; null until it is completed."""
        has_result = run.is_finished_at(self.now) and run.has_result
        return {**self.run(run), "result": self.service.result(run) if has_result else None}

    def charges(self, *, limit: int, offset: int = 0) -> list[JsonObject]:
        """Return the newest charges."""
        return [self._charge(one) for one in islice(reversed(self.service.billing.charges), offset, offset + limit)]

    def latest_requests(self, *, limit: int, offset: int = 0) -> list[JsonObject]:
        """Return the newest requests that are kept."""
        return [self._request(one) for one in islice(reversed(list(self.requests)), offset, offset + limit)]

    def shown_settings(self) -> JsonObject:
        """Return the settings by their Python names; a callable as its repr."""
        fields = [field.name for field in attrs.fields(Settings) if field.name not in _HIDDEN]
        return {name: _plain(getattr(self.settings, name)) for name in fields}

    def _since(self, at: float) -> float:
        return round(self.service.clock.elapsed(at), 3)

    def _charge(self, charge: Charge) -> JsonObject:
        return {
            "executionId": charge.execution_id,
            "target": charge.target,
            "amount": charge.amount,
            "paidBy": charge.paid_by,
            "at": self._since(charge.at),
        }

    def _request(self, request: LoggedRequest) -> JsonObject:
        return {
            "method": request.method,
            "path": request.path,
            "route": request.route,
            "query": request.query,
            "status": request.status,
            "at": self._since(request.at),
        }


def _window_row(one: WindowStatus) -> JsonObject:
    return {
        "user": one.user,
        "route": one.route,
        "limit": one.limit,
        "used": one.used,
        "remaining": one.limit - one.used,
        "resetsIn": round(one.resets_in, 3),
    }


def _plain(value: object) -> object:
    if attrs.has(type(value)) and not callable(value):
        return {name: _plain(one) for name, one in attrs.asdict(value, recurse=False).items()}  # type: ignore[arg-type]
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | int | float) else repr(value)


@attrs.frozen
class PageQuery:
    """What a reader of the page asks for: all runs, those of one `status`, or one run by its id, under a host."""

    host: str
    status: str | None = None
    run: str | None = None


@attrs.frozen
class ControlHooks:
    """What the console calls: the emulator's methods (ValueError for what is impossible), and the page's renderer."""

    finish: Callable[[str, object], None]
    fail: Callable[[str, str], None]
    reset: Callable[[], None]
    send_test_webhook: Callable[[], None]
    page: Callable[[View, PageQuery], Response]


@attrs.frozen
class _ConsoleCall:
    """One request to the console, and the state it is about."""

    view: View
    request: Request
    subject: str

    def body(self) -> JsonObject:
        """Read the body, {} for none; 400 when it is no JSON object."""
        return json_object(self.request.body or b"{}")

    def fields(self, *names: str) -> JsonObject:
        """Read a body of fields with these names; 400 for another, which would be passed over."""
        body = self.body()
        if unknown := set(body) - set(names):
            raise ErrorResponse(400, "INVALID_BODY", f"there is no {min(unknown)!r}; there are: {', '.join(names)}")
        return body

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
        self._parts = (settings, service, faults, requests)
        self._counter = RunCounter(service)
        self._hooks = hooks
        self._settings = settings
        self._faults = faults

    def answer(self, request: Request, now: float) -> Response:
        """Answer one request to the console."""
        try:
            _check_host(request)
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
            return self._page, ""
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
            "GET runs/:id": lambda call: reply(200, call.view.run_and_result(_run(call))),
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

    def _page(self, call: _ConsoleCall) -> Response:
        if call.request.method != "GET":
            raise not_found("Endpoint")
        asked = PageQuery(call.request.headers.get("host", ""), call.query("status"), call.query("run"))
        return self._hooks.page(call.view, asked)

    def _finish(self, call: _ConsoleCall) -> Response:
        self._hooks.finish(_run(call).execution_id, call.fields("result").get("result"))
        return reply(200, call.view.run_and_result(_run(call)))

    def _fail(self, call: _ConsoleCall) -> Response:
        message = call.fields("message").get("message", FAILURE)
        if not isinstance(message, str):
            raise ErrorResponse(400, "INVALID_BODY", "'message' must be a string")
        self._hooks.fail(_run(call).execution_id, message)
        return reply(200, call.view.run_and_result(_run(call)))

    def _add_fault(self, call: _ConsoleCall) -> Response:
        """Attach {"fault": "closed after_run on submit nth=1"}, or {"script": ["closed", null], "route": …}."""
        body = call.fields("fault", "script", "route")
        fault, script, route = body.get("fault"), body.get("script"), body.get("route")
        if isinstance(fault, str) and script is None and route is None:
            number = add_fault(self._faults, fault)
        elif isinstance(script, list) and fault is None and (route is None or isinstance(route, str)):
            number = self._faults.add(script=[_step(step) for step in script], route=route)
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


def _step(step: object) -> Fault | None:
    """Return the fault of a step of a script; ValueError for one that says itself which requests it strikes."""
    if step is None:
        return None
    spec = parse_fault(str(step))
    if spec != FaultSpec(spec.fault):
        raise ValueError(f"script: {step!r} must be a fault alone: its place says which request it strikes")
    return spec.fault


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


_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to


def _check_host(request: Request) -> None:
    """Refuse a name that was re-bound to this machine: the page of another site asks under its own host.

    A browser always sends the host. A server for all addresses is also asked under them, and under names without a dot,
    such as a container's, which no other site can have.
    """
    host = request.headers.get("host")
    if request.hosts is None or host is None:
        return
    name = _host_name(host)
    if name in (*_LOOPBACK, *(one.lower().rstrip(".") for one in request.hosts)) or name.endswith(".localhost"):
        return
    is_dotless_or_address = name != "" and ("." not in name or name.replace(".", "").isdigit())
    if not (is_dotless_or_address and any(one in _EVERYWHERE for one in request.hosts)):
        raise ErrorResponse(421, None, "The console answers to localhost and to the host that it was started with")


def _host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets; "" when there is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _check_origin(request: Request) -> None:
    """Refuse requests of other sites' pages: a form cannot send JSON, and a script sends its origin."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise ErrorResponse(403, None, "The console takes nothing from another site's page")
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if request.body and kind != "application/json":
        raise ErrorResponse(415, None, "The console takes JSON: content-type must be application/json")
