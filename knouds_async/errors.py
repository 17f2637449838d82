"""Every error this library raises, as one tree of plain data that pickles and holds no HTTP object.

    KnoudsError
    ├── ConfigurationError             the client cannot be built as asked (also a ValueError)
    ├── InvalidArgumentError           refused before any request (also a ValueError)
    ├── ClientClosedError              the client was closed (also a RuntimeError)
    ├── WrongEventLoopError            the client belongs to another event loop (also a RuntimeError)
    ├── ConnectionFailedError          certainly not sent: no connection, or none in time
    ├── NoAnswerError                  sent, but no answer came
    ├── InvalidResponseError           an answer that cannot be read
    ├── SubmissionUnknownError         a paid run may or may not have begun; never sent again by this library
    ├── APIError                       the service refused
    │   ├── BadRequestError            400
    │   │   ├── InvalidInputsError, InvalidSlugError (also raised before any request, with status None)
    │   │   ├── InvalidBodyError, InvalidCapabilityError, InvalidScopeError
    │   │   └── AsyncNotSupportedError
    │   ├── AuthenticationError        401
    │   │   └── LegacyKeyRetiredError
    │   ├── PaymentRequiredError       402
    │   │   └── InsufficientCreditsError, GrantExhaustedError
    │   ├── PermissionDeniedError      403
    │   │   ├── CapabilityDeniedError, CapabilityAboveCeilingError, ScopeDeniedError
    │   │   └── ModelTierRequiredError, APIKeyAccessDeniedError
    │   ├── NotFoundError              404
    │   │   └── ModelNotFoundError, ExecutionNotFoundError
    │   ├── ConflictError              409
    │   ├── RateLimitError             429
    │   ├── UnexpectedRedirectError    3xx
    │   └── ServiceError               5xx
    ├── ExecutionFailedError           the run ended as failed
    ├── ExecutionCancelledError        the run ended as cancelled
    ├── WaitTimeoutError               the wait ended, the run continues (also a TimeoutError)
    ├── BudgetExceededError            the credits reserved for a batch are used up
    ├── LedgerError                    a batch's ledger cannot be used, or not any more
    ├── DownloadError                  a file of a result was not downloaded
    └── WebhookVerificationError       a delivery that is not the service's

Each says in `may_have_run` whether a run may have begun, so whether money may have been spent by the call that
raised it; what ends a wait says yes, whatever it is, for the run exists. Codes: contract 7.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

__all__ = [
    "APIError",
    "APIKeyAccessDeniedError",
    "AsyncNotSupportedError",
    "AuthenticationError",
    "BadRequestError",
    "BudgetExceededError",
    "CapabilityAboveCeilingError",
    "CapabilityDeniedError",
    "ClientClosedError",
    "ConfigurationError",
    "ConflictError",
    "ConnectionFailedError",
    "DownloadError",
    "DownloadFault",
    "ExecutionCancelledError",
    "ExecutionFailedError",
    "ExecutionNotFoundError",
    "GrantExhaustedError",
    "InsufficientCreditsError",
    "InvalidArgumentError",
    "InvalidBodyError",
    "InvalidCapabilityError",
    "InvalidInputsError",
    "InvalidResponseError",
    "InvalidScopeError",
    "InvalidSlugError",
    "KnoudsError",
    "LedgerError",
    "LegacyKeyRetiredError",
    "ModelNotFoundError",
    "ModelTierRequiredError",
    "NoAnswerError",
    "NotFoundError",
    "PaymentRequiredError",
    "PermissionDeniedError",
    "RateLimitError",
    "ScopeDeniedError",
    "ServiceError",
    "SubmissionUnknownError",
    "UnexpectedRedirectError",
    "WaitTimeoutError",
    "WebhookFault",
    "WebhookVerificationError",
    "WrongEventLoopError",
]

KEY_BEGINNING: Final = "knouds_live_"  # of every key (contract 1)
_KEY: Final = re.compile(rf"{KEY_BEGINNING}\w+")


def safe_repr(value: object, most: int = 80) -> str:
    """Return the first `most` characters of a value's repr, for a message; what has none is named by its type.

    A key in the place of another value is not shown.
    """
    try:
        return f"{_KEY.sub(f'{KEY_BEGINNING}***', repr(value)):.{most}}"
    except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists in lists
        return f"a value of type {type(value).__name__}"


def _revive(kind: type[KnoudsError], args: tuple[Any, ...], fields: dict[str, Any]) -> KnoudsError:
    """Rebuild a pickled error without running its `__init__`, whose arguments are keywords."""
    error = kind.__new__(kind, *args)
    error.args = args  # an OSError, which TimeoutError is, does not take them from `__new__`
    error.__dict__.update(fields)
    return error


class KnoudsError(Exception):
    """The base of every error of this library.

    `may_have_run`: whether a paid run may have begun. `execution_id`: the run it is about, where one is known.
    """

    may_have_run: bool = False
    execution_id: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as plain data."""
        return _revive, (type(self), self.args, self.__dict__)


