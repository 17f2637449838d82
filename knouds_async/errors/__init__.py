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

from knouds_async.errors._base import (
    ClientClosedError,
    ConfigurationError,
    ConnectionFailedError,
    InvalidArgumentError,
    InvalidResponseError,
    KnoudsError,
    NoAnswerError,
    WrongEventLoopError,
    _revive,
)
from knouds_async.errors._faults import (
    DownloadError,
    DownloadFault,
    WebhookFault,
    WebhookVerificationError,
)
from knouds_async.errors._refusals import (
    APIError,
    APIKeyAccessDeniedError,
    AsyncNotSupportedError,
    AuthenticationError,
    BadRequestError,
    CapabilityAboveCeilingError,
    CapabilityDeniedError,
    ConflictError,
    ExecutionNotFoundError,
    GrantExhaustedError,
    InsufficientCreditsError,
    InvalidBodyError,
    InvalidCapabilityError,
    InvalidInputsError,
    InvalidScopeError,
    InvalidSlugError,
    LegacyKeyRetiredError,
    ModelNotFoundError,
    ModelTierRequiredError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    RateLimitError,
    ScopeDeniedError,
    ServiceError,
    UnexpectedRedirectError,
)
from knouds_async.errors._runs import (
    BudgetExceededError,
    ExecutionCancelledError,
    ExecutionFailedError,
    LedgerError,
    SubmissionUnknownError,
    WaitTimeoutError,
)

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

for _kind in (_revive, *(globals()[name] for name in __all__)):
    _kind.__module__ = __name__  # where tracebacks and pickles name it, whichever file in here it stands in
