"""What follows an attempt: done, again after a pause, back to the head of the line, or an error. Pure.

There is no idempotency key (contract 4), so a paid run is sent again only when it certainly was not sent or was
refused with 429. Source of the rows: contract 6 and 7.

    the attempt ended as        reads, cancel, PUT, DELETE   create a workflow   submit and run (paid)
    ─────────────────────────   ──────────────────────────   ─────────────────   ─────────────────────
    not sent                    again                        again               again
    sent, no answer or cut      again                        NoAnswerError       SubmissionUnknownError
    429, the service's own      requeued, never an attempt   requeued            requeued
    429, anything else          requeued, never an attempt   requeued            SubmissionUnknownError
    2xx, as it was asked for    done                         done                done
    2xx, anything else          again                        InvalidResponseE.   SubmissionUnknownError
    400 to 404, own JSON        APIError                     APIError            APIError, nothing was run
    5xx, own JSON               again                        ServiceError        ServiceError, may have run
    3xx, other 4xx, own JSON    APIError                     APIError            SubmissionUnknownError
    3xx, 4xx, anything else     again                        APIError            SubmissionUnknownError
    5xx, anything else          again                        ServiceError        SubmissionUnknownError

Whose answer it is decides: "own JSON" is `{"error": <text>, ...}`, and a 429 whose body was cut short is the service's
own also by its X-RateLimit headers. A page of a proxy, firewall, CDN or login proves nothing of a paid run, for nobody
knows what was passed on before, and a read is repeated. So is what answers another question: the body of another run is
no answer to a poll, and that of a poll no receipt. 400 to 404 are the refusals of a run that contract 7 names; a status
that it does not name (409, 418, 460) proves nothing either, whatever says it.

"Again" ends after `Retries` in the error that the next column names. A DELETE that finds nothing (404) the second time
is done. EXECUTION_FAILED is the end of a synchronous run (ExecutionFailedError); in answer to a submit it is a
SubmissionUnknownError, and so is a 5xx that names the run, with the id.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeAlias, TypeVar

import attrs

from knouds_async import config, errors
from knouds_async._sansio import responses
from knouds_async._sansio.clock import UNDATED, Moment
from knouds_async._sansio.endpoints import Call, TimeoutKind
from knouds_async._sansio.responses import Answer, OtherAnswerError, UnreadableError
from knouds_async.config import Retries, is_integer
from knouds_async.errors import (
    APIError,
    ConnectionFailedError,
    ExecutionFailedError,
    InvalidResponseError,
    KnoudsError,
    NoAnswerError,
    SubmissionUnknownError,
)
from knouds_async.types import Record, Submitted

BY_CODE: Final[Mapping[str, type[APIError]]] = {
    "INVALID_INPUTS": errors.InvalidInputsError,
    "INVALID_SLUG": errors.InvalidSlugError,
    "INVALID_BODY": errors.InvalidBodyError,
    "INVALID_CAPABILITY": errors.InvalidCapabilityError,
    "INVALID_SCOPE": errors.InvalidScopeError,
    "ASYNC_NOT_SUPPORTED": errors.AsyncNotSupportedError,
    "LEGACY_KEY_RETIRED": errors.LegacyKeyRetiredError,
    "INSUFFICIENT_CREDITS": errors.InsufficientCreditsError,
    "grant_exhausted": errors.GrantExhaustedError,
    "CAPABILITY_DENIED": errors.CapabilityDeniedError,
    "CAPABILITY_ABOVE_CEILING": errors.CapabilityAboveCeilingError,
    "SCOPE_DENIED": errors.ScopeDeniedError,
    "MODEL_TIER_REQUIRED": errors.ModelTierRequiredError,
    "API_KEY_ACCESS_DENIED": errors.APIKeyAccessDeniedError,
    "MODEL_NOT_FOUND": errors.ModelNotFoundError,
    "EXECUTION_NOT_FOUND": errors.ExecutionNotFoundError,
    "RATE_LIMIT_EXCEEDED": errors.RateLimitError,
}

_FREE: Final = "Nothing was run"
_STRANGER: Final = "Check what stands in between: a proxy, a firewall, a login page"

_BY_STATUS: Final[Mapping[int, type[APIError]]] = {
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    402: errors.PaymentRequiredError,
    403: errors.PermissionDeniedError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
}


def class_of(status: int, code: str | None) -> type[APIError]:
    """Return the class of a refusal: by its code, else by its HTTP status.

    A code counts in a 4xx only, for its advice says that nothing was run; a 429 is a 429, whatever else it says.
    """
    if status >= 500:
        return errors.ServiceError
    if status < 400:
        return errors.UnexpectedRedirectError
    if status == 429:
        return errors.RateLimitError
    return BY_CODE.get(code or "") or _BY_STATUS.get(status, APIError)


def api_error(
    answer: Answer, call: Call[Any], *, may_have_run: bool = False, server_time: float | None = None
) -> KnoudsError:
    """Return the error of an answer outside 2xx; `server_time`: the service's clock in epoch seconds, for waits."""
    own = responses.service_error(answer)
    body = _json_object(answer) if own is None else own
    message = next((body[key] for key in ("error", "message") if isinstance(body.get(key), str)), None)
    code = body["code"] if isinstance(body.get("code"), str) else None
    if own is not None and code == "EXECUTION_FAILED" and call.pays_for is not None and answer.status != 429:
        return errors.ExecutionFailedError(own["error"], code=code)
    kind = class_of(answer.status, code)
    extra: dict[str, Any] = {}
    advice = _advice(kind, answer.status, call, is_own=own is not None)
    if issubclass(kind, errors.RateLimitError):
        asked = responses.retry_after(answer, server_time)
        limit = body.get("limit")
        extra = {"retry_after": asked, "limit": limit if is_integer(limit) else None, "is_pause": asked is not None}
        if asked is not None:
            advice = re.sub("([Ww]ait),", rf"\1 {asked:.0f} s,", advice, count=1)
    return kind(
        describe_body(answer) if message is None else message,
        status=answer.status,
        code=code,
        body=body or None,
        route=call.route,
        request=call.request,
        may_have_run=may_have_run,
        advice=advice,
        from_service=own is not None,
        **extra,
    )


