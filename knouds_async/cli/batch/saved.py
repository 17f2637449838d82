"""The files of a batch's results: fetched into a folder, those that an earlier run fetched left as they are."""

from __future__ import annotations

from pathlib import Path

from knouds_async import AsyncKnouds, DownloadError, Media, RunResult
from knouds_async._sansio.files import default_name
from knouds_async.cli import output
from knouds_async.cli.words import format_error
from knouds_async.types import EXTENSIONS


async def download_missing(knouds: AsyncKnouds, key: str, run: RunResult, folder: Path) -> tuple[Path, ...] | None:
    """Fetch what is not there yet and give the paths of all; None, and a word on stderr, when one cannot be had."""
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
    """Give the path of a file that was fetched before: such a name is there whole or not at all."""
    known = media.url_extension
    extensions = EXTENSIONS[media.kind] if known is None else (known,)
    paths = (folder / default_name(media, extension) for extension in extensions)
    return next((path for path in paths if path.is_file() and path.stat().st_size), None)
