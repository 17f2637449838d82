"""Spans and metrics through OpenTelemetry's API: the only module that imports it, and does nothing where it is missing.

Their names, attributes, units and buckets are documented in `docs/observability.md` and stable. No span, link or metric
holds inputs, results, URLs of files, the key, or text of the service's, which may repeat inputs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlsplit

from knouds_async._sansio.endpoints import Call, TimeoutKind
from knouds_async._sansio.responses import REFUSED, Answer
from knouds_async._sansio.retry import Again, Done, Fail, Garbled, NotSent, Requeue
from knouds_async._sansio.retry import Outcome as RequestOutcome
from knouds_async.config import __version__
from knouds_async.errors import (
    ConfigurationError,
    ExecutionCancelledError,
    ExecutionFailedError,
    KnoudsError,
    safe_repr,
)
from knouds_async.types import ExecutionState, RunResult, Status, Submitted, Target

if TYPE_CHECKING:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, Observation

# The names: part of the public surface.

SCOPE: Final = "knouds_async"

SUBMIT: Final = "knouds.submit"
RUN: Final = "knouds.run"
WAIT: Final = "knouds.wait"
POLL: Final = "knouds.poll"
SWEEP: Final = "knouds.sweep"
BATCH: Final = "knouds.batch"
WEBHOOK: Final = "knouds.webhook"

_RUN_SECONDS: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 900.0)
_NOTICE_SECONDS: Final = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
_QUEUE_SECONDS: Final = (0.0, 0.1, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0)
_MAX_LINKS: Final = 128  # as many as an SDK keeps, by default

Attributes: TypeAlias = Mapping[str, str | bool | int | float]
Quotas: TypeAlias = Callable[[], Iterable[tuple[str, int | None, int]]]
"""Reads, in any thread, of each route: its name, the requests left (None: unknown or not limited), and those queued."""
TracerProvider: TypeAlias = "trace.TracerProvider"
MeterProvider: TypeAlias = "metrics.MeterProvider"
SpanLink: TypeAlias = Any
"""The context of a span that another one serves; None where there is none."""


class Telemetry:
    """What one client reports. `server`: the URL of the service. Does nothing when not `enabled` or not installed."""

    def __init__(
        self,
        server: str,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        enabled: bool = True,
    ) -> None:
        self._api = _OpenTelemetry.load(tracer_provider, meter_provider) if enabled else None
        if enabled and self._api is None and not (tracer_provider is None and meter_provider is None):
            raise ConfigurationError(
                "tracer_provider, meter_provider: OpenTelemetry is not installed; pip install 'knouds-async[otel]'"
            )
        host = urlsplit(server).hostname
        version = {"knouds.client.version": __version__}
        self._common: Attributes = version if host is None else {"server.address": host, **version}

    def call(
        self, call: Call[Any], *, job_key: str | None = None, serves: Sequence[SpanLink] | None = None
    ) -> CallSpan:
        """Return how one call is reported; `serves`: for a poll or a listing, the spans of the waits that need it.

        Only paid calls, and those that serve waits, have a span.
        """
        name = _span_name(call, serves)
        if self._api is None or name is None:
            return CallSpan(self._api, None, call)
        span = Span(self._api, name, "CLIENT", _about_call(self._common, call, job_key), serves)
        return CallSpan(self._api, span, call)

    def wait(self, execution_id: str, target: Target | None) -> Span:
        """Return the span of one wait for a run."""
        return Span(self._api, WAIT, "INTERNAL", {**self._common, **_about(target, execution_id)})

    def batch(self, target: Target) -> Span:
        """Return the span of a whole `map`."""
        return Span(self._api, BATCH, "INTERNAL", {**self._common, **_about(target)})

    def webhook(self) -> Span:
        """Return the span in which a delivery is processed; below the span of the server that received it, if any."""
        return Span(self._api, WEBHOOK, "CONSUMER", self._common)

    def current(self) -> SpanLink:
        """Return the context of the current span, for a span that serves it to link to."""
        return None if self._api is None else self._api.current()

    def count_in_flight(self, change: int) -> None:
        """Count runs as in flight, or as in flight no more."""
        if self._api is not None and change:
            self._api.instruments.in_flight.add(change)

    def finished(self, state: ExecutionState, target: Target | None, *, noticed_after: float | None) -> None:
        """Count the end of a run; `noticed_after`: seconds since it finished, None when that is not known."""
        if self._api is None:
            return
        about = _about(target)
        if state.ms is not None:
            self._api.instruments.duration.record(state.ms / 1000, {**about, "knouds.status": _status(state.status)})
        if noticed_after is not None:
            self._api.instruments.notice.record(max(0.0, noticed_after))
        if state.cost:
            self._api.instruments.credits.add(state.cost, about)

    def job_finished(self, outcome: str) -> None:
        """Count a job of a batch; `outcome`: as in Progress, from completed to elsewhere."""
        if self._api is not None:
            self._api.instruments.jobs.add(1, {"knouds.status": outcome})

    def observe(self, quotas: Quotas) -> None:
        """Report the quotas that a bound method of a limiter returns, as long as the limiter lives."""
        if self._api is not None:
            self._api.instruments.observe(quotas)


def fields(event_name: str, **known: str | float | None) -> dict[str, str | float]:
    """Return the `extra` of a log record: plain JSON, without what is not known.

    The names stand in `docs/observability.md`: `event_name`, and never `event`, which structlog takes for the message.
    """
    return {"event_name": event_name, **{name: value for name, value in known.items() if value is not None}}


class Span:
    """A span that is current while its block runs; ERROR, with the type of the error, when an exception leaves it."""

    __slots__ = ("_api", "_attributes", "_kind", "_links", "_name", "_span", "_token")

    def __init__(
        self,
        api: _OpenTelemetry | None,
        name: str,
        kind: str,
        attributes: Attributes,
        links: Sequence[SpanLink] | None = None,
    ) -> None:
        self._api = api
        self._name = name
        self._kind = kind
        self._attributes = attributes
        self._links = links
        self._span: trace.Span | None = None
        self._token: Any = None

    def set(self, attributes: Attributes) -> None:
        """Set attributes."""
        if self._span is not None:
            self._span.set_attributes(attributes)

    def set_state(self, state: ExecutionState) -> None:
        """Set what is known of a run: its ids, its status and what it cost."""
        self.set(_about_value(state))

    def fail(self, error_type: str) -> None:
        """Mark the operation as failed, without a description; `error_type`: an HTTP status or a class of errors."""
        if self._span is not None and self._api is not None:
            self._span.set_attribute("error.type", error_type)
            self._span.set_status(self._api.trace.StatusCode.ERROR)

    def __enter__(self) -> Span:
        """Start it below the current span, or, where it has links, as a root."""
        if self._api is not None and self._api.has_tracer():
            self._span = self._start(self._api)
            self._token = self._api.context.attach(self._api.trace.set_span_in_context(self._span))
        return self

    def _start(self, api: _OpenTelemetry) -> trace.Span:
        links = [api.trace.Link(context) for context in (self._links or ())[:_MAX_LINKS] if context is not None]
        return api.tracer.start_span(
            self._name,
            None if self._links is None else api.context.Context(),
            api.trace.SpanKind[self._kind],
            attributes=self._attributes,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it. A cancellation is no error."""
        if self._span is not None and self._api is not None:
            self._api.context.detach(self._token)
            if isinstance(error, Exception):
                self.set(_about_error(error))
                self.fail(type(error).__name__)
            self._span.end()