def _advice(kind: type[APIError], status: int, call: Call[Any], *, is_own: bool) -> str:
    """Return the advice of a class; only that of a paid call refused with a 4xx says that nothing was run."""
    if not is_own and 400 <= status < 500 and status != 429:
        return _STRANGER
    if call.pays_for is None and issubclass(kind, errors.InvalidInputsError):
        return ""  # the inputs of what is no run have no schema
    if call.pays_for is not None and call.pays_for.kind == "models" and "knouds.workflows." in kind.advice:
        return _FREE
    if call.pays_for is None:
        first, _, rest = kind.advice.partition("; ")
        return f"{rest[:1].upper()}{rest[1:]}" if first.startswith(_FREE) else kind.advice
    if not 400 <= status < 500 or kind.advice.startswith(_FREE):
        return kind.advice
    return f"{_FREE}; {kind.advice[:1].lower()}{kind.advice[1:]}" if kind.advice else _FREE


def _json_object(answer: Answer) -> Mapping[str, Any]:
    try:
        body = responses.parsed(answer.body)
    except UnreadableError:
        return {}
    return body if isinstance(body, dict) else {}


def describe_body(answer: Answer) -> str:
    """Return what came instead of the service's JSON, in words of bounded length."""
    if 300 <= answer.status < 400:
        where = config.host_of(answer.headers.get("location", "")) or "somewhere unnamed"
        return f"a redirect to {where:.200}, which is never followed{_intermediary(answer)}"
    what = _type(answer) or "a body of no named type"
    return f"no JSON of the service but {what if answer.body.strip() else 'an empty body'}{_intermediary(answer)}"


