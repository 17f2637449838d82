"""The errors of the command line, their exit codes, and the one line that each is printed as. Pure.

A line begins with what to do, as far as that is known; what happened comes after it.
The code alone says whether money may have been spent (5) and what may be repeated. Where the library advises Python
code, the message advises a command instead.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

from knouds_async import errors
from knouds_async._cli.output import one_line


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


_NOT_RUN: Final = "Nothing was run; "
_SAYS_SO: Final = re.compile(r"nothing was (run|sent|submitted)", re.IGNORECASE)
_CHECK_FIRST: Final = "Check with `{}` before you run it again"
_MAY_HAVE_RUN: Final = "It may have run and been charged"

_ARGUMENT: Final = re.compile(
    r"(expected|limit|max_credits|max_in_flight)=(?=\S+: must be)"
)  # those that are options as well

# In place of advice that names a Python call, or an argument.
_ADVICE: Final[tuple[tuple[type[errors.APIError], str], ...]] = (
    (errors.InvalidInputsError, "Nothing was run or charged; `knouds schema SLUG` shows what a workflow takes"),
    (errors.InvalidSlugError, "A slug is lowercase letters, digits and hyphens; `knouds workflows` lists yours"),
    (errors.UnexpectedRedirectError, "Redirects are never followed; check --base-url and $KNOUDS_BASE_URL"),
)


# Words of Python in messages that are no advice of their own, and those of the command line in their place.
_PHRASES: Final = (
    ("; pass overwrite=True to replace it", "; remove it, or give --save another folder"),
    (", or pass ssl_context=", ""),
    (" or pass ssl_context=", ""),
    ("could pass max_credits=", "could pass --max-credits "),
    ("; without `ledger=` a batch needs no such module", ""),
    ("`resolve` the job to the run it was, or `abandon` it", "`knouds batch --resolve` says which run it was"),
    ("`await ledger.rebind()`, or `knouds", "`knouds"),
    ("`await ledger.trust()` or `knouds", "`knouds"),
)


def format_error(error: BaseException) -> str:
    """Return what to do and what went wrong, in one line."""
    words = _format_error(error)
    for ours, theirs in _PHRASES:
        words = words.replace(ours, theirs)
    return words


def _format_error(error: BaseException) -> str:
    match error:
        case errors.ConnectionFailedError():
            what, _, advice = str(error).rpartition(". ")
            return one_line(f"{advice}: {what}" if what else advice)
        case errors.SubmissionUnknownError():
            when = f"{error.sent_at:%Y-%m-%d %H:%M:%S} UTC"
            what = f"{error.target} was submitted at {when} and its outcome is unknown: {error.seen}"
            return one_line(_describe_unknown(error, what))
        case errors.APIError():
            return one_line(_format_api_error(error))
        case errors.InvalidArgumentError():
            return one_line(_ARGUMENT.sub(_as_option, str(error)).removesuffix(", or None"))
        case KeyboardInterrupt():
            return "interrupted"
        case OSError():
            return one_line(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        case _:
            return one_line(str(error))


def format_before_run(error: BaseException) -> str:
    """Return what an error before the first run says, and that nothing was run."""
    words = format_error(error)
    return words if _SAYS_SO.search(words) else f"Nothing was run. {words}"


def _as_option(argument: re.Match[str]) -> str:
    return f"--{argument[1].replace('_', '-')} "


def _describe_unknown(error: errors.SubmissionUnknownError, what: str) -> str:
    if error.execution_id is not None:
        check = f"See `knouds status {error.execution_id}`, and do not run it again"
        return f"{check}: {what}. The partial answer names this execution, which most likely runs and is charged"
    check = _CHECK_FIRST.format(_usage_command(error.target))
    return f"{check}: {what}. {_MAY_HAVE_RUN}, so it was not sent again"


def _usage_command(target: str) -> str:
    """Return the command that lists the runs of a target, `workflows/<slug>` or `models/<name>`."""
    kind, _, name = target.partition("/")
    return f"knouds usage --{kind.removesuffix('s')} {name}"


def _format_api_error(error: errors.APIError) -> str:
    what = _without_advice(error)
    if exit_code_for(error) is ExitCode.MAY_HAVE_RUN:
        return f"{_CHECK_FIRST.format('knouds usage')}: {what}. {_MAY_HAVE_RUN}"
    advice = error.advice
    if isinstance(error, errors.RateLimitError):
        advice = f"{_NOT_RUN}{_retry_hint(error)}" if advice.startswith(_NOT_RUN) else _retry_hint(error).capitalize()
    elif error.from_service:
        is_python = any(words in error.advice for words in ("knouds.workflows.", "base_url"))
        advice = next((words for kind, words in _ADVICE if is_python and isinstance(error, kind)), error.advice)
    return f"{advice}: {what}" if advice else what


def _retry_hint(error: errors.RateLimitError) -> str:
    wait = "wait" if error.retry_after is None else f"wait {error.retry_after:,.0f} s"
    return f"{wait}, then try again"


def _without_advice(error: errors.APIError) -> str:
    what = str(error).removesuffix(error.advice)
    return (what.partition(f". {_MAY_HAVE_RUN}")[0] if error.may_have_run else what).rstrip(". ")
