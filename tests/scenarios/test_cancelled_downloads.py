"""Downloads whose task is cancelled, asyncio's way too: a file is there whole or not at all, at whatever moment."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from knouds_async import AsyncKnouds, Media

KEY = "knouds_live_test_0123456789"
WHOLE = random.Random(1).randbytes(20_000)
IMAGE = Media("image", "https://knouds-media.s3.amazonaws.com/a.png", execution_id="run-1", number=1)
MOMENTS = 1000


async def serve(request: httpx.Request) -> httpx.Response:
    """Return the file in two pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        yield WHOLE[:100]
        yield WHOLE[100:]

    return httpx.Response(200, headers={"Content-Type": "image/png"}, content=pieces())


class Moments:
    """Cancels a task, asyncio's own way, just before or just after one call of the file system."""

    def __init__(self, patch: pytest.MonkeyPatch, seed: int) -> None:
        self._dice, self._patch = random.Random(seed), patch
        self.calls = self.chosen = 0
        self.task: asyncio.Task[object] | None = None
        for name in ("open", "fsync", "link", "close"):
            self._watch(os, name)
        for name in ("open", "replace", "unlink"):
            self._watch(Path, name)

    def choose(self) -> None:
        """Choose the moment of the next download: negative for just after a call."""
        self.calls, self.chosen = 0, self._dice.choice([-1, 1]) * self._dice.randint(1, 8)

    def _watch(self, owner: object, name: str) -> None:
        original: Callable[..., object] = getattr(owner, name)

        def call(*given: object, **named: object) -> object:
            self.calls += 1
            mine = self.calls
            self._cancel(mine)
            try:
                return original(*given, **named)
            finally:
                self._cancel(-mine)

        self._patch.setattr(owner, name, call)

    def _cancel(self, moment: int) -> None:
        if self.task is not None and moment == self.chosen:
            self.task.get_loop().call_soon_threadsafe(self.task.cancel)
            threading.Event().wait(self._dice.choice([0.0, 0.0005, 0.002]))  # so that the loop is as far as it can be


@pytest.mark.slow
@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_cancelled_file_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, has_links: bool
) -> None:
    """Cancelled by asyncio itself at random moments, no download leaves an empty file, a torn one or its temporary."""
    if not has_links:
        monkeypatch.setattr(os, "link", _refuse)
    moments = Moments(monkeypatch, 2)
    folders = [tmp_path / str(number) for number in range(MOMENTS // 4)]

    async def fetch_all() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(serve)) as http:
            knouds = AsyncKnouds(KEY, http_client=http)
            for folder in folders:
                folder.mkdir()
                moments.choose()
                moments.task = asyncio.ensure_future(knouds.download(IMAGE, folder, overwrite=overwrite))
                await asyncio.wait([moments.task])
            moments.task = None

    asyncio.run(fetch_all())
    found = [[(path.name, path.read_bytes()) for path in folder.iterdir()] for folder in folders]
    assert all(files in ([], [("run-1-1.png", WHOLE)]) for files in found)
    assert 0 < sum(map(bool, found)) < len(folders)


def _refuse(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")
