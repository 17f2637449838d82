"""Downloads: the files of results, fetched by a client that knows neither key nor cookies (contract 12).

What users call; the fetching is `_io/download`, the rules are `_sansio/files`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import anyio

from knouds_async._io.backend import HomeLoop
from knouds_async._io.download import Fetcher, PendingFile, exists, unwritable
from knouds_async._io.uninterrupted import in_thread
from knouds_async._sansio import files
from knouds_async._sansio.files import Hosts
from knouds_async.config import OnBytes
from knouds_async.errors import ClientClosedError, DownloadError, InvalidArgumentError
from knouds_async.types import Media, RunResult

_AT_ONCE: Final = 4


class Downloads:
    """Fetches files for one AsyncKnouds, from `hosts` alone (None: the vendor's) and from a service on this machine."""

    def __init__(self, hosts: Iterable[str] | None, base_url: str, fetcher: Fetcher) -> None:
        self._hosts = Hosts.of(hosts, base_url)
        self._fetcher = fetcher
        self._home = HomeLoop()
        self._is_closed = False

    async def one(
        self,
        media: Media,
        path_or_dir: str | os.PathLike[str],
        *,
        overwrite: bool,
        max_bytes: int,
        on_progress: OnBytes | None,
    ) -> Path:
        """Fetch one file; see `AsyncKnouds.download`."""
        _check(media, max_bytes)
        self._check_open()
        given = _text(path_or_dir)
        try:
            folder, name = await in_thread(lambda: _place(given))
        except (OSError, ValueError) as error:
            raise unwritable(media, error) from None

        def named(extension: str | None) -> Path:
            return folder / (name or files.default_name(media, extension))

        is_known = name is not None or media.url_extension is not None
        if is_known and not overwrite and await in_thread(lambda: os.path.lexists(named(None))):
            raise exists(media, named(None))
        pending = PendingFile(media, max_bytes, on_progress, named)
        return await self._fetcher.fetch(self._hosts, pending, folder, overwrite=overwrite)

    async def all(
        self, run: RunResult, folder: str | os.PathLike[str], *, overwrite: bool, max_bytes: int
    ) -> tuple[Path, ...]:
        """Fetch all files of a run; see `AsyncKnouds.download_all`."""
        into = os.path.join(_text(folder), "")  # noqa: PTH118  (a Path would drop the slash that says: a folder)
        paths: dict[int, Path] = {}
        failures: list[DownloadError] = []
        turns = anyio.Semaphore(_AT_ONCE)

        async def save(media: Media) -> None:
            async with turns:
                try:
                    paths[media.number] = await self.one(
                        media, into, overwrite=overwrite, max_bytes=max_bytes, on_progress=None
                    )
                except DownloadError as error:
                    failures.append(error)
                    tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for media in run.media:
                tasks.start_soon(save, media)
        if failures:
            raise failures[0]
        return tuple(paths[media.number] for media in run.media)

    async def aclose(self) -> None:
        """Refuse further downloads and close the HTTP client that was made for them."""
        self._is_closed = True
        await self._fetcher.aclose()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClientClosedError("this AsyncKnouds is closed: build a new one to download with")
        self._home.enter()


def _text(path: object) -> str:
    try:
        return os.fsdecode(path)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgumentError(f"{path!r:.200} is no path: pass a string or a pathlib.Path") from None


def _place(given: str) -> tuple[Path, str | None]:
    """Return the folder and, where the caller has chosen one, the file's name; create a folder that is not there."""
    if "\0" in given:
        raise ValueError("a path holds no null character")
    path = Path(given)
    if given.endswith(("/", os.sep)):
        path.mkdir(parents=True, exist_ok=True)
        return path, None
    return (path, None) if path.is_dir() else (path.parent, path.name)


def _check(media: object, max_bytes: object) -> None:
    if not isinstance(media, Media):
        raise InvalidArgumentError(f"{type(media).__name__} is not a file of a result: pass one of run.media")
    if not isinstance(max_bytes, int) or isinstance(max_bytes, bool) or max_bytes < 1:
        raise InvalidArgumentError(f"max_bytes={max_bytes!r:.80}: must be an integer of at least 1")
