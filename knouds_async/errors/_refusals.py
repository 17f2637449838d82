"""What the service refuses: a class for each status of HTTP, and below it one for each code (contract 7)."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from knouds_async.errors._base import KnoudsError

_MAY_HAVE_RUN: Final = "It may have run and been charged: check knouds.usage before you submit it anew"


class APIError(KnoudsError):
    """The service refused a request.

    `status`: the HTTP status (None when this library refused it before sending), `code`: the service's code,
    `message`: its words, `body`: the whole JSON body, `route`: the route pattern, `request`: the method and path that
    were asked for, `advice`: what to do next. `from_service`: whether the words are the service's own JSON; else
    something in between answered (a proxy, a firewall, a login page), and that says nothing of what was asked for.
    """

    advice: str = ""
    from_service: bool = True
    named: ClassVar[tuple[str, ...]] = ()  # words of the body that belong into the message

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
        asked = " ".join(str(part) for part in (request or route, "answered", status, code) if part) if status else code
        words = ", ".join(f"{key}: {word:.100}" for key in self.named if (word := self._word(key)) is not None)
        said = ": ".join(part for part in (asked, message.rstrip(". ")) if part) + (f" ({words})" if words else "")
        super().__init__(". ".join(part for part in (said, _MAY_HAVE_RUN if may_have_run else self.advice) if part))
        self.status = status
        self.code = code
        self.message = message
        self.route = route
        self.request = request
        self.may_have_run = may_have_run
        self.from_service = from_service

    def _word(self, key: str) -> str | None:
        """Return a word of the body, if it is there and a word."""
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
        return self._word("required")


class CapabilityAboveCeilingError(PermissionDeniedError):
    """A key was asked to give more than its owner has; `attempted` names it."""

    named = ("attempted",)

    @property
    def attempted(self) -> str | None:
        """The capability that was attempted."""
        return self._word("attempted")


class ScopeDeniedError(PermissionDeniedError):
    """The key's scope is too small (older generation); `required` and `actual` name both."""

    named = ("required", "actual")
    advice = "Nothing was run; make a key with the scope the service named"

    @property
    def required(self) -> str | None:
        """The scope that is needed."""
        return self._word("required")

    @property
    def actual(self) -> str | None:
        """The scope of the key."""
        return self._word("actual")


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

    `retry_after`: seconds to wait, `limit`: requests per window, where told. `is_pause`: whether the service asked for
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
