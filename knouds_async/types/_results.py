"""What a run that completed gave: its result, and the files that are in it."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

import attrs

from knouds_async.types._runs import raw_field

MediaKind: TypeAlias = Literal["image", "video", "audio"]

EXTENSIONS: Final[Mapping[MediaKind, tuple[str, ...]]] = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif"),
    "video": (".mp4", ".webm", ".mov", ".m4v", ".mkv"),
    "audio": (".mp3", ".wav", ".m4a", ".ogg", ".flac", ".aac", ".opus"),
}
"""The extensions that a file of each kind may get; the first one where nothing better is known."""


@attrs.frozen
class Media:
    """One file of a result: `await knouds.download(media, folder)` fetches it.

    `execution_id`, `number`: whose file, and its place among all of them from 1. Its host is another origin: the key is
    never sent there (contract 12).
    """

    kind: MediaKind
    url: str
    raw: Any = raw_field()
    execution_id: str | None = attrs.field(default=None, kw_only=True, eq=False)
    number: int = attrs.field(default=1, kw_only=True, eq=False)

    @property
    def extension(self) -> str:
        """The extension that suits the file, dot included: its address's if a file of its kind may have it."""
        return self.url_extension or EXTENSIONS[self.kind][0]

    @property
    def url_extension(self) -> str | None:
        """The extension of the address, None when it has none that a file of this kind may get."""
        try:
            found = PurePosixPath(urlsplit(self.url).path).suffix.lower()
        except ValueError:
            return None
        return found if found in EXTENSIONS[self.kind] else None


_LISTS: Final[Mapping[str, MediaKind]] = {"images": "image", "videos": "video", "audios": "audio"}


def _media(result: Any, execution_id: str | None) -> tuple[Media, ...]:
    """Read the common lists of a result; what is not a list of `{url}` or of URLs gives nothing."""
    found: list[Media] = []
    for key, kind in _LISTS.items():
        items = result.get(key) if isinstance(result, dict) else None
        for item in items if isinstance(items, list) else []:
            url = item.get("url") if isinstance(item, dict) else item
            if isinstance(url, str):
                found.append(Media(kind, url, item, execution_id=execution_id, number=len(found) + 1))
    return tuple(found)


@attrs.frozen
class RunResult:
    """What a completed run gave.

    `result`: any JSON; its shape depends on the workflow or model. `cost`: credits (0: a trial grant paid), `ms`:
    time on the server in milliseconds. `execution_id` is None for a synchronous run. Contract 3.
    """

    result: Any
    cost: float | None = None
    ms: float | None = None
    execution_id: str | None = None
    raw: Any = raw_field()

    @property
    def media(self) -> tuple[Media, ...]:
        """All files of the result: images, then videos, then audio."""
        return _media(self.result, self.execution_id)

    @property
    def images(self) -> tuple[Media, ...]:
        """The images of the result; empty when there are none."""
        return tuple(one for one in self.media if one.kind == "image")

    @property
    def videos(self) -> tuple[Media, ...]:
        """The videos of the result; empty when there are none."""
        return tuple(one for one in self.media if one.kind == "video")

    @property
    def audios(self) -> tuple[Media, ...]:
        """The audio files of the result; empty when there are none."""
        return tuple(one for one in self.media if one.kind == "audio")

    @property
    def text(self) -> str | None:
        """The text of the result, None when there is none; several texts are joined by newlines."""
        found = self.result.get("text") if isinstance(self.result, dict) else self.result
        if isinstance(found, list):
            texts = [part for part in found if isinstance(part, str)]
            return "\n".join(texts) if texts else None
        return found if isinstance(found, str) else None
