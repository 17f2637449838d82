"""`--save DIR`: download the files of a finished run into a folder.

The folder is created before anything is run; a failed download does not affect the result that was paid for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from knouds_async import AsyncKnouds, DownloadError, RunResult
from knouds_async.cli import output
from knouds_async.cli.exits import UsageError
from knouds_async.cli.words import format_error, one_line

Save = Annotated[
    Path | None,
    Parameter(
        name="--save",
        help="A folder for the files of the result, created if missing. Their paths are printed instead of their "
        "addresses; no existing file is overwritten.",
    ),
]


def create_folder(folder: Path | None) -> Path | None:
    """Create the folder; raises UsageError when that fails."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--save {one_line(str(folder))}: {why}") from None
    return folder


async def download_files(knouds: AsyncKnouds, run: RunResult, folder: Path) -> tuple[Path, ...] | None:
    """Download the files of a run and return their paths; print an error and return None when one fails."""
    try:
        return await knouds.download_all(run, folder)
    except DownloadError as error:
        output.print_error(f"{format_error(error)}; the run has finished and its result is on stdout")
        return None