class CallSpan:
    """How one call went, as the pipeline says; the span, if any, covers the wait for quota and all attempts.

    `attempts`: requests sent. `refusals`: 429s after which the call was queued again; they are no attempts. `waited`:
    seconds in the queue for quota. `value`: what the call returned, also where its caller was cancelled and never got
    it. `error`: the same for an error. `may_have_run`: a paid request was cut off before its answer.
    """

    __slots__ = ("_api", "_call", "_span", "attempts", "error", "may_have_run", "refusals", "value", "waited")

    def __init__(self, api: _OpenTelemetry | None, span: Span | None, call: Call[Any]) -> None:
        self._api = api
        self._span = span
        self._call = call
        self.attempts = 0
        self.refusals = 0
        self.waited = 0.0
        self.value: object = None
        self.error: KnoudsError | None = None
        self.may_have_run = False

    @property
    def execution_id(self) -> str | None:
        """The id of the run that the call is about, where that is known by now."""
        known = getattr(self.value, "execution_id", None) or getattr(self.error, "execution_id", None)
        return known or self._call.execution_id

    def attempted(self, outcome: RequestOutcome, decision: Done[Any] | Again | Requeue | Fail) -> None:
        """Count an attempt, and keep what it came to."""
        is_sent, is_requeued = not isinstance(outcome, NotSent), isinstance(decision, Requeue)
        self.attempts += is_sent and not is_requeued
        self.refusals += is_requeued
        self.value = decision.value if isinstance(decision, Done) else None
        self.error = decision.error if isinstance(decision, Fail) else None
        self._count_request(_request_outcome(outcome))

    def cut(self) -> None:
        """Count an attempt that was cancelled before its answer."""
        self.attempts += 1
        self.may_have_run = self._call.pays_for is not None
        self._count_request("unanswered")

    def _count_request(self, outcome: str) -> None:
        if self._api is not None:
            about = {"knouds.route": self._call.route}
            self._api.instruments.requests.add(1, {**about, "knouds.submit.outcome": outcome})
            if outcome == "refused":
                self._api.instruments.refusals.add(1, about)

    def __enter__(self) -> CallSpan:
        """Start the span."""
        if self._span is not None:
            self._span.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the span, and count the call."""
        if self._api is None:
            return
        if self.waited:
            self._api.instruments.waits.record(self.waited, {"knouds.route": self._call.route})
        outcome = None if self._call.pays_for is None else self._count_submit(self._api.instruments, error)
        if self._span is not None:
            self._span.set(self._result(outcome))
            self._span.__exit__(kind, error, traceback)

    def _count_submit(self, instruments: _Instruments, error: BaseException | None) -> str:
        outcome, about = self._outcome(error), _about(self._call.pays_for)
        instruments.submits.add(1, {**about, "knouds.submit.outcome": outcome})
        if isinstance(self.value, RunResult) and self.value.cost:
            instruments.credits.add(self.value.cost, about)
        return outcome

    def _outcome(self, error: BaseException | None) -> str:
        if self.value is not None:
            return "submitted"
        failure = self.error or error
        if self.may_have_run or (isinstance(failure, KnoudsError) and failure.may_have_run):
            return "submitted" if isinstance(failure, (ExecutionFailedError, ExecutionCancelledError)) else "unknown"
        return "not_run"

    def _result(self, outcome: str | None) -> Attributes:
        known: Attributes = {
            **_about(None, self.execution_id),
            **_about_value(self.value),
            "knouds.attempts": self.attempts,
            "knouds.rate_limit.refusals": self.refusals,
            "knouds.rate_limit.wait": round(self.waited, 6),
        }
        if outcome is None:
            return known
        error = {} if self.error is None else _about_error(self.error)
        return {**error, **known, "knouds.submit.outcome": outcome, "knouds.may_have_run": outcome != "not_run"}


# ---- Names and attributes


def _span_name(call: Call[Any], serves: Sequence[SpanLink] | None) -> str | None:
    if call.pays_for is not None:
        return RUN if call.timeout_kind is TimeoutKind.RUN else SUBMIT
    if serves is None:
        return None
    return SWEEP if "usage" in call.route else POLL


def _about_call(common: Attributes, call: Call[Any], job_key: str | None) -> Attributes:
    about = {
        **common,
        "http.request.method": call.method,
        "url.template": call.route.partition(" ")[2],
        **_about(call.pays_for),
    }
    return about if job_key is None else {**about, "knouds.job.key": job_key}


def _about(target: Target | None, execution_id: str | None = None) -> dict[str, str]:
    about = {} if target is None else {"knouds.target": str(target)}
    return about if execution_id is None else {**about, "knouds.execution.id": execution_id}


def _request_outcome(outcome: RequestOutcome) -> str:
    """Return what became of a request, in one word."""
    if isinstance(outcome, (Answer, Garbled)):
        if outcome.status == REFUSED:
            return "refused"
        return "ok" if isinstance(outcome, Answer) and outcome.status < HTTPStatus.MULTIPLE_CHOICES else "error"
    return "not_sent" if isinstance(outcome, NotSent) else "unanswered"


def _about_value(value: object) -> dict[str, str | float]:
    """Return what a receipt, a state or a result says of its run."""
    if not isinstance(value, (Submitted, ExecutionState, RunResult)):
        return {}
    known: dict[str, str | float | None] = {"knouds.execution.id": value.execution_id}
    if isinstance(value, RunResult):
        known |= {"knouds.status": str(Status.COMPLETED), "knouds.credits": value.cost}
    else:
        known |= {"knouds.request.id": value.request_id, "knouds.status": _status(value.status)}
    if isinstance(value, ExecutionState):
        known["knouds.credits"] = value.cost
    return {name: value for name, value in known.items() if value is not None}


def _status(status: Status | str) -> str:
    """Return a status that is documented; any other is a text of the service's, without bound."""
    return str(status) if isinstance(status, Status) else "other"


