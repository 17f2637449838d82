"""The exit codes: the one table of error class to code, and what each code means.

Rule of the file: a script decides by the code alone whether money may have been spent (5) and what to repeat.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from knouds_async import errors


class UsageError(Exception):
    """The command line was wrong: an option, an input, a file. Nothing was sent."""


class KeyMissingError(Exception):
    """No usable key in $KNOUDS_KEY. Nothing was sent."""


class ServingError(Exception):
    """The emulator could not be served, e.g. because its port is taken."""


class Exit(IntEnum):
    """How `knouds` ends."""

    FINE = 0
    ERROR = 1
    USAGE = 2
    KEY = 3
    CREDITS = 4
    MAY_HAVE_RUN = 5
    TIMED_OUT = 6
    INTERRUPTED = 130


MEANINGS: Final = {
    Exit.FINE: "fine",
    Exit.ERROR: "another error, or a run failed or was cancelled",
    Exit.USAGE: "wrong usage: an option, the inputs, a slug; nothing was run",
    Exit.KEY: "the key is missing or refused, or may not do this",
    Exit.CREDITS: "the account cannot pay, or --max-credits is reached; nothing more was run",
    Exit.MAY_HAVE_RUN: "unknown: it may have run and been charged; look before you repeat it",
    Exit.TIMED_OUT: "--timeout passed; the run goes on",
    Exit.INTERRUPTED: "interrupted (Ctrl-C); a run that was submitted goes on",
}

# The first row that fits counts.
BY_ERROR: Final[tuple[tuple[type[BaseException], Exit], ...]] = (
    (UsageError, Exit.USAGE),
    (KeyMissingError, Exit.KEY),
    (KeyboardInterrupt, Exit.INTERRUPTED),
    (errors.ExecutionFailedError, Exit.ERROR),
    (errors.ExecutionCancelledError, Exit.ERROR),
    (errors.WaitTimeoutError, Exit.TIMED_OUT),
    (errors.SubmissionUnknownError, Exit.MAY_HAVE_RUN),
    (errors.ConfigurationError, Exit.USAGE),
    (errors.InvalidArgumentError, Exit.USAGE),
    (errors.BadRequestError, Exit.USAGE),
    (errors.AuthenticationError, Exit.KEY),
    (errors.PermissionDeniedError, Exit.KEY),
    (errors.PaymentRequiredError, Exit.CREDITS),
    (errors.BudgetExceededError, Exit.CREDITS),
)


def exit_of(error: BaseException) -> Exit:
    """Give the exit code of an error; one that leaves open whether a run began never looks harmless."""
    if isinstance(error, errors.APIError) and not error.from_service:
        return Exit.MAY_HAVE_RUN if error.may_have_run else Exit.ERROR  # a firewall's 403 says nothing of the key
    for kind, code in BY_ERROR:
        if isinstance(error, kind):
            return code
    if isinstance(error, errors.KnoudsError) and error.may_have_run:
        return Exit.MAY_HAVE_RUN
    is_a_wrong_name = isinstance(error, errors.NotFoundError) and not isinstance(error, errors.ExecutionNotFoundError)
    return Exit.USAGE if is_a_wrong_name else Exit.ERROR


def table() -> str:
    """Give the exit codes as text, for `knouds --help`."""
    return "\n".join(f"{code.value:>5}  {meaning}" for code, meaning in MEANINGS.items())