def describe_sender(answer: Answer) -> str:
    """Return by status, type and headers who answered, in words of bounded length."""
    return f"{answer.status} {_type(answer) or 'of no named type'}{_intermediary(answer)}"


def _type(answer: Answer) -> str:
    return answer.headers.get("content-type", "").split(";")[0].strip()[:100]


def _intermediary(answer: Answer) -> str:
    """Return what an answer names itself: `server` and `via`."""
    named = [f"{name}: {answer.headers[name]:.100}" for name in ("server", "via") if answer.headers.get(name)]
    return f" ({', '.join(named)})" if named else ""


T = TypeVar("T")

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 8.0
_PROVEN: Final = frozenset({400, 401, 402, 403, 404})  # with the service's own words: the run was refused (contract 7)


@attrs.frozen(eq=False, repr=False)
class NotSent(Record):
    """The attempt certainly did not reach the service; `seen` says what happened instead.

    `hint`: what to do about a fault that does not pass, so that it is not tried again.
    """

    seen: str
    hint: str | None = None


@attrs.frozen(eq=False, repr=False)
class Unanswered(Record):
    """The request left, or may have left, and no answer came; `seen` says what came instead.

    `part`: what came of a body until the time had passed.
    """

    seen: str
    part: bytes = attrs.field(default=b"", repr=False)


@attrs.frozen(eq=False, repr=False)
class Garbled(Record):
    """The answer began and its body could not be read: cut short (`is_cut`), or refused as too large or malformed.

    `part`: what came of the body.
    """

    status: int
    headers: Mapping[str, str]
    seen: str
    is_cut: bool
    part: bytes = attrs.field(default=b"", repr=False)


Outcome: TypeAlias = Answer | NotSent | Unanswered | Garbled


@attrs.frozen(eq=False, repr=False)
class Done(Record, Generic[T]):
    """The call has ended with its value."""

    value: T


@attrs.frozen(eq=False, repr=False)
class Again(Record):
    """Another attempt, after a pause of `after` seconds."""

    after: float


@attrs.frozen(eq=False, repr=False)
class Requeue(Record):
    """The quota was used up (429): wait at the head of the line; this was no attempt."""


@attrs.frozen(eq=False, repr=False)
class Fail(Record):
    """The call has ended with an error."""

    error: KnoudsError


Decision: TypeAlias = Done[Any] | Again | Requeue | Fail


@attrs.frozen(kw_only=True, eq=False, repr=False)
class SoFar:
    """Where a call stands: attempts made, seconds spent on them and their pauses, when the last one left.

    `since`, `until`: moments before it left, and after which it begins no run any more. `server_time`: the service's
    clock now, epoch seconds, None while unknown. `was_sent`: an earlier attempt may have left.
    """

    attempts: int
    spent: float
    sent_at: datetime
    since: Moment = UNDATED
    until: Moment = UNDATED
    server_time: float | None = None
    was_sent: bool = False


def decide(call: Call[Any], outcome: Outcome, so_far: SoFar, retries: Retries, *, roll: float) -> Decision:
    """Decide what follows an attempt; `roll` is uniform in [0, 1)."""
    return _Attempt(call, so_far, retries, roll).ended(outcome)


