"""What the beginning of a submit's receipt still tells when the rest of it did not come: the id of the run. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from knouds_async._sansio import names, replies

_OPENS, _COLON, _COMMA = (re.compile(rf"\s*{sign}\s*") for sign in "{:,")


def salvage_execution_id(part: bytes) -> str | None:
    """Return the id in the beginning of a receipt; None unless it is whole, and the receipt's own."""
    found: dict[str, Any] = {}
    try:
        for key, value in _pairs(part.decode(errors="replace")):
            found.setdefault(key, value)
    except (ValueError, RecursionError):  # here it was cut
        pass
    execution_id = found.get("executionId")
    if replies.is_finished_state(found) or not names.is_execution_id(execution_id):
        return None
    return str(execution_id)


def _pairs(text: str) -> Iterator[tuple[str, Any]]:
    """Return the members of the object that a text begins with, as far as they came whole."""
    decoder, at, sign = json.JSONDecoder(), 0, _OPENS
    while begin := sign.match(text, at):
        key, at = decoder.raw_decode(text, begin.end())
        if not isinstance(key, str) or (colon := _COLON.match(text, at)) is None:
            return
        value, at = decoder.raw_decode(text, colon.end())
        yield key, value
        sign = _COMMA