class ConfigurationError(KnoudsError, ValueError):
    """The client cannot be built as asked: key, tier, base URL or an option. Nothing was sent."""


class InvalidArgumentError(KnoudsError, ValueError):
    """An argument was refused before any request. Nothing was sent."""


class ClientClosedError(KnoudsError, RuntimeError):
    """The client was closed. Runs in progress continue: attach them in another client."""


class WrongEventLoopError(KnoudsError, RuntimeError):
    """The client was first used in another event loop. Build one client per loop."""


class ConnectionFailedError(KnoudsError):
    """No connection, or none in time: the request was certainly not sent.

    `is_lasting`: the fault does not pass by itself, an untrusted certificate say: it was not tried again.
    """

    is_lasting: bool = False


class NoAnswerError(KnoudsError):
    """The request was sent and no answer came, so whether the service acted on it is not known."""


class InvalidResponseError(KnoudsError):
    """The service, or something in front of it, answered what this library cannot read.

    `status`: the HTTP status, `route`: the route pattern that was called.
    """

    def __init__(
        self, message: str, *, status: int | None = None, route: str | None = None, may_have_run: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.route = route
        self.may_have_run = may_have_run


_MAY_HAVE_RUN: Final = "It may have run and been charged: check knouds.usage before you submit it anew"


class APIError(KnoudsError):
    """The service refused a request.

    `status`: the HTTP status (None when this library refused it before sending), `code`: the service's code,
    `message`: its words, `body`: the whole JSON body, `route`: the route pattern, `request`: the method and path that
    were asked for, `advice`: what to do next. `from_service`: whether the words are the service's own JSON; else
    something in between answered (a proxy, a firewall, a login page), and that says nothing of what was asked for.
    """

    advice: str = ""
    from_service: bool = True  # also of an error that was made without its arguments
    named: ClassVar[tuple[str, ...]] = ()  # fields of the body that the message repeats

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        body: Any = None,
        route: str | None = None,
        request: str | None = None,
        may_have_run: bool = False,
        advice: str | None = None,
        from_service: bool = True,
    ) -> None:
        self.body = body
        self.advice = self.advice if advice is None else advice
        answer = (
            " ".join(str(part) for part in (request or route, "answered", status, code) if part) if status else code
        )
        named = ", ".join(f"{key}: {value:.100}" for key in self.named if (value := self._field(key)) is not None)
        text = ": ".join(part for part in (answer, message.rstrip(". ")) if part) + (f" ({named})" if named else "")
        super().__init__(". ".join(part for part in (text, _MAY_HAVE_RUN if may_have_run else self.advice) if part))
        self.status = status
        self.code = code
        self.message = message
        self.route = route
        self.request = request
        self.may_have_run = may_have_run
        self.from_service = from_service

    def _field(self, key: str) -> str | None:
        """Return a field of the body, if it is a string."""
        value = self.body.get(key) if isinstance(self.body, dict) else None
        return value if isinstance(value, str) else None


class BadRequestError(APIError):
    """400: the request was refused as it stands."""

    advice = "Nothing was run"


class InvalidInputsError(BadRequestError, ValueError):
    """The inputs are missing, not an object, not JSON, or fail the workflow's validation."""

    advice = "Nothing was run or charged; compare the inputs with `await knouds.workflows.schema(slug)`"


class InvalidSlugError(BadRequestError, ValueError):
    """The slug or model name is malformed: lowercase letters, digits and hyphens only."""

    advice = "A slug is lowercase letters, digits and hyphens; `await knouds.workflows.list()` shows yours"


class InvalidBodyError(BadRequestError):
    """The body of the request was refused."""


class InvalidCapabilityError(BadRequestError):
    """A capability was named that does not exist."""


class InvalidScopeError(BadRequestError):
    """A scope was named that does not exist (older generation of keys)."""


class AsyncNotSupportedError(BadRequestError):
    """The provider behind the target cannot be polled, so it cannot be submitted. Nothing was charged."""

    advice = "Nothing was run or charged; use the synchronous `.run(...)` for this target"


class AuthenticationError(APIError):
    """401: the key is missing, revoked or invalid, or the account is not approved yet."""

    advice = "Check $KNOUDS_KEY, that the key is not revoked, and that the account is approved"


class LegacyKeyRetiredError(AuthenticationError):
    """The key is from before May 2026 and no longer valid."""

    advice = "Keys from before May 2026 are retired: make a new one in the dashboard and set $KNOUDS_KEY"


