"""The exit codes: the one table from error classes to codes, and the meaning of each code.

The code alone says whether money may have been spent (5) and what may be repeated.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from knouds_async import errors


class UsageError(Exception):
    """An option, an input or a file is invalid. Nothing was sent."""


class KeyMissingError(Exception):
    """$KNOUDS_KEY holds no valid key. Nothing was sent."""


class ServingError(Exception):
    """The emulator could not be served, e.g. because its port is in use."""


class ExitCode(IntEnum):
    """The exit codes of `knouds`."""

    OK = 0
    ERROR = 1
    USAGE = 2
    KEY = 3
    CREDITS = 4
    MAY_HAVE_RUN = 5
    TIMED_OUT = 6
    INTERRUPTED = 130


MEANINGS: Final = {
    ExitCode.OK: "success",
    ExitCode.ERROR: "another error, or a run failed or was cancelled",
    ExitCode.USAGE: "wrong usage: an option, the inputs, a slug; nothing was run",
    ExitCode.KEY: "the key is missing or refused, or may not do this",
    ExitCode.CREDITS: "the account cannot pay, or --max-credits is reached; nothing more was run",
    ExitCode.MAY_HAVE_RUN: "unknown: it may have run and been charged; check before you repeat it",
    ExitCode.TIMED_OUT: "--timeout passed; the run continues",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C); a submitted run continues",
}

# The first match counts.
CODES_BY_ERROR: Final[tuple[tuple[type[BaseException], ExitCode], ...]] = (
    (UsageError, ExitCode.USAGE),
    (KeyMissingError, ExitCode.KEY),
    (KeyboardInterrupt, ExitCode.INTERRUPTED),
    (errors.ExecutionFailedError, ExitCode.ERROR),
    (errors.ExecutionCancelledError, ExitCode.ERROR),
    (errors.WaitTimeoutError, ExitCode.TIMED_OUT),
    (errors.SubmissionUnknownError, ExitCode.MAY_HAVE_RUN),
    (errors.ConfigurationError, ExitCode.USAGE),
    (errors.InvalidArgumentError, ExitCode.USAGE),
    (errors.BadRequestError, ExitCode.USAGE),
    (errors.AuthenticationError, ExitCode.KEY),
    (errors.PermissionDeniedError, ExitCode.KEY),
    (errors.PaymentRequiredError, ExitCode.CREDITS),
    (errors.BudgetExceededError, ExitCode.CREDITS),
)


def exit_code_for(error: BaseException) -> ExitCode:
    """Return the exit code of an error; one after which a run may have started is never a harmless code."""
    if isinstance(error, errors.APIError) and not error.from_service:
        return (
            ExitCode.MAY_HAVE_RUN if error.may_have_run else ExitCode.ERROR
        )  # a firewall's 403 says nothing about the key
    for kind, code in CODES_BY_ERROR:
        if isinstance(error, kind):
            return code
    if isinstance(error, errors.KnoudsError) and error.may_have_run:
        return ExitCode.MAY_HAVE_RUN
    is_wrong_name = isinstance(error, errors.NotFoundError) and not isinstance(error, errors.ExecutionNotFoundError)
    return ExitCode.USAGE if is_wrong_name else ExitCode.ERROR


def exit_code_table() -> str:
    """Return the exit codes and their meanings, for `knouds --help`."""
    return "\n".join(f"{code.value:>5}  {meaning}" for code, meaning in MEANINGS.items())
