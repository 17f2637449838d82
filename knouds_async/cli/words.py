"""Format an error as one line, in terms of the command line. Pure.

Where the library advises Python code, a command is advised instead.
"""

from __future__ import annotations

import re
from typing import Final

from knouds_async import errors
from knouds_async.cli.exits import ExitCode, exit_code_for

_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NOT_RUN: Final = "Nothing was run; "
_CHECK_FIRST: Final = "Check with `{}` before you run it again"

_ARGUMENT: Final = re.compile(
    r"(expected|limit|max_credits|max_in_flight)=(?=\S+: must be)"
)  # those that are options as well

# The first match counts; "" omits the library's advice.
_ADVICE: Final[tuple[tuple[type[errors.APIError], str], ...]] = (
    (errors.InvalidInputsError, "Nothing was run or charged; `knouds schema SLUG` shows what a workflow takes"),
    (errors.InvalidSlugError, "A slug is lowercase letters, digits and hyphens; `knouds workflows` lists yours"),
    (errors.UnexpectedRedirectError, "Redirects are never followed; check --base-url and $KNOUDS_BASE_URL"),
)


def one_line(text: str) -> str:
    """Return text as one line without control characters: servers write some of it."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """Return text with control and direction characters escaped; line ends and tabs stay."""
    return _CONTROLS.sub(lambda found: _escaped(found[0]), text)


def plural(number: int, what: str) -> str:
    """Return a count with its noun: `1 run`, `2 runs`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def format_error(error: BaseException) -> str:
    """Return what went wrong and what to do, in one line."""
    match error:
        case errors.SubmissionUnknownError():
            when = f"{error.sent_at:%Y-%m-%d %H:%M:%S} UTC"
            start = f"{error.target} was submitted at {when} and its outcome is unknown: {error.seen}. "
            return one_line(f"{start}{_describe_unknown(error)}")
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


def _as_option(argument: re.Match[str]) -> str:
    return f"--{argument[1].replace('_', '-')} "


def _describe_unknown(error: errors.SubmissionUnknownError) -> str:
    if error.execution_id is not None:
        check = f"`knouds status {error.execution_id}` shows it; do not run it again"
        return (
            f"The partial answer names execution {error.execution_id}, which most likely runs and is charged: {check}"
        )
    check = _CHECK_FIRST.format(_usage_command(error.target))
    return f"It may have run and been charged, so it was not sent again. {check}"


def _usage_command(target: str) -> str:
    """Return the command that lists the runs of a target, `workflows/<slug>` or `models/<name>`."""
    kind, _, name = target.partition("/")
    return f"knouds usage --{kind.removesuffix('s')} {name}"


def _format_api_error(error: errors.APIError) -> str:
    if exit_code_for(error) is ExitCode.MAY_HAVE_RUN:
        return f"{_without_advice(error)}. It may have run and been charged. {_CHECK_FIRST.format('knouds usage')}"
    advice = error.advice
    if isinstance(error, errors.RateLimitError):
        advice = f"{_NOT_RUN}{_retry_hint(error)}" if advice.startswith(_NOT_RUN) else _retry_hint(error).capitalize()
    elif error.from_service:
        advice = next((words for kind, words in _ADVICE if isinstance(error, kind)), error.advice)
    return f"{_without_advice(error)}. {advice}" if advice else _without_advice(error)


def _retry_hint(error: errors.RateLimitError) -> str:
    wait = "wait" if error.retry_after is None else f"wait {error.retry_after:,.0f} s"
    return f"{wait}, then try again"


def _without_advice(error: errors.APIError) -> str:
    return str(error).removesuffix(error.advice).rstrip(". ")