@attrs.frozen(eq=False, repr=False)
class _Attempt:
    """An attempt at a call, where that stands, and how often and how long it may be tried."""

    call: Call[Any]
    so_far: SoFar
    retries: Retries
    roll: float

    def ended(self, outcome: Outcome) -> Decision:
        match outcome:
            case NotSent():
                return self._not_sent(outcome)
            case Unanswered(seen, part):
                return self._unanswered(seen, part)
            case Garbled(status, seen_headers, seen, is_cut, part):
                if not 200 <= status < 300:  # the status alone says what happened
                    return self._refused(Answer(status, seen_headers, b""), part, is_cut=is_cut)
                if is_cut:
                    return self._unanswered(seen, part)
                return self._unreadable(status, f"the answer was {status}; {seen}", part)
        if not 200 <= outcome.status < 300:
            return self._refused(outcome, outcome.body)
        return self._answered(outcome)

    def _not_sent(self, outcome: NotSent) -> Again | Fail:
        call, seen, is_paid = self.call, outcome.seen, self.call.pays_for is not None
        if (hint := outcome.hint) is not None:
            advice = f"Nothing was run; {hint}" if is_paid else f"{hint[:1].upper()}{hint[1:]}"
            lasting = ConnectionFailedError(f"{call.request}: not sent: {seen}. {advice}")
            lasting.is_lasting = True
            return Fail(lasting)
        advice = f"{'Nothing was run; check' if is_paid else 'Check'} the network and the base URL, then try again"
        error: KnoudsError = ConnectionFailedError(f"{call.request}: not sent: {seen}. {advice}")
        if self.so_far.was_sent and not is_paid:  # what was sent before of a paid run was refused with 429
            error = NoAnswerError(f"{call.request}: sent, but no answer came, and then no connection: {seen}")
        return self._again() or Fail(error)

    def _answered(self, answer: Answer) -> Done[Any] | Again | Fail:
        try:
            return Done(self.call.parse(answer))
        except UnreadableError as odd:
            what = "answers something else" if isinstance(odd, OtherAnswerError) else "has a body that cannot be read"
            seen = f"the answer {answer.status} {what}: {odd}"
            if self.call.pays_for is not None:
                return self._unknown(seen, answer.body, stranger=answer)
            return self._unreadable(answer.status, seen, b"")
        except Exception as error:  # noqa: BLE001  (a fault of a reader, ours or a library's; the run is paid all the same)
            seen = f"the answer {answer.status} could not be read: {type(error).__name__}: {error!s:.200}"
            return self._unreadable(answer.status, seen, answer.body)

    def _unanswered(self, seen: str, part: bytes) -> Again | Fail:
        advice = "Look whether the service acted on it before you repeat it"
        error = NoAnswerError(f"{self.call.request}: sent, but no answer came: {seen}. {advice}")
        return self._open(seen, part, error)

    def _unreadable(self, status: int, seen: str, part: bytes) -> Again | Fail:
        error = InvalidResponseError(f"{self.call.request}: {seen}", status=status, route=self.call.route)
        return self._open(seen, part, error)

    def _open(self, seen: str, part: bytes, error: KnoudsError) -> Again | Fail:
        """Leave it open what a paid request did; repeat another that may be repeated, or end it with `error`."""
        if self.call.pays_for is not None:
            return self._unknown(seen, part)
        return (self._again() if self.call.repeatable else None) or Fail(error)

    def _refused(self, answer: Answer, part: bytes, *, is_cut: bool = False) -> Decision:
        call = self.call
        if answer.status == 429 and (call.pays_for is None or responses.is_own_refusal(answer, is_cut=is_cut)):
            return self._limited(answer)
        if call.pays_for is not None:
            return self._refused_run(answer, part)
        is_own = responses.service_error(answer) is not None
        if is_own and answer.status == 404 and call.method == "DELETE" and self.so_far.was_sent:
            return Done(None)
        error = api_error(answer, call)
        if call.repeatable and (answer.status >= 500 or not is_own):
            asked = responses.retry_after(answer, self.so_far.server_time) or 0.0
            return self._again(at_least=asked) or Fail(error)
        return Fail(error)

    def _refused_run(self, answer: Answer, part: bytes) -> Fail:
        """End a paid request that was not taken: only the service's own documented words prove that."""
        own = responses.service_error(answer)
        error = api_error(answer, self.call, may_have_run=answer.status >= 500)
        is_open = isinstance(error, ExecutionFailedError) and self.call.timeout_kind is TimeoutKind.SUBMIT
        is_service = own is not None and (answer.status >= 500 or answer.status in _PROVEN)
        words = f" and not the service's own: {describe_body(answer)}" if own is None else f": {own['error']:.200}"
        stranger = None if is_service else answer
        unknown = self._unknown(f"the answer was {answer.status}{words}", part, stranger=stranger)
        return Fail(error) if is_service and not is_open and unknown.error.execution_id is None else unknown

    def _limited(self, answer: Answer) -> Requeue | Fail:
        """Requeue, unless the service asks for a wait too long to happen silently."""
        asked = responses.retry_after(answer, self.so_far.server_time)
        if asked is None or asked <= self.retries.longest:
            return Requeue()
        return Fail(api_error(answer, self.call, server_time=self.so_far.server_time))

    def _again(self, *, at_least: float = 0.0) -> Again | None:
        """Return the next attempt, unless attempts, patience or budget are used up.

        Full jitter: uniform between nothing and an exponential bound, so that many clients do not return together
        (M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015).
        """
        attempts, retries = self.so_far.attempts, self.retries
        doublings = min(attempts - 1, 10)  # beyond the longest pause; the power must not overflow
        pause = max(at_least, self.roll * min(LONGEST_PAUSE, FIRST_PAUSE * 2**doublings))
        is_over = attempts >= retries.attempts or pause > retries.longest
        return None if is_over or self.so_far.spent + pause > retries.budget else Again(pause)

    def _unknown(self, seen: str, part: bytes, *, stranger: Answer | None = None) -> Fail:
        """End a paid request with an open outcome; `stranger`: the answer that is not known to be the service's own."""
        is_submit = self.call.timeout_kind is TimeoutKind.SUBMIT
        error = unknown(
            self.call,
            seen,
            self.so_far,
            execution_id=responses.salvage_execution_id(part) if is_submit else None,
            status=None if stranger is None else stranger.status,
            intermediary=None if stranger is None else describe_sender(stranger),
        )
        return Fail(error)


