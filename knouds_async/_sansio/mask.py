"""The key, hidden in whatever comes back: as it is, and as JSON, URLs and HTML may spell it. Pure.

A body is masked before it is parsed, so that no error, record or log holds what parsing would undo.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from knouds_async.config import Secret

_MASK: Final = "***"
_SIGN: Final = re.compile(r"[\\%]|&#")  # without one of these nothing is spelled in another way
_SIGN_IN_BYTES: Final = re.compile(rb"[\\%]|&#")


class Mask:
    """Hides one key. It shows nothing of it itself."""

    __slots__ = ("_key", "_patterns")

    def __init__(self, key: Secret) -> None:
        self._key = key
        self._patterns: tuple[re.Pattern[str], re.Pattern[bytes]] | None = None

    def text(self, text: str) -> str:
        """Return a string without the key."""
        if _SIGN.search(text) is not None:
            return self._prepared()[0].sub(_MASK, text)
        return text.replace(self._key.reveal(), _MASK)

    def headers(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return headers without the key: all are searched together, for hardly any holds it."""
        together = "\n".join(headers.values())
        return headers if self.text(together) == together else {name: self.text(each) for name, each in headers.items()}

    def body(self, body: bytes) -> bytes:
        """Return a body without the key, in UTF-8: JSON may come in UTF-16 and UTF-32 as well."""
        if b"\0" in body[:4] or body[:2] in (b"\xff\xfe", b"\xfe\xff"):
            body = _in_utf8(body)
        if _SIGN_IN_BYTES.search(body) is not None:
            return self._prepared()[1].sub(_MASK.encode(), body)
        return body.replace(self._key.reveal().encode(), _MASK.encode())

    def _prepared(self) -> tuple[re.Pattern[str], re.Pattern[bytes]]:
        if self._patterns is None:
            pattern = "".join(map(_spellings, self._key.reveal()))
            self._patterns = re.compile(pattern), re.compile(pattern.encode())
        return self._patterns


def _in_utf8(body: bytes) -> bytes:
    try:
        return body.decode(json.detect_encoding(body), "surrogatepass").encode(errors="surrogatepass")
    except (ValueError, LookupError):
        return body


def _spellings(char: str) -> str:
    """Return a pattern of all spellings of a character; its repetitions are bounded, for bodies may be hostile."""
    code = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in f"{ord(char):02x}")
    escaped = r"\\\\{0,7}"
    plain = rf"{escaped}{re.escape(char)}|{re.escape(char)}" if char in '/"' else re.escape(char)
    if char == "\\":
        plain = escaped
    return rf"(?:{plain}|{escaped}u00{code}|%(?:25){{0,4}}{code}|&#0{{0,6}}{ord(char)};|&#[xX]0{{0,6}}{code};)"