class PaymentRequiredError(APIError):
    """402: the account cannot pay for the run. Nothing was run."""

    advice = "Nothing was run"


class InsufficientCreditsError(PaymentRequiredError):
    """The account has too few credits."""

    advice = "Nothing was run; top up the account's credits"


class GrantExhaustedError(PaymentRequiredError):
    """The trial grant is used up."""

    advice = "Nothing was run; the trial grant is used up: upgrade the plan, a top-up does not help"


class PermissionDeniedError(APIError):
    """403: the key or the account may not do this."""

    advice = "Nothing was run"


class CapabilityDeniedError(PermissionDeniedError):
    """The key lacks a capability; `required` names it."""

    named = ("required",)
    advice = "Nothing was run; make a key with the capability the service named"

    @property
    def required(self) -> str | None:
        """The capability that is missing."""
        return self._field("required")


class CapabilityAboveCeilingError(PermissionDeniedError):
    """A key was asked to give more than its owner has; `attempted` names it."""

    named = ("attempted",)

    @property
    def attempted(self) -> str | None:
        """The capability that was attempted."""
        return self._field("attempted")


class ScopeDeniedError(PermissionDeniedError):
    """The key's scope is too small (older generation); `required` and `actual` name both."""

    named = ("required", "actual")
    advice = "Nothing was run; make a key with the scope the service named"

    @property
    def required(self) -> str | None:
        """The scope that is needed."""
        return self._field("required")

    @property
    def actual(self) -> str | None:
        """The scope of the key."""
        return self._field("actual")


class ModelTierRequiredError(PermissionDeniedError):
    """The model needs a higher tier than the account has."""

    advice = "Nothing was run; upgrade the account's tier or choose another model"


class APIKeyAccessDeniedError(PermissionDeniedError):
    """The route cannot be reached with an API key."""

    advice = "Use the dashboard for this"


class NotFoundError(APIError):
    """404: no such workflow, model, public schema or execution, or it is not yours."""

    advice = "Check the name, and that the key's account may see it"


class ModelNotFoundError(NotFoundError):
    """No such model in the registry."""

    advice = "Nothing was run; check the model's internal name"


class ExecutionNotFoundError(NotFoundError):
    """No such execution, or it is not this account's."""

    advice = "Check the id, and that the run was submitted with this account"


class ConflictError(APIError):
    """409: the thing is in a state that does not allow this, e.g. a run that is already finished."""

    advice = "Check its present state first"


class RateLimitError(APIError):
    """429: the quota of the window is used up and the wait is longer than allowed. Nothing was run.

    `retry_after`: seconds to wait, `limit`: requests per window, where known. `is_pause`: whether the service asked for
    that wait, so that every call on the route meets it; else it is the line for the quota that is long.
    """

    advice = "Nothing was run; wait, or allow longer waits (Retries(longest=...), Limiter(max_wait=...))"

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        limit: int | None = None,
        is_pause: bool = False,
        **answer: Any,
    ) -> None:
        super().__init__(message, **answer)
        self.retry_after = retry_after
        self.limit = limit
        self.is_pause = is_pause


class UnexpectedRedirectError(APIError):
    """3xx: the API redirected. The key and the body are not sent on to anywhere else."""

    advice = "Redirects are never followed; check base_url"


class ServiceError(APIError):
    """5xx: the service or something in front of it failed."""

    advice = "Try again later"


class SubmissionUnknownError(KnoudsError):
    """A submit left, and whether it began a run is not known. It was not and will not be sent again.

    `target`: what was submitted, e.g. `workflows/my-pipeline`. `sent_at`: when, by the service's clock where known.
    `sent_after`, `sent_before`: certain bounds, by the service's clock, of when it may have begun a run; None where
    that clock was not known. `seen`: what came instead of the answer. `execution_id`: the id, when the part of the
    answer that came held it; the run most likely exists then, and `knouds.executions.attach(error.execution_id)` picks
    it up. `status`, `intermediary`: of an answer that is not known to be the service's own, its HTTP status and who it
    names itself. Else search for it with `await knouds.usage.find_submission(error)` before you decide.
    """

    may_have_run = True

    def __init__(
        self,
        *,
        target: str,
        sent_at: datetime,
        seen: str,
        execution_id: str | None = None,
        sent_after: datetime | None = None,
        sent_before: datetime | None = None,
        status: int | None = None,
        intermediary: str | None = None,
    ) -> None:
        advice = (
            "It may have run and been charged, so it was not sent again. Search for it with "
            "knouds.usage.find_submission(error) before you submit it anew"
            if execution_id is None
            else f"The part that came names execution {execution_id}, so it most likely runs and is charged: "
            f"knouds.executions.attach({execution_id!r}) picks it up; do not submit it anew"
        )
        super().__init__(
            f"{target} was submitted at {sent_at.isoformat()} and its outcome is unknown: {seen}. {advice}"
        )
        self.target = target
        self.sent_at = sent_at
        self.sent_after = sent_after
        self.sent_before = sent_before
        self.seen = seen
        self.execution_id = execution_id
        self.status = status
        self.intermediary = intermediary