def unknown(
    call: Call[Any],
    seen: str,
    so_far: SoFar,
    *,
    execution_id: str | None = None,
    status: int | None = None,
    intermediary: str | None = None,
) -> SubmissionUnknownError:
    """Return the error of a submit whose outcome is open, with what is certain of when it left."""
    is_dated = so_far.since.is_known and so_far.until.is_known
    return SubmissionUnknownError(
        target=str(call.pays_for),
        sent_at=so_far.sent_at,
        seen=seen,
        execution_id=execution_id,
        sent_after=_at(so_far.since.earliest) if is_dated else None,
        sent_before=_at(so_far.until.latest) if is_dated else None,
        status=status,
        intermediary=intermediary,
    )


def _at(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


MOST: Final = 10_000
"""Ids that are remembered; an answer that strays comes soon, or not at all."""


class ReceivedIds:
    """Remembers the latest ids, and which job each was given to."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._jobs: OrderedDict[str, str] = OrderedDict()

    def checked(self, call: Call[Any], decision: Decision, so_far: SoFar, job: str | None) -> Decision:
        """Return the decision, or an open outcome where the id in it is another job's.

        `job`: the job's name; None outside of batches, where nothing distinguishes submits.
        """
        found = _id_in(decision)
        if found is None or job is None:
            return decision
        if (owner := self._jobs.get(found)) is None:
            self._jobs[found] = job
            if len(self._jobs) > self._most:
                self._jobs.popitem(last=False)
            return decision
        which = f"execution {found!r}, which is the run of {owner}"
        return Fail(unknown(call, f"the answer names {which}", so_far, intermediary=f"an answer that names {which}"))


def _id_in(decision: Decision) -> str | None:
    match decision:
        case Done(Submitted(execution_id=found)) | Fail(SubmissionUnknownError(execution_id=str() as found)):
            return found
    return None
