"""The options that several commands share, with their help."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from cyclopts import Parameter

BaseUrl: TypeAlias = Annotated[
    str | None,
    Parameter(name="--base-url", help="The service's URL; else $KNOUDS_BASE_URL, else https://knouds.ai."),
]
Json: TypeAlias = Annotated[
    bool, Parameter(name="--json", show_default=False, help="Print JSON on stdout, for programs.")
]
Expected: TypeAlias = Annotated[
    float | None,
    Parameter(help="How many seconds such a run takes, if you know: it is then polled in time, and rarely before."),
]
Slug: TypeAlias = Annotated[str, Parameter(help="The workflow's slug, as `knouds workflows` lists it.")]
ExecutionId: TypeAlias = Annotated[str, Parameter(help="The id that `knouds run` printed when it submitted the run.")]
