"""Requests as bytes, and answers from bytes: whatever is read quickly is read as h11 reads it."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio.http1 import Head, MalformedAnswer, Reading, request

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n"


def read(*pieces: bytes, method: bytes = b"GET") -> tuple[Reading, bytes]:
    """Feed an answer to its end."""
    reading, body = Reading(method), b""
    for piece in pieces:
        assert not reading.is_over
        body += reading.feed(piece)
    return reading, body


def cut(data: bytes, *places: int) -> list[bytes]:
    """Cut data into pieces, none of them empty."""
    ends = [*sorted({place for place in places if 0 < place < len(data)}), len(data)]
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def test_a_request_without_a_body() -> None:
    """A GET is its line and the headers given; what could be another request is refused."""
    assert request(b"GET", b"/api?a=b", b"Host: x\r\n", None) == b"GET /api?a=b HTTP/1.1\r\nHost: x\r\n\r\n"
    for target in (b"", b"api", b"/a b", b"/a\r\nx-evil: 1", b"/\xff", b"/a\n"):
        with pytest.raises(ValueError, match="target"):
            request(b"GET", target, b"Host: x\r\n", None)


@pytest.mark.parametrize(("body", "length"), [(b"{}", 2), (b"", 0), (None, 0)])
def test_a_request_with_a_body_says_how_long_it_is(body: bytes | None, length: int) -> None:
    """Also a POST without one, which servers insist on."""
    whole = request(b"POST", b"/", b"Host: x\r\n", body)
    assert whole == b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (length, body or b"")


@pytest.mark.parametrize("answer", [OK, CHUNKED])
@given(places=st.lists(st.integers(1, 90), max_size=4))
def test_an_answer_is_read_alike_however_it_is_cut(answer: bytes, places: list[int]) -> None:
    """In one piece or in many, between head and body too; afterwards the connection can go on."""
    reading, body = read(*cut(answer, *places))
    assert (reading.is_over, reading.is_reusable, body) == (True, True, b"ok")
    assert reading.head is not None
    assert reading.head.status == 200


def test_a_plain_head_is_read_at_once() -> None:
    """Names are in lower case, values are trimmed, and a repeated name is joined."""
    reading, body = read(b"HTTP/1.1 404 Not Found\r\nX-A: 1 \r\nx-a:\t2\r\nContent-Length: 0\r\n\r\n")
    assert (reading.head, body) == (Head(404, {"x-a": "1, 2", "content-length": "0"}), b"")
    assert reading.is_over


@pytest.mark.parametrize("value", [b"close", b"Close", b"keep-alive, close"])
def test_a_connection_that_closes_is_not_reusable(value: bytes) -> None:
    """The server's word is kept."""
    reading, body = read(OK.replace(b"\r\n\r\n", b"\r\nConnection: %b\r\n\r\n" % value))
    assert (reading.is_over, reading.is_reusable, body) == (True, False, b"ok")


@pytest.mark.parametrize("answer", [OK, CHUNKED])
def test_bytes_that_nobody_asked_for_spoil_the_connection(answer: bytes) -> None:
    """They could be taken for the next answer."""
    reading, body = read(answer + b"HTTP/1.1 200 OK")
    assert (reading.is_over, reading.is_reusable, body) == (True, False, b"ok")


@pytest.mark.parametrize(
    ("answer", "body", "is_reusable"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", b"ok", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
        (b"HTTP/1.1 200 OK\nX-A: \xe9\nContent-Length: 2\n\nok", b"ok", True),
    ],
)
def test_what_is_not_plain_is_read_all_the_same(answer: bytes, body: bytes, *, is_reusable: bool) -> None:
    """Odd answers that are within the rules, and those that all clients put up with."""
    reading, found = read(answer)
    assert (reading.is_over, reading.is_reusable, found) == (True, is_reusable, body)


def test_a_repeated_header_of_an_odd_answer_is_joined_too() -> None:
    """The slow way reads headers as the quick one does."""
    reading, _ = read(CHUNKED.replace(b"\r\n\r\n", b"\r\nX-A: 1\r\nx-a: 2\r\n\r\n", 1))
    assert reading.head is not None
    assert reading.head.headers["x-a"] == "1, 2"


def test_a_body_may_last_until_the_server_hangs_up() -> None:
    """Without any length the end of the connection is the end of the body."""
    reading, body = read(b"HTTP/1.1 200 OK\r\n\r\no", b"k", b"")
    assert (reading.is_over, reading.is_reusable, body) == (True, False, b"ok")


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ([b""], "Server disconnected without sending a response"),
        ([b"HTTP/1.1 20", b""], "Server disconnected without sending a response"),
        ([OK[:-1], b""], "hung up with 1 bytes"),
        ([OK[:-2], b""], "hung up with 2 bytes"),
        ([CHUNKED[:-9], b""], "closed connection"),
        ([b"nonsense\r\n\r\n"], "illegal status line"),
        ([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"], "SWITCH"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok"], "conflicting"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\nok"], "bad Content-Length"),
        ([b"HTTP/1.1 200 OK\r\nX-A: \0\r\nContent-Length: 2\r\n\r\nok"], "illegal header line"),
        ([b"HTTP/1.1 200 OK\r\nX-A: " + b"x" * 200_000], "too long"),
    ],
)
def test_what_breaks_the_rules_is_no_answer(pieces: list[bytes], why: str) -> None:
    """Cut short, malformed or without an end: it is said how."""
    with pytest.raises(MalformedAnswer, match=why):
        read(*pieces)


def by_h11(data: bytes) -> tuple[int, dict[str, str], bytes] | None:
    """Read an answer with h11 alone; None when it does not end within the data."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    status, found, body = 0, dict[str, str](), b""
    while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
        if isinstance(event, h11.Response):
            status = event.status_code
            for name, value in event.headers:
                one = value.decode("latin-1")
                key = name.decode()
                found[key] = f"{found[key]}, {one}" if key in found else one
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return status, found, body
    return None


LINES = st.one_of(
    st.sampled_from(
        [b"Content-Length: 2", b"content-length:3", b"Content-Length: +2", b"Transfer-Encoding: chunked", b"X-A: 1"]
    ),
    st.sampled_from(
        [b"Connection: close", b"Connection: Keep-Alive", b" folded", b"A : b", b"", b"X: \x7f", b"\xe9: 1"]
    ),
    st.binary(max_size=12),
)
STATUSES = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.1 500 ", b"HTTP/1.1 204 X", b"HTTP/1.0 200 OK", b"HTTP/1.1 200"]
)


@given(
    status=STATUSES,
    lines=st.lists(LINES, max_size=5),
    body=st.binary(max_size=4),
    newline=st.sampled_from([b"\r\n", b"\n"]),
)
def test_what_is_read_quickly_is_what_h11_reads(status: bytes, lines: list[bytes], body: bytes, newline: bytes) -> None:
    """Any answer that ends is the same by both, and what h11 refuses is refused."""
    data = newline.join([status, *lines, b"", b""]) + body
    try:
        expected = by_h11(data)
    except h11.RemoteProtocolError:
        with pytest.raises(MalformedAnswer):
            read(data)
        return
    reading, found = read(data)
    if expected is None:
        assert not reading.is_over
        return
    assert reading.is_over
    assert reading.head == Head(expected[0], expected[1])
    assert found == expected[2]
