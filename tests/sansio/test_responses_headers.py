"""Headers: the server's time, the wait it asks for and the quota; an odd value is as good as none."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio import responses
from knouds_async._sansio.rate_limit import QuotaHeaders
from knouds_async._sansio.responses import Answer

DATE = "Fri, 08 May 2026 19:29:55 GMT"
EPOCH = 1778268595.0
LATER = "Fri, 08 May 2026 19:30:25 GMT"


def answer(given: dict[str, str] | None = None, body: Any = None, status: int = 429) -> Answer:
    """Return an answer with these headers and this JSON."""
    return Answer(status, given or {}, b"" if body is None else json.dumps(body).encode())


@pytest.mark.parametrize(
    "text", [DATE, "Friday, 08-May-26 19:29:55 GMT", "Fri May  8 19:29:55 2026", "Fri, 08 May 2026 21:29:55 +0200"]
)
def test_a_date_is_epoch_seconds(text: str) -> None:
    """All three forms of HTTP's date are read, in UTC."""
    assert responses.http_date(text) == EPOCH


@pytest.mark.parametrize(
    "text",
    [None, "", " ", "now", "12", "-1", "Fri, 99 May 2026 19:29:55 GMT", "Fri, 08 May 99999 19:29:55 GMT",
     "Fri, 08 Foo 2026 19:29:55 GMT", "Fri, 08 May 2026 19:29:55 +9999", "Fri, 08 May 2026 25:61:61 GMT", ",", "::",
     "Wed, 31 Dec 1969 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"],
)  # fmt: skip
def test_what_is_no_date_is_none(text: str | None) -> None:
    """An odd date is no date, and neither is one that no clock shows."""
    assert responses.http_date(text) is None


DATELIKE = st.lists(
    st.sampled_from(["Fri,", "08", "May", "2026", "19:29:55", "GMT", "+9999", "-", ":", ",", "1e9", "٣", "99999"]),
    max_size=8,
).map(" ".join)


@given(st.text() | DATELIKE, st.text() | DATELIKE, st.none() | st.floats(allow_nan=False, allow_infinity=False))
def test_no_header_raises(text: str, date: str, server_time: float | None) -> None:
    """Whatever the headers hold, the time and the wait are finite and the wait is never negative, or they are None."""
    seen = responses.retry_after(answer({"retry-after": text, "date": date}), server_time)
    assert seen is None or 0 <= seen < float("inf")
    when = responses.http_date(text)
    assert when is None or abs(when) < float("inf")
    responses.quota(answer(dict.fromkeys(responses.READ, text)), server_time=server_time)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12", 12.0), ("0", 0.0), (" 12 ", 12.0), ("012", 12.0), ("999999999999999", 999999999999999.0), ("1.5", None),
     ("-5", None), ("+5", None), ("1_0", None), ("\u0661\u0662", None), ("12s", None), ("soon", None), ("", None),
     ("1" * 16, None), ("inf", None), ("nan", None), ("12\n", 12.0), ("0x10", None)],
)  # fmt: skip
def test_a_wait_in_seconds(text: str, seconds: float | None) -> None:
    """`Retry-After` in whole seconds is taken at its word; an odd one is none."""
    assert responses.retry_after(answer({"retry-after": text}), None) == seconds


@pytest.mark.parametrize(
    ("given", "server_time", "seconds"),
    [
        ({"retry-after": LATER, "date": DATE}, None, 30.0),
        ({"retry-after": LATER, "date": DATE}, EPOCH - 1000, 30.0),
        ({"retry-after": LATER}, EPOCH + 10.5, 19.5),
        ({"retry-after": LATER, "date": "odd"}, EPOCH, 30.0),
        ({"retry-after": DATE, "date": LATER}, None, 0.0),
        ({"retry-after": LATER}, None, None),
    ],
)
def test_a_wait_until_a_date(given: dict[str, str], server_time: float | None, seconds: float | None) -> None:
    """A date is taken against the answer's own `Date`, else the server's known time, never the local clock."""
    assert responses.retry_after(answer(given), server_time) == seconds


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [(12, 12.0), (0, 0.0), (0.5, 0.5), (-1, None), ("12", None), (True, None), (None, None), ([12], None),
     (10**400, 1e9), (1e308, 1e9), (float("inf"), None), (float("nan"), None)],
    ids=lambda value: f"{value:.20}" if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_a_wait_in_the_body(asked: Any, seconds: float | None) -> None:
    """Without the header, the body's `retryAfter` is the wait (contract 6)."""
    body = {"error": "Rate limit exceeded", "retryAfter": asked}
    assert responses.retry_after(answer(body=body), None) == seconds
    assert responses.retry_after(answer({"retry-after": "soon"}, body), None) == seconds
    assert responses.retry_after(answer({"retry-after": LATER}, body), None) == seconds


