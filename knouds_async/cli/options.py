"""The options that commands share, with their help."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from cyclopts import Parameter

from knouds_async.cli.exits import UsageError

BaseUrl: TypeAlias = Annotated[
    str | None,
    Parameter(name="--base-url", help="The service to talk to; else $KNOUDS_BASE_URL, else https://knouds.ai."),
]
Json: TypeAlias = Annotated[
    bool, Parameter(name="--json", show_default=False, help="Print JSON on stdout, for programs.")
]
Expected: TypeAlias = Annotated[
    float | None,
    Parameter(help="Seconds that such a run takes, if you know: it is then looked at in time, and seldom before."),
]
Slug: TypeAlias = Annotated[str, Parameter(help="The workflow's slug, as `knouds workflows` lists it.")]
ExecutionId: TypeAlias = Annotated[str, Parameter(help="The id that `knouds run` said when it submitted the run.")]


def check_expected(expected: float | None) -> None:
    """Refuse what is no expected duration, before anything is sent."""
    if expected is not None and not 0 < expected < 1e9:
        raise UsageError(f"--expected {expected:g}: must be a number of seconds above 0 and below 1e9")
