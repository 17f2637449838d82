"""The key is hidden however it is spelled, before what is parsed can undo the spelling."""

from __future__ import annotations

import html
import json
import random
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio.responses import Mask, parsed
from knouds_async.config import Secret

KEY = 'knouds_live_aB3/"x\\Yz&%+0'
MASK = Mask(Secret(KEY))


def escaped(key: str, *, every: int = 1) -> str:
    """Spell a key as a JSON string may."""
    spelled = [
        f"\\u{ord(char):04x}" if place % every == 0 else json.dumps(char)[1:-1] for place, char in enumerate(key)
    ]
    return "".join(spelled)


SPELLINGS = {
    "as it is": KEY,
    "as JSON": json.dumps(KEY)[1:-1],
    "all escaped": escaped(KEY),
    "in capitals": escaped(KEY).upper().replace("\\U", "\\u"),
    "every third": escaped(KEY, every=3),
    "slashes": json.dumps(KEY)[1:-1].replace("/", "\\/"),
    "JSON in JSON": json.dumps(json.dumps(KEY)[1:-1])[1:-1],
    "escapes in JSON": json.dumps(escaped(KEY)),
    "percent": quote(KEY, safe=""),
    "percent, all": "".join(f"%{ord(char):02x}" for char in KEY),
    "percent twice": quote(quote(KEY, safe=""), safe=""),
    "HTML": html.escape(KEY).replace("&quot;", "&#34;").replace("&amp;", "&#38;"),
    "HTML, hexadecimal": "".join(f"&#x{ord(char):X};" for char in KEY),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_hidden(spelling: str) -> None:
    """In a body as in a header, with what stands around it left as it is."""
    text = f"before {SPELLINGS[spelling]} after"
    assert MASK.text(text).replace('"', "") == "before *** after"
    assert MASK.body(text.encode()).replace(b'"', b"") == b"before *** after"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_json_in_another_encoding_holds_no_key(encoding: str) -> None:
    """JSON is read in five encodings, so the key is hidden in all of them."""
    body = json.dumps({"error": f"bad key {KEY}", "half": "\ud800"}, ensure_ascii=False).encode(
        encoding, "surrogatepass"
    )
    assert parsed(MASK.body(body))["error"] == "bad key ***"


def spelled_anyhow(dice: random.Random, key: str) -> str:
    """Spell each character of a key in a way that JSON takes for it."""
    return "".join(dice.choice([json.dumps(char)[1:-1], f"\\u{ord(char):04x}", f"\\u{ord(char):04X}"]) for char in key)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=3, max_size=40), st.randoms())
def test_no_json_gives_the_key_when_it_is_parsed(key: str, dice: Any) -> None:
    """Whatever the key, and however each of its characters is spelled."""
    body = f'{{"x-api-key": "a {spelled_anyhow(dice, key)} b"}}'.encode()
    assert json.loads(body)["x-api-key"] == f"a {key} b"
    assert key not in MASK.text(repr(Mask(Secret(key)).body(body)))


@given(
    st.recursive(st.text() | st.integers() | st.none(), lambda more: st.lists(more) | st.dictionaries(st.text(), more))
)
def test_what_holds_no_key_is_left_as_it_is(value: Any) -> None:
    """No other body is changed."""
    body = json.dumps(value).encode()
    assert MASK.body(body) == body


def test_it_shows_nothing_itself() -> None:
    """Neither before nor after it was used."""
    mask = Mask(Secret(KEY))
    for _ in range(2):
        assert "live" not in repr(mask) + str(mask)
        mask.text("\\")


def test_headers_are_masked_one_by_one() -> None:
    """A header that holds the key is masked, in whatever spelling, and the others stay as they are."""
    mask = Mask(Secret("knouds_live_canary"))
    clean = {"date": "Sun, 29 Nov 2026 20:00:00 GMT", "server": "x"}
    assert mask.headers(clean) is clean
    assert mask.headers({**clean, "location": "/?key=knouds%5Flive_canary"}) == {**clean, "location": "/?key=***"}
