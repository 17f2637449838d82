"""Which jobs are the same: digests, keys made of them, and a compact memory."""

from __future__ import annotations

import enum
import hashlib
import json
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio.inputs import plain_inputs, run_body
from knouds_async._sansio.keys import Keys, Seen, digest


class Word(enum.StrEnum):
    """A string of a type of its own."""

    A = "a"


class Rank(enum.IntEnum):
    """An integer of a type of its own."""

    FIRST = 1


def test_a_digest_is_of_what_is_sent() -> None:
    """The order of names does not matter; values and their types do."""
    assert digest({"a": 1, "b": [1, {"c": 2, "d": 3}]}) == digest({"b": (1, {"d": 3, "c": 2}), "a": 1})
    different: list[dict[str, Any]] = [{"a": 1}, {"a": "1"}, {"a": True}, {"a": None}, {"b": 1}, {}]
    assert len({digest(each) for each in different}) == len(different)


def test_digests_stay_the_same_from_release_to_release() -> None:
    """Ledgers on disk hold them: another form would take finished jobs for new ones, and run them again."""
    whole = "9c9e7ca73c77d58f81e76a7b96cd04935107adb16c1d7c4930732265a9634940"
    assert digest({"b": [1, "\xe9", None], "a": {"y": True, "x": 0.5}}) == whole
    awkward = {"\u007f\ud7ff\U0001f468": [-0.0, 1e22, 1e-7, 10**30, 0.1], "": {}, "Z": '\0"\\/', "a": [], "é": False}
    assert digest(awkward) == "c412f7e8e48ea3a5c9e01f8007bec5ba2ab516d63c327b6d93a0fa35db1e83c1"
    keys = Keys()
    assert [keys.of(whole), keys.of(whole)] == [whole[:20], f"{whole[:20]}-2"]


@pytest.mark.parametrize("inputs", [{"a": (1, Word.A)}, {Word.A: 2, "b": [Rank.FIRST, True]}, OrderedDict(b=1, a=2)])
def test_a_digest_is_that_of_what_the_service_reads(inputs: dict[str, Any]) -> None:
    """Types of their own count as what is sent for them, as ledgers of earlier releases have it."""
    sent = json.dumps(json.loads(run_body(inputs))["inputs"], sort_keys=True, separators=(",", ":"))
    assert digest(plain_inputs(inputs)) == hashlib.sha256(sent.encode()).hexdigest()


@given(st.lists(st.text(max_size=3), max_size=300))
def test_what_was_seen_is_remembered(texts: list[str]) -> None:
    """It answers as a set would."""
    seen, plain = Seen(), set[str]()
    for text in texts:
        assert seen.add(text) is (text not in plain)
        plain.add(text)
    assert len(seen) == len(plain)


def test_a_hundred_thousand_texts_take_little_room() -> None:
    """It grows to hold them, and holds each in some 16 bytes."""
    seen = Seen()
    assert all(seen.add(str(number)) for number in range(100_000))
    assert not any(seen.add(str(number)) for number in range(0, 100_000, 7))
    assert seen._slots.itemsize * len(seen._slots) <= 24 * 100_000


def test_a_key_stays_when_other_jobs_come_or_go() -> None:
    """A key depends on its inputs and on how many equal ones came before, not on their position."""
    one, other = digest({"a": 1}), digest({"a": 2})
    keys, moved = Keys(), Keys()
    first = [keys.of(each) for each in (one, other, one, one)]
    assert sorted(moved.of(each) for each in (other, one, one, one)) == sorted(first)
    assert len(set(first)) == 4
    assert first[3] == f"{first[0]}-3"
