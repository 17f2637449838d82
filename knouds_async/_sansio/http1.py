"""HTTP/1.1 as this library needs it: a request as bytes, and its answer read from bytes as they come. Pure.

Rule of the file: an answer of the usual shape is read here, in one look; whatever is not plain is left to h11, which
costs ten times as much and knows everything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import attrs
import h11

__all__ = ["Head", "MalformedAnswer", "Reading", "request"]

_MOST_HEAD: Final = 100 * 1024
_TARGET: Final = re.compile(rb"/[!-~]*\Z")
_PLAIN_HEAD: Final = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9][0-9]) [\x20-\x7e]*\r\n"
    rb"((?:[A-Za-z0-9!#$%&'*+.^_`|~-]+:[\x20-\x7e\t]*\r\n)*)\r\n"
)
_LENGTH: Final = re.compile(r"[0-9]{1,12}\Z")
_WITHOUT_BODY: Final = (204, 304)


class MalformedAnswer(ValueError):  # noqa: N818  (it is turned into a transport error before anyone sees it)
    """What came is not an HTTP/1.1 answer, or not a whole one; the text says how."""


@attrs.frozen
class Head:
    """Status and headers; names in lower case, values of a repeated name joined by a comma."""

    status: int
    headers: Mapping[str, str]


def request(method: bytes, target: bytes, headers: bytes, body: bytes | None) -> bytes:
    """Give a whole request. `headers`: finished lines, Host among them; the length of the body is added.

    ValueError for a target that would not stay one.
    """
    if not _TARGET.match(target):
        raise ValueError("the target of a request must be a path of printable ASCII")
    if body is None and method in (b"GET", b"DELETE"):
        return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, headers)
    content = body or b""
    return b"%b %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (method, target, headers, len(content), content)


class Reading:
    """Reads the answer to one request: `feed` it what comes, b"" when nothing more will.

    `head` is there once it has come, `is_over` true after the last byte. `is_reusable`: the connection can carry
    another request. `method`: the request's.
    """

    __slots__ = ("_h11", "_left", "_method", "head", "is_over", "is_reusable")

    def __init__(self, method: bytes) -> None:
        """Begin with nothing read."""
        self.head: Head | None = None
        self.is_over = False
        self.is_reusable = False
        self._method = method
        self._left = 0
        self._h11: h11.Connection | None = None

    def feed(self, data: bytes) -> bytes:
        """Give the bytes of the body that `data` brings; MalformedAnswer when it breaks the rules."""
        if self._h11 is not None:
            return self._parsed(self._h11, data)
        if self.head is None:
            return self._begun(data)
        if not data and self._left:
            raise MalformedAnswer(f"the server hung up with {self._left} bytes of the body still to come")
        return self._counted(data)

    def _begun(self, data: bytes) -> bytes:
        """Read the first piece: a plain head that is whole, or something for h11."""
        end = data.find(b"\r\n\r\n") + 4
        plain = _plain_head(data[:end]) if end >= 4 else None
        if plain is None:
            self._h11 = _asked(self._method)
            return self._parsed(self._h11, data)
        self.head, self._left, self.is_reusable = plain
        return self._counted(data[end:])

    def _counted(self, data: bytes) -> bytes:
        if len(data) > self._left:  # nobody asked for more, so whose answer it is nobody knows
            self.is_reusable = False
            data = data[: self._left]
        self._left -= len(data)
        self.is_over = not self._left
        return data

    def _parsed(self, connection: h11.Connection, data: bytes) -> bytes:
        if not data and connection.their_state is h11.SEND_RESPONSE:
            raise MalformedAnswer("Server disconnected without sending a response.")
        body = []
        try:
            connection.receive_data(data)
            while (event := connection.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    self.head = _head(event)
                elif isinstance(event, h11.Data):
                    body.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self.is_over = True
                    is_done = connection.our_state is h11.DONE and connection.their_state is h11.DONE
                    self.is_reusable = is_done and connection.trailing_data == (b"", False)
                    break
        except h11.RemoteProtocolError as odd:
            raise MalformedAnswer(str(odd)) from None
        return b"".join(body)


def _plain_head(data: bytes) -> tuple[Head, int, bool] | None:
    """Read a head whose body is as long as its one Content-Length says; None for any other."""
    found = _PLAIN_HEAD.fullmatch(data)
    if found is None:
        return None
    headers: dict[str, str] = {}
    for line in found[2].decode("ascii").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    length, connection = headers.get("content-length", ""), headers.get("connection", "keep-alive").lower()
    status = int(found[1])
    if "transfer-encoding" in headers or status in _WITHOUT_BODY or not _LENGTH.match(length):
        return None
    if connection not in ("keep-alive", "close"):
        return None
    return Head(status, headers), int(length), connection == "keep-alive"


def _asked(method: bytes) -> h11.Connection:
    """Bring h11 to where the request has been sent."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "")]))
    connection.send(h11.EndOfMessage())
    return connection


def _head(event: h11.Response) -> Head:
    headers: dict[str, str] = {}
    for raw_name, raw_value in event.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Head(event.status_code, headers)
