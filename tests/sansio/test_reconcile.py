"""Reconciliation: no row that could be the unknown submit is ever left out, and none is picked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio.reconcile import Search, Wanted
from knouds_async.types import SubmissionSearch, Target, UsagePage, UsageRow

SENT = datetime(2026, 5, 8, 12, tzinfo=UTC)
WANTED = Wanted(target=Target("workflows", "mine"), sent_at=SENT, tolerance=timedelta(seconds=60))
MODEL = Wanted(target=Target("models", "suno-v5"), sent_at=SENT, tolerance=timedelta(seconds=60))


def row(number: int, seconds: float | None = 0.0, **fields: Any) -> UsageRow:
    """Give a row dated `seconds` after the submit."""
    created = None if seconds is None else SENT + timedelta(seconds=seconds)
    known: dict[str, Any] = {"id": number, "workflow_slug": "mine", "created_at": created}
    return UsageRow(**(known | fields))


def walk(wanted: Wanted, rows: list[UsageRow], size: int) -> tuple[Search, int]:
    """Search through `rows` by pages; give the search and the pages read."""
    search, pages = Search(wanted=wanted), 0
    while search.next_offset is not None:
        at = search.next_offset
        search, pages = search.take(UsagePage(rows=tuple(rows[at : at + size]), total=len(rows))), pages + 1
    return search, pages


def test_rows_of_the_target_in_time_are_candidates() -> None:
    """Target and time decide; a row of another workflow, of a model, or of another time is none."""
    rows = [row(1, 61), row(2, 60), row(3, 0, workflow_slug="other"), row(4, 0, source="api-slim"), row(5, -60)]
    search, _ = walk(WANTED, rows, 10)
    assert [found.id for found in search.found] == [2, 5]


def test_what_a_row_does_not_say_does_not_rule_it_out() -> None:
    """Rows without a date or a slug could be it; a row of a run that is accounted for could not."""
    rows = [row(1, None), row(2, 0, workflow_slug=None), row(3, 0, request_id="kie_1")]
    assert [found.id for found in walk(WANTED, rows, 10)[0].found] == [1, 2, 3]
    known = Wanted(target=WANTED.target, sent_at=SENT, tolerance=WANTED.tolerance, exclude={"kie_1"})
    assert [found.id for found in walk(known, rows, 10)[0].found] == [1, 2]


def test_a_request_id_accounts_for_one_row() -> None:
    """Of two rows with the id of a known run one may be the submit; a row seen on two pages is one; "" is no id."""
    known = Wanted(target=WANTED.target, sent_at=SENT, tolerance=WANTED.tolerance, exclude={"kie_1", ""})
    late = row(1, 0, request_id="kie_1", status="processing")
    seen_again = row(1, 0, request_id="kie_1", status="completed")
    assert walk(known, [late, seen_again], 1)[0].found == ()
    assert [found.id for found in walk(known, [late, seen_again, row(2, 0, request_id="kie_1")], 1)[0].found] == [2]
    assert [found.id for found in walk(known, [row(3, 500, request_id="kie_1"), late], 9)[0].found] == []
    assert [found.id for found in walk(known, [row(4, 0, request_id="")], 9)[0].found] == [4]
    nameless = [row(5, 0), row(5, 0)]
    assert len(walk(WANTED, nameless, 1)[0].found) == 1
    unnumbered = [UsageRow(workflow_slug="mine", created_at=SENT, request_id="kie_1")] * 2
    assert walk(known, unnumbered, 1)[0].found == ()


def test_a_models_rows_are_those_without_a_workflow() -> None:
    """For a model the model ids decide, where they are told."""
    rows = [
        row(1, 0, workflow_slug=None, model_ids=("suno-v5",)),
        row(2, 0, workflow_slug=None, model_ids=("other",)),
        row(3, 0, workflow_slug=None),
        row(4, 0, model_ids=("suno-v5",)),
    ]
    assert [found.id for found in walk(MODEL, rows, 10)[0].found] == [1, 3]


def test_the_walk_ends_at_rows_that_are_too_old() -> None:
    """As long as rows come newest first, no page is read beyond the submit."""
    rows = [row(number, 100 - number * 30) for number in range(100)]
    search, pages = walk(WANTED, rows, 10)
    assert pages == 1
    assert len(search.found) == 4


def test_rows_out_of_order_are_all_read() -> None:
    """Once the order is broken, an old row proves nothing and every page is read."""
    rows = [row(1, -500), row(2, 0), row(3, -1000), row(4, 10)]
    search, pages = walk(WANTED, rows, 1)
    assert pages == 1  # a single old row first cannot be told from a quiet account: the order still holds
    search, pages = walk(WANTED, [row(0, -500), *rows[1:]][::-1], 3)
    assert {found.id for found in search.found} == {2, 4}


def test_an_empty_page_ends_the_walk() -> None:
    """A total that promises more than there is does not make an endless walk."""
    search = Search(wanted=WANTED).take(UsagePage(rows=(row(1),))).take(UsagePage())
    assert search.next_offset is None
    assert len(search.found) == 1


def test_none_is_certain_only_after_the_tolerance() -> None:
    """An early search says that it is not conclusive."""
    search = Search(wanted=WANTED).take(UsagePage())
    assert search.result(SENT + timedelta(seconds=59)) == SubmissionSearch(candidates=(), is_conclusive=False)
    assert not search.result(SENT + timedelta(seconds=59)).is_certainly_none
    assert search.result(SENT + timedelta(seconds=60)).is_certainly_none
    found = Search(wanted=WANTED).take(UsagePage(rows=(row(1),))).result(SENT + timedelta(hours=1))
    assert not found.is_certainly_none


@given(st.lists(st.floats(-300, 300), max_size=40), st.integers(1, 7))
def test_newest_first_nothing_is_missed(ages: list[float], size: int) -> None:
    """In documented order, whatever the page size, the candidates are exactly the rows within the tolerance."""
    rows = [row(number, age) for number, age in enumerate(sorted(ages, reverse=True))]
    search, _ = walk(WANTED, rows, size)
    assert {found.id for found in search.found} == {r.id for r in rows if WANTED.could_be(r)}


def test_both_clocks_are_looked_at() -> None:
    """A time that the local clock told is looked for at the service's time too; a time to come is not when it left."""
    skewed = Wanted(target=WANTED.target, sent_at=SENT, tolerance=WANTED.tolerance, skew=timedelta(hours=1))
    assert [found.id for found in walk(skewed, [row(1, 3600), row(2, 1800), row(3, 0)], 10)[0].found] == [1, 3]
    search = Search(wanted=skewed).take(UsagePage())
    assert search.result(SENT + timedelta(seconds=61)).is_certainly_none  # an hour on is still to come
    assert not search.result(SENT + timedelta(hours=1, seconds=30)).is_conclusive
    assert search.result(SENT + timedelta(hours=1, seconds=61)).is_certainly_none
    assert not search.result(SENT - timedelta(seconds=1)).is_conclusive


def test_rows_that_cannot_be_read_leave_it_open() -> None:
    """A page whose JSON holds more than was read, or nothing where more is promised, is never conclusive."""
    late = SENT + timedelta(hours=1)
    for page in (UsagePage(raw={"rows": [7]}), UsagePage(raw={"rows": 7}), UsagePage(total=3)):
        assert not Search(wanted=WANTED).take(page).result(late).is_conclusive
