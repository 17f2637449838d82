"""What the headers of an answer say: the server's time, the wait it asks for, the state of the quota. Contract 6.

An odd value is as good as none; nothing here raises.
"""

from __future__ import annotations

import functools
import re
from datetime import UTC
from typing import Final

from knouds_async._sansio import replies
from knouds_async._sansio.rate_limit import QuotaHeaders
from knouds_async._sansio.replies import Answer

READ: Final = (
    "age",
    "content-type",
    "date",
    "location",
    "retry-after",
    "server",
    "via",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
)
"""The headers that are kept of an answer; no other is ever looked at."""

REFUSED: Final = 429

_FOREVER: Final = 1e9  # seconds; a body's number may be of any length
_END_OF_DATES: Final = 2.0**36  # the year 4147: what a clock that is ahead of this says is no time
_LONGEST_WINDOW: Final = 86_400.0  # seconds; a Reset further away is not believed
_SHORTEST_PAUSE: Final = 1.0  # seconds after a refusal, however short a pause it asks for
_WHOLE: Final = re.compile(r"[0-9]{1,15}\Z")


@functools.lru_cache(maxsize=8)  # answers of the same second carry the same
def http_date(text: str | None) -> float | None:
    """Return an HTTP date as epoch seconds; what is none gives None."""
    if not text:
        return None
    from email.utils import parsedate_to_datetime  # loaded with the first answer, not with the package

    try:
        moment = parsedate_to_datetime(text)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return seconds if 0 <= seconds < _END_OF_DATES else None


def fresh_date(answer: Answer) -> float | None:
    """Return when the service wrote an answer, epoch seconds; None where a cache may have kept it (`Age`)."""
    return None if "age" in answer.headers else http_date(answer.headers.get("date"))


def retry_after(answer: Answer, server_time: float | None) -> float | None:
    """Return the seconds the service asks to wait: `Retry-After` in seconds or as a date, else the body's `retryAfter`.

    A refusal that says neither may still say when its window ends. A date is taken against the answer's own `Date`,
    else against `server_time` (epoch seconds); never the local clock.
    """
    text = answer.headers.get("retry-after", "").strip()
    if _WHOLE.match(text):
        return float(text)
    until = http_date(text)
    since = http_date(answer.headers.get("date")) or server_time
    if until is not None and since is not None:
        return max(0.0, until - since)
    asked = (replies.service_error(answer) or {}).get("retryAfter")
    if isinstance(asked, (int, float)) and not isinstance(asked, bool) and asked >= 0:
        return float(min(asked, _FOREVER))
    reset = _whole(answer, "x-ratelimit-reset") if answer.status == REFUSED else None
    is_ahead = reset is not None and since is not None and 0 < reset - since <= _LONGEST_WINDOW
    return reset - since if is_ahead and reset is not None and since is not None else None


def is_own_refusal(answer: Answer, *, is_cut: bool = False) -> bool:
    """Return whether a 429 is the service's own: by its JSON, or by the headers of the quota where that was cut short.

    Gateways have such headers too (contract 6), so a body that came whole has to be the service's.
    """
    told = ("x-ratelimit-limit", "x-ratelimit-remaining")
    may_be_json = "json" in answer.headers.get("content-type", "json")
    has_quota = all(_whole(answer, name) is not None for name in told)
    return replies.service_error(answer) is not None or (is_cut and may_be_json and has_quota)


def quota(answer: Answer, *, server_time: float | None) -> QuotaHeaders:
    """Return what an answer says of its route's quota; only a refusal's wait counts, and a web page is no success."""
    is_refused = answer.status == REFUSED
    asked = retry_after(answer, server_time) if is_refused else None
    return QuotaHeaders(
        refused=is_refused,
        succeeded=200 <= answer.status < 300 and "html" not in answer.headers.get("content-type", ""),
        limit=_whole(answer, "x-ratelimit-limit"),
        remaining=_whole(answer, "x-ratelimit-remaining"),
        reset=_whole(answer, "x-ratelimit-reset"),
        retry_after=None if asked is None else max(asked, _SHORTEST_PAUSE),
    )


def _whole(answer: Answer, name: str) -> int | None:
    text = answer.headers.get(name, "").strip()
    return int(text) if _WHOLE.match(text) else None
