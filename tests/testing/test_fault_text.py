"""Faults in words: what can be said, and what is answered to nonsense."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async.testing import Emulator, faults
from knouds_async.testing.faults import KINDS, PLACES, FaultSpec, add_fault, parse_fault

SUBMIT = "POST /api/workflows/:slug/run?async=true"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("reset", FaultSpec(faults.reset())),
        ("reset after_run", FaultSpec(faults.reset(after_run=True))),
        ("reset after_run=false on submit", FaultSpec(faults.reset(), SUBMIT)),
        ("stalled seconds=2.5 after_run on poll 20%", FaultSpec(
            faults.stalled(2.5, after_run=True), "GET /api/executions/:id", 0.2)),
        ("closed on submit nth=1,3", FaultSpec(faults.closed(), SUBMIT, nth=(1, 3))),
        ("service_error status=500 probability=0.25", FaultSpec(faults.service_error(500), probability=0.25)),
        ("bad_gateway on get /api/workflows nth=2", FaultSpec(faults.bad_gateway(), "GET /api/workflows", nth=(2,))),
        ("unknown_status status=odd", FaultSpec(faults.unknown_status("odd"))),
        ("invalid_json body={", FaultSpec(faults.invalid_json(b"{"))),
    ],
)  # fmt: skip
def test_words_and_what_they_mean(text: str, meant: FaultSpec) -> None:
    """Kind, arguments, route and when: each is read as it is meant."""
    assert parse_fault(text) == meant


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no fault is called ''"),
        ("rest", "did you mean reset?"),
        ("reset on", "'on' is followed by one of submit, run,"),
        ("reset on moon", "not by 'moon'"),
        ("reset second=3", "'second=3' makes no sense here; reset takes after_run"),
        ("refused after_run", "refused takes nothing"),
        ("stalled seconds", "seconds needs a value"),
        ("stalled seconds=long", "'seconds=long' is not a number"),
        ("dripping", "dripping needs seconds=..."),
        ("reset after_run=maybe", "after_run is true or false, not 'maybe'"),
        ("reset nth=one", "'nth=one' is not a number"),
        ("reset nth=1 20%", "nth or a probability, not both"),
    ],
)
def test_nonsense_is_named(text: str, told: str) -> None:
    """A ValueError shows the text, what is wrong with it, and what there is."""
    with pytest.raises(ValueError, match=r"^fault ") as caught:
        parse_fault(text)
    assert told in str(caught.value)


@pytest.mark.parametrize("text", ["reset on GET /api/moon", "reset nth=0", "reset 200%"])
def test_what_cannot_be_attached_is_refused(text: str) -> None:
    """A route that is not there, a zeroth request and more than each are a ValueError."""
    with pytest.raises(ValueError, match=r"no route|nth|probability"):
        add_fault(Emulator().faults, text)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_put_everywhere(kind: str) -> None:
    """Each fault of the library has a name in words, and each short name is a route."""
    for place in (*PLACES, "GET /api/health"):
        needed = {"dripping": " seconds=0.1"}.get(kind, "")
        add_fault(Emulator().faults, f"{kind}{needed} on {place} nth=1")


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but a ValueError comes of a text."""
    with contextlib.suppress(ValueError):
        parse_fault(f"reset {text}")
