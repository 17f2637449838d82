"""The files of a batch's results: fetched into a folder, those that an earlier run fetched left as they are."""

from __future__ import annotations

from pathlib import Path

from knouds_async import AsyncKnouds, DownloadError, Media, RunResult
from knouds_async._sansio.files import default_name
from knouds_async.cli import output
from knouds_async.cli.words import said_of
from knouds_async.types import EXTENSIONS


async def save(knouds: AsyncKnouds, key: str, run: RunResult, folder: Path) -> tuple[Path, ...] | None:
    """Fetch what is not there yet and give the paths of all; None, and a word on stderr, when one cannot be had."""
    paths = []
    try:
        for media in run.media:
            there = _there(media, folder)
            paths.append(await knouds.download(media, folder) if there is None else there)
    except DownloadError as error:
        output.tell(f"files of {key}: {said_of(error)}; the same command tries again")
        return None
    return tuple(paths)


def _there(media: Media, folder: Path) -> Path | None:
    """Give the path of a file that was fetched before: such a name is there whole or not at all."""
    own = media.url_extension
    endings = EXTENSIONS[media.kind] if own is None else (own,)
    paths = (folder / default_name(media, ending) for ending in endings)
    return next((path for path in paths if path.is_file() and path.stat().st_size), None)