class ExecutionFailedError(KnoudsError):
    """The run ended as failed. Whether a failed run is charged is not documented.

    `code`, `message`: the service's; `state`: the last `ExecutionState`, None for a synchronous run.
    """

    may_have_run = True

    def __init__(
        self, message: str, *, code: str | None = None, execution_id: str | None = None, state: Any = None
    ) -> None:
        run = f"execution {execution_id}" if execution_id else "the run"
        why = message.rstrip(". ")
        super().__init__(f"{run} failed{f' with {code}' if code else ''}: {why}. It may have been charged")
        self.code = code
        self.message = message
        self.execution_id = execution_id
        self.state = state


class ExecutionCancelledError(KnoudsError):
    """The run ended as cancelled; it is charged all the same. `state.result` may still hold a result."""

    may_have_run = True

    def __init__(self, *, execution_id: str, state: Any = None) -> None:
        super().__init__(f"execution {execution_id} was cancelled; it is charged all the same")
        self.execution_id: str | None = execution_id
        self.state = state


class WaitTimeoutError(KnoudsError, TimeoutError):
    """The wait ended before the run did. The run continues: `execution` is its handle, wait on it again.

    `timeout`: the seconds that were waited.
    """

    may_have_run = True

    def __init__(self, *, execution: Any, execution_id: str, timeout: float) -> None:
        super().__init__(
            f"execution {execution_id} was not finished after {timeout:g} s; it continues: wait on error.execution "
            f"again, or pick it up anywhere with knouds.executions.attach({execution_id!r})"
        )
        self.execution = execution
        self.execution_id: str | None = execution_id
        self.timeout = timeout


class BudgetExceededError(KnoudsError):
    """The credits reserved for a batch do not cover the next run. Nothing more was submitted."""


class LedgerError(KnoudsError):
    """The ledger of a batch cannot be used: another kind of file, damaged, locked for too long, or the disk is full.

    The batch submits nothing more. What is on record stays; runs whose ids could not be written are logged at WARNING,
    and `may_have_run` tells whether there was anything of a run that could not be written. `unopened`: why a file could
    not be opened as a ledger at all; nothing was submitted then.
    """

    unopened: str | None = None


class WebhookFault(StrEnum):
    """Why a webhook delivery was refused."""

    SIGNATURE_MISSING = "signature_missing"
    """There is no signature header."""
    SIGNATURE_MALFORMED = "signature_malformed"
    """The header is not `t=<unix seconds>,v1=<hex>`, or too long, or holds too many signatures."""
    SIGNATURE_WRONG = "signature_wrong"
    """No signature matches any of the secrets."""
    OUT_OF_TIME = "out_of_time"
    """The signature is right, but too old or from the future."""
    BODY_TOO_LARGE = "body_too_large"
    """The body has more than 1 MiB."""
    BODY_MALFORMED = "body_malformed"
    """The signature is right, but the body is not an event."""
    MISCONFIGURED = "misconfigured"
    """The receiver's own fault: secrets, clock or tolerance cannot be used."""


class WebhookVerificationError(KnoudsError):
    """A webhook delivery was refused: not signed by the service, too old, or malformed; `reason` says which."""

    def __init__(self, message: str, *, reason: WebhookFault) -> None:
        super().__init__(message)
        self.reason = reason


class DownloadFault(StrEnum):
    """Why a file was not downloaded."""

    REFUSED_ADDRESS = "refused_address"
    """Not https, or a host that is not one of `media_hosts`; also where a redirect leads."""
    REFUSED_STATUS = "refused_status"
    """The host answered something else than the file."""
    WRONG_TYPE = "wrong_type"
    """What came is not of the kind that was promised."""
    TOO_LARGE = "too_large"
    """The file has more than `max_bytes`."""
    DROPPED = "dropped"
    """The connection broke or stalled again and again."""
    EXISTS = "exists"
    """There is a file of that name, and `overwrite` was not asked for."""
    NOT_WRITTEN = "not_written"
    """The file could not be written here."""


class DownloadError(KnoudsError):
    """A file of a result was not downloaded; `reason` says why. Nothing was run by asking for it.

    `host`: where the file lies; the rest of the address may hold a signature and is not kept. `path`: what is there
    already, where that is the reason.
    """

    path: Path | None = None

    def __init__(self, message: str, *, reason: DownloadFault, host: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.host = host