def _about_error(error: Exception) -> dict[str, str]:
    run = error.execution_id if isinstance(error, KnoudsError) else None
    return {"error.type": type(error).__name__, **_about(None, run)}


# ---- OpenTelemetry


class _Instruments:
    """The instruments of a meter provider: made once for each, for OpenTelemetry keeps what is made for ever."""

    def __init__(self, meter: metrics.Meter) -> None:
        counter, histogram, gauge = meter.create_counter, meter.create_histogram, meter.create_observable_gauge
        of = "knouds.client.{}".format
        self.submits: Final = counter(of("submits"), "{submit}", "Paid requests, by what became of them.")
        self.requests: Final = counter(of("requests"), "{request}", "Requests, each attempt counted.")
        self.refusals: Final = counter(of("rate_limit.refusals"), "{request}", "Requests refused by a 429.")
        self.credits: Final = counter(of("credits"), "{credit}", "What runs cost, once that is known.")
        self.jobs: Final = counter("knouds.batch.jobs", "{job}", "Jobs of batches that have an outcome.")
        self.in_flight: Final = meter.create_up_down_counter(
            of("executions.in_flight"), "{execution}", "Runs that were awaited and not yet seen to finish."
        )
        self.duration: Final = histogram(
            of("execution.duration"), "s", "How long runs took.", explicit_bucket_boundaries_advisory=_RUN_SECONDS
        )
        self.notice: Final = histogram(
            of("notice.delay"), "s", "How late ends were noticed.", explicit_bucket_boundaries_advisory=_NOTICE_SECONDS
        )
        self.waits: Final = histogram(
            of("rate_limit.wait"), "s", "Waits for quota.", explicit_bucket_boundaries_advisory=_QUEUE_SECONDS
        )
        self._limiters: Final[set[weakref.WeakMethod[Quotas]]] = set()
        gauge(of("rate_limit.remaining"), [self._remaining], "{request}", "Requests left in a route's window.")
        gauge(of("rate_limit.queue"), [self._queued], "{request}", "Requests that wait for quota.")

    def observe(self, quotas: Quotas) -> None:
        """Read these quotas too when metrics are exported, while the limiter whose method this is lives."""
        self._limiters.add(weakref.WeakMethod(quotas, self._limiters.discard))

    def _quotas(self) -> Iterator[tuple[str, int | None, int]]:
        for reference in tuple(self._limiters):
            if (quotas := reference()) is not None:
                yield from quotas()

    def _remaining(self, options: CallbackOptions) -> Iterable[Observation]:  # noqa: ARG002  (the callback's signature)
        from opentelemetry.metrics import Observation

        least: dict[str, int] = {}
        for route, remaining, _ in self._quotas():
            if remaining is not None:
                least[route] = min(remaining, least.get(route, remaining))
        return [Observation(remaining, {"knouds.route": route}) for route, remaining in least.items()]

    def _queued(self, options: CallbackOptions) -> Iterable[Observation]:  # noqa: ARG002  (the callback's signature)
        from opentelemetry.metrics import Observation

        return [Observation(sum(queued for _, _, queued in self._quotas()))]