def test_the_header_comes_before_the_body() -> None:
    """Where both say something, the header counts; a body that is not the service's says nothing."""
    assert responses.retry_after(answer({"retry-after": "3"}, {"error": "x", "retryAfter": 12}), None) == 3.0
    assert responses.retry_after(answer(body={"retryAfter": 12}), None) is None
    assert responses.retry_after(Answer(429, {}, b"<html>"), None) is None


QUOTA = {"x-ratelimit-limit": "100", "x-ratelimit-remaining": "42", "x-ratelimit-reset": "1778268600"}


def test_a_success_tells_the_quota() -> None:
    """The three headers are read from a success (contract 6)."""
    assert responses.quota(answer(QUOTA, status=200), server_time=None) == QuotaHeaders(
        refused=False, succeeded=True, limit=100, remaining=42, reset=1778268600
    )


def test_a_refusal_tells_the_wait_too() -> None:
    """A 429 says how long to wait."""
    told = answer({**QUOTA, "x-ratelimit-remaining": "0", "retry-after": "12"})
    assert responses.quota(told, server_time=None) == QuotaHeaders(
        refused=True, succeeded=False, limit=100, remaining=0, reset=1778268600, retry_after=12.0
    )


@pytest.mark.parametrize(("asked", "seconds"), [("0", 1.0), ("1", 1.0), ("2", 2.0), ("soon", None)])
def test_a_refusal_is_followed_by_a_pause(asked: str, seconds: float | None) -> None:
    """A service that refuses and asks for no pause is not asked again at once."""
    assert responses.quota(answer({"retry-after": asked}), server_time=None).retry_after == seconds


@pytest.mark.parametrize("status", [101, 300, 302, 400, 401, 404, 408, 500, 502, 503, 504])
def test_only_a_success_shows_that_a_route_is_not_limited(status: int) -> None:
    """The headers are missing on a proxy's page too, so only a 2xx without them counts; only a 429's wait does."""
    told = responses.quota(answer({"retry-after": "12"}, status=status), server_time=None)
    assert told == QuotaHeaders(refused=False, succeeded=False)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_2xx_is_a_success(status: int) -> None:
    """Every 2xx is a success."""
    assert responses.quota(answer(status=status), server_time=None) == QuotaHeaders(refused=False, succeeded=True)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "many", "\u0661", "1_0", "9" * 16, "nan"])
@pytest.mark.parametrize("name", ["limit", "remaining", "reset"])
def test_an_odd_quota_is_none(name: str, text: str) -> None:
    """A count that is no count is as good as missing; the others are read."""
    told = responses.quota(answer({**QUOTA, f"x-ratelimit-{name}": text}, status=200), server_time=None)
    assert getattr(told, name) is None
    assert sum(value is None for value in (told.limit, told.remaining, told.reset)) == 1


def test_every_header_that_is_read_is_kept() -> None:
    """Only headers in the list are kept of an answer, so all that are read must be in it, in lower case."""
    also = {"retry-after", "date", "content-type", "location", "server", "via", "age"}
    assert {*QUOTA, *also} == set(responses.READ)


def test_a_web_page_says_nothing_of_the_quota() -> None:
    """A login page with 200 is no sign that the route is unlimited; the service's JSON without headers is."""
    for kind, succeeded in (("text/html; charset=utf-8", False), ("application/json", True), (None, True)):
        told = answer({} if kind is None else {"content-type": kind}, status=200)
        assert responses.quota(told, server_time=None).succeeded is succeeded
