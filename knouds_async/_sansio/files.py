"""Files of results: which addresses may be fetched, what an answer means, and what a file is called. Pure.

Everything that a server says is hostile: its names are never used, its types and sizes are checked
(contract 12; traps, "Files").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

import attrs

from knouds_async import config
from knouds_async._sansio.inputs import is_execution_id
from knouds_async._sansio.responses import http_date
from knouds_async.errors import ConfigurationError, DownloadFault, safe_repr
from knouds_async.types import EXTENSIONS, Media

MEDIA_HOSTS: Final = ("knouds-media.s3.amazonaws.com",)
"""Where the vendor keeps the files of results."""

MOST_REDIRECTS: Final = 5

_HOST: Final = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?\Z")
_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})\Z")
_LENGTH: Final = re.compile(r"[0-9]{1,18}\Z")
_UNTYPED: Final = ("", "application/octet-stream", "binary/octet-stream")
_TYPES: Final = {
    "image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/gif": ".gif", "image/avif": ".avif",
    "video/mp4": ".mp4", "video/webm": ".webm", "video/quicktime": ".mov",
    "audio/mpeg": ".mp3", "audio/mp3": ".mp3", "audio/wav": ".wav", "audio/x-wav": ".wav", "audio/mp4": ".m4a",
    "audio/ogg": ".ogg", "audio/flac": ".flac", "audio/aac": ".aac",
}  # fmt: skip
_TEMPORARY: Final = (408, 425, 429, 500, 502, 503, 504)


@attrs.frozen(eq=False, repr=False)
class Hosts:
    """The hosts that files may come from: by https at its usual port; loopback by anything where it is allowed."""

    allowed: tuple[str, ...]
    has_loopback: bool

    @classmethod
    def of(cls, given: Iterable[str] | None, base_url: str) -> Hosts:
        """Check the hosts that a caller allows; a ConfigurationError names the one that is none."""
        allowed = MEDIA_HOSTS if given is None else given
        if isinstance(allowed, str) or not isinstance(allowed, Iterable):
            raise ConfigurationError(f"media_hosts={safe_repr(allowed, 200)}: must be a list of host names")
        checked = tuple(host.lower() if isinstance(host, str) else host for host in allowed)
        for host in checked:
            if not isinstance(host, str) or _HOST.match(host) is None:
                shown = safe_repr(host, 200)
                raise ConfigurationError(f"media_hosts: {shown} is not a host name like media.example.com")
        return cls(checked, config.is_loopback(urlsplit(base_url).hostname or ""))

    def refusal(self, scheme: str, host: str, port: int | None, *, has_user: bool) -> str | None:
        """Return why an address is not to be fetched; None when it may be."""
        if has_user:
            return "it holds a user name or a password"
        if self.has_loopback and config.is_loopback(host) and scheme in ("http", "https"):
            return None
        if scheme != "https" or port not in (None, 443):
            return "it is not https at the usual port"
        is_allowed = any(host == one or (one[:2] == "*." and host.endswith(one[1:])) for one in self.allowed)
        return None if is_allowed else "its host is none of media_hosts"


@attrs.frozen(repr=False)
class Start:
    """The file comes from `at` on; `total`: its whole length if known, `validator`: what to ask for the rest with."""

    at: int
    total: int | None
    validator: str | None
    extension: str | None


@attrs.frozen(repr=False)
class Redirected:
    """The file lies at another address."""

    location: str


@attrs.frozen(repr=False)
class Rejected:
    """The answer is not the file; `is_temporary`: it may be the next time."""

    fault: DownloadFault
    why: str
    is_temporary: bool = False


def request_headers(received: int, validator: str | None) -> dict[str, str]:
    """Return the headers of a request: for the rest only, where it can be proven to be of the same file."""
    head = {"accept": "*/*", "accept-encoding": "identity"}
    return {**head, "range": f"bytes={received}-", "if-range": validator} if received and validator else head


def evaluate(
    status: int, headers: Mapping[str, str], media: Media, *, received: int, most: int, started: Start | None = None
) -> Start | Redirected | Rejected:
    """Return what an answer to a request means.

    `received`: bytes that are there, and `started`: how the file began; `most`: bytes that may be.
    """
    if 300 <= status < 400 and status != 304:
        location = headers.get("location")
        return Redirected(location) if location else Rejected(DownloadFault.REFUSED_STATUS, f"the answer was {status}")
    if status == 416:
        return Rejected(DownloadFault.DROPPED, "the rest could not be asked for", is_temporary=True)
    if status not in (200, 206):
        return Rejected(DownloadFault.REFUSED_STATUS, f"the answer was {status}", is_temporary=status in _TEMPORARY)
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in _UNTYPED and (not kind.startswith(f"{media.kind}/") or kind == "image/svg+xml"):
        return Rejected(DownloadFault.WRONG_TYPE, f"it is no {media.kind} but {kind[:100]!r}")
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        return Rejected(DownloadFault.WRONG_TYPE, "it is encoded, which was not asked for")
    start = _start(status, headers, _TYPES.get(kind), received)
    if start is not None and status == 206 and started is not None:
        start = _continued(started, start, headers)
    if start is None:
        return Rejected(DownloadFault.DROPPED, "another part came than was asked for", is_temporary=True)
    if start.total is not None and start.total > most:
        return Rejected(DownloadFault.TOO_LARGE, f"it has {start.total} bytes, more than {most}")
    return start


def _start(status: int, headers: Mapping[str, str], extension: str | None, received: int) -> Start | None:
    etag = headers.get("etag", "")
    validator = etag if etag and not etag.startswith("W/") else _strong_date(headers)
    if status == 200:
        length = headers.get("content-length", "")
        return Start(0, int(length) if _LENGTH.match(length) else None, validator, extension)
    part = _RANGE.match(headers.get("content-range", "").strip())
    if part is None:
        return None
    first, last, total = (int(number) for number in part.groups())
    return Start(first, total, validator, extension) if first == received and last + 1 == total else None


def _strong_date(headers: Mapping[str, str]) -> str | None:
    """Return when the file was changed, if that tells it from one of the same second (RFC 9110, 8.8.2.2)."""
    modified = headers.get("last-modified")
    changed, written = http_date(modified), http_date(headers.get("date"))
    return modified if changed is not None and written is not None and written - changed >= 1 else None


def _continued(started: Start, rest: Start, headers: Mapping[str, str]) -> Start | None:
    """Return the rest of a file, None if it may be of another: not every host minds what the request was bound to."""
    current = headers.get("etag" if (started.validator or "").startswith('"') else "last-modified")
    if current is None or current != started.validator or started.total not in (None, rest.total):
        return None
    return attrs.evolve(rest, validator=started.validator)


def is_markup(head: bytes) -> bool:
    """Return whether a file begins like a page or an error of the host: no image, video or audio file does."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<!", b"<?", b"<html", b"<Error", b"<HTML", b"<svg"))


def default_name(media: Media, extension: str | None) -> str:
    """Name a file `<execution>-<n><extension>`; nothing in it is the server's but what is on the list of extensions.

    `extension`: by the type that came, for addresses that end in none.
    """
    run = media.execution_id
    stem = run if is_execution_id(run) else hashlib.sha256(media.url.encode()).hexdigest()[:16]
    known = media.url_extension or (extension if extension in EXTENSIONS[media.kind] else None)
    return f"{stem}-{media.number}{known or media.extension}"
