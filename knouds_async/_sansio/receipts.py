"""What the beginning of a submit's receipt still tells when the rest of it did not come: the id of the run. Pure."""

from __future__ import annotations

import json
import re

from knouds_async._sansio import names

_OPENS, _COLON, _COMMA = (re.compile(rf"\s*{sign}\s*") for sign in "{:,")


def id_in_part(part: bytes) -> str | None:
    """Give the id in the beginning of a receipt; None unless it is whole, and the receipt's own."""
    text = part.decode(errors="replace")
    decoder, at, sign = json.JSONDecoder(), 0, _OPENS
    try:
        while begin := sign.match(text, at):
            key, at = decoder.raw_decode(text, begin.end())
            if (colon := _COLON.match(text, at)) is None:
                break
            value, at = decoder.raw_decode(text, colon.end())
            if key == "executionId":
                return value if names.is_execution_id(value) else None
            sign = _COMMA
    except (ValueError, RecursionError):  # here it was cut
        pass
    return None
