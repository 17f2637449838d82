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


class ExitCode(IntEnum):
    """How `knouds` ends."""

    OK = 0
    ERROR = 1
    USAGE = 2
    KEY = 3
    CREDITS = 4
    MAY_HAVE_RUN = 5
    TIMED_OUT = 6
    INTERRUPTED = 130


MEANINGS: Final = {
    ExitCode.OK: "fine",
    ExitCode.ERROR: "another error, or a run failed or was cancelled",
    ExitCode.USAGE: "wrong usage: an option, the inputs, a slug; nothing was run",
    ExitCode.KEY: "the key is missing or refused, or may not do this",
    ExitCode.CREDITS: "the account cannot pay, or --max-credits is reached; nothing more was run",
    ExitCode.MAY_HAVE_RUN: "unknown: it may have run and been charged; look before you repeat it",
    ExitCode.TIMED_OUT: "--timeout passed; the run goes on",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C); a run that was submitted goes on",
}

# The first row that fits counts.
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
    """Give the exit code of an error; one that leaves open whether a run began never looks harmless."""
    if isinstance(error, errors.APIError) and not error.from_service:
        return (
            ExitCode.MAY_HAVE_RUN if error.may_have_run else ExitCode.ERROR
        )  # a firewall's 403 says nothing of the key
    for kind, code in CODES_BY_ERROR:
        if isinstance(error, kind):
            return code
    if isinstance(error, errors.KnoudsError) and error.may_have_run:
        return ExitCode.MAY_HAVE_RUN
    is_wrong_name = isinstance(error, errors.NotFoundError) and not isinstance(error, errors.ExecutionNotFoundError)
    return ExitCode.USAGE if is_wrong_name else ExitCode.ERROR


def exit_code_table() -> str:
    """Give the exit codes as text, for `knouds --help`."""
    return "\n".join(f"{code.value:>5}  {meaning}" for code, meaning in MEANINGS.items())
