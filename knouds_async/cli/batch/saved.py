"""Download the files of a batch's results; files that an earlier run downloaded are kept."""

from __future__ import annotations

from pathlib import Path

from knouds_async import AsyncKnouds, DownloadError, Media, RunResult
from knouds_async._sansio.files import default_name
from knouds_async.cli import output
from knouds_async.cli.words import format_error
from knouds_async.types import EXTENSIONS


async def download_missing(knouds: AsyncKnouds, key: str, run: RunResult, folder: Path) -> tuple[Path, ...] | None:
    """Download the files that are missing and return all paths; print an error and return None when one fails."""
    paths = []
    try:
        for media in run.media:
            existing = _existing_file(media, folder)
            paths.append(await knouds.download(media, folder) if existing is None else existing)
    except DownloadError as error:
        output.print_error(f"files of {key}: {format_error(error)}; the same command tries again")
        return None
    return tuple(paths)


def _existing_file(media: Media, folder: Path) -> Path | None:
    """Return the path of a file that was downloaded before: a file under its final name is complete."""
    known = media.url_extension
    extensions = EXTENSIONS[media.kind] if known is None else (known,)
    paths = (folder / default_name(media, extension) for extension in extensions)
    return next((path for path in paths if path.is_file() and path.stat().st_size), None)