_INSTRUMENTS: Final[weakref.WeakKeyDictionary[Any, _Instruments]] = weakref.WeakKeyDictionary()
"""By meter provider; those of the global provider, which may be set later, by the module that holds it."""


class _OpenTelemetry:
    """The tracer and the instruments of the providers that were given, or of the global ones, whenever they are set."""

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        from opentelemetry import context, metrics, trace

        if not isinstance(tracer_provider, trace.TracerProvider | None):
            raise ConfigurationError(f"tracer_provider={safe_repr(tracer_provider)}: must be a TracerProvider, or None")
        if not isinstance(meter_provider, metrics.MeterProvider | None):
            raise ConfigurationError(f"meter_provider={safe_repr(meter_provider)}: must be a MeterProvider, or None")
        self.context, self.trace = context, trace
        self._has_own = tracer_provider is not None
        self.tracer = trace.get_tracer(SCOPE, __version__, tracer_provider)
        is_global = meter_provider is None or meter_provider is metrics.get_meter_provider()
        owner = metrics if is_global else meter_provider
        if owner not in _INSTRUMENTS:
            meter = metrics.get_meter(SCOPE, __version__, None if is_global else meter_provider)
            _INSTRUMENTS[owner] = _Instruments(meter)
        self.instruments: Final = _INSTRUMENTS[owner]

    @classmethod
    def load(
        cls, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None
    ) -> _OpenTelemetry | None:
        """Return it, or None where it is not installed. Imported with the first client, for that takes its time."""
        try:
            return cls(tracer_provider, meter_provider)
        except ImportError:
            return None

    def has_tracer(self) -> bool:
        """Return whether anybody wants spans: without an SDK, none are made."""
        return self._has_own or not isinstance(self.trace.get_tracer_provider(), self.trace.ProxyTracerProvider)

    def current(self) -> SpanLink:
        """Return the context of the current span, None where there is none."""
        span = self.trace.get_current_span().get_span_context() if self.has_tracer() else None
        return span if span is not None and span.is_valid else None
