"""Reconciliation: an absence proves something only when everything that could make it a mistake is ruled out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async import SubmissionUnknownError
from knouds_async._sansio.clock import Moment, Reading
from knouds_async._sansio.reconcile import Doubt, KnownRun, LostSubmit, RecentRuns, Search, Wanted, unaccounted
from knouds_async.types import SubmissionSearch, Target, UsagePage, UsageRow

SENT = datetime(2026, 5, 8, 12, tzinfo=UTC)
AT = SENT.timestamp()
MINE = Target("workflows", "mine")
KNOWN = (KnownRun(request_id="control", begun_by=AT - 300),)
WANTED = Wanted(target=MINE, earliest=AT, latest=AT, known=KNOWN, lag=60.0)
MODEL = attrs.evolve(WANTED, target=Target("models", "suno-v5"))


def row(number: int, seconds: float | None = 0.0, **fields: Any) -> UsageRow:
    """Return a row dated `seconds` after the submit."""
    created = None if seconds is None else SENT + timedelta(seconds=seconds)
    known: dict[str, Any] = {"id": number, "workflow_slug": "mine", "created_at": created}
    return UsageRow(**(known | fields))


CONTROL = row(0, -300, request_id="control")


def at(seconds: float, *, bounds: float = 0.0) -> Moment:
    """Return a moment so many seconds after the submit, known to so many seconds either way."""
    return Moment(wall=0.0, earliest=AT + seconds - bounds, latest=AT + seconds + bounds, known="heard")


def walk(wanted: Wanted, rows: list[UsageRow], size: int = 10) -> tuple[Search, int]:
    """Search through `rows` by pages; give the search and the pages read."""
    search, pages = Search(wanted=wanted), 0
    while search.next_offset is not None:
        begin = search.next_offset
        page = UsagePage(rows=tuple(rows[begin : begin + size]), total=len(rows))
        search, pages = search.take(page), pages + 1
    return search, pages


def found(wanted: Wanted, rows: list[UsageRow], *, now: Moment | None = None) -> SubmissionSearch:
    """Return what is found in the rows, and one of a known run before them, an hour later."""
    return walk(wanted, [*rows, CONTROL])[0].result(now or at(3600))


def candidates(wanted: Wanted, rows: list[UsageRow]) -> list[Any]:
    """Return the ids of the rows that could be the submit."""
    return [each.id for each in found(wanted, rows).candidates]


def known(*ids: str, begun: float = -1.0) -> Wanted:
    """Return the same submit, beside known runs that had begun so many seconds after it."""
    return attrs.evolve(WANTED, known=(*KNOWN, *(KnownRun(request_id=each, begun_by=AT + begun) for each in ids)))


def test_none_is_certain_with_a_known_run_in_sight_and_time_for_rows_to_come() -> None:
    """The listing shows a run that is known, nothing else, and its row would be there: no run began."""
    assert found(WANTED, []) == SubmissionSearch(candidates=(), is_conclusive=True)
    assert found(WANTED, [], now=at(60)).is_certainly_none
    assert not found(WANTED, [], now=at(59)).is_certainly_none
    assert not found(WANTED, [], now=at(61, bounds=2)).is_certainly_none


def test_rows_may_be_two_minutes_late() -> None:
    """Unless told otherwise, a search waits two minutes for a row, and counts rows dated two minutes off."""
    wanted = Wanted(target=MINE, earliest=AT, latest=AT, known=KNOWN)
    assert found(wanted, [], now=at(120)).is_certainly_none
    assert not found(wanted, [], now=at(119)).is_certainly_none
    assert candidates(wanted, [row(1, 121), row(2, 120), row(3, -120), row(4, -121)]) == [2, 3]


def test_rows_of_the_target_in_time_are_candidates() -> None:
    """Target and time decide; a row of another workflow, of a model, or of another time is none."""
    assert candidates(WANTED, [row(2, 60), row(3, 0, workflow_slug="other"), row(4, 0, source="api-slim")]) == [2]
    assert candidates(WANTED, [row(5, -60), row(6, -61)]) == [5]
    assert not found(WANTED, [row(2, 60)]).is_certainly_none


def test_what_a_row_does_not_say_does_not_rule_it_out() -> None:
    """Rows without a date, a slug or a request id could be it; a row of a run that is accounted for could not."""
    rows = [row(1, None), row(2, 0, workflow_slug=None), row(3, 0, request_id="kie_1"), row(4, 0, request_id="")]
    assert candidates(WANTED, rows) == [1, 2, 4, 3]
    assert candidates(known("kie_1"), rows) == [1, 2, 4]


def test_a_wide_interval_is_searched_widely() -> None:
    """A submit that may have been sent at any time of an hour is searched for in all of it."""
    wide = attrs.evolve(WANTED, earliest=AT - 3600)
    assert candidates(wide, [row(1, -1800), row(2, -3600 - 60)]) == [1, 2]
    assert candidates(wide, [row(1, -3600 - 61)]) == []


def test_an_undated_submit_is_never_proven() -> None:
    """Where it is not known when the submit was sent, absence proves nothing, and the search says why."""
    undated = attrs.evolve(WANTED, undated="nobody knows when it left")
    assert found(undated, []).reasons == ("nobody knows when it left",)
    assert found(WANTED, [], now=Moment(wall=AT + 3600)).reasons[0].startswith("the service's clock was not known")


def test_a_listing_without_a_known_run_proves_nothing() -> None:
    """It may be of another account, late, or cut: a run that is known has to stand in it, from then or before."""
    assert "another account" in walk(WANTED, [])[0].result(at(3600)).reasons[0]
    later = walk(
        attrs.evolve(WANTED, known=(KnownRun(request_id="k", begun_by=AT + 500),)), [row(1, 500, request_id="k")]
    )
    assert not later[0].result(at(3600)).is_conclusive
    other = walk(WANTED, [attrs.evolve(CONTROL, workflow_slug="other")])
    assert not other[0].result(at(3600)).is_conclusive


def test_a_row_that_nobody_accounts_for_leaves_it_open() -> None:
    """Also one that is dated too late to be a candidate, for rows can be dated when they were written."""
    search = found(WANTED, [row(7, 500)])
    assert (search.candidates, search.is_certainly_none) == ((), False)
    assert search.reasons == ("usage row 7 of 2026-05-08 12:08:20 UTC belongs to no run that is known",)
    assert found(known("later", begun=500), [row(7, 500, request_id="later")]).is_certainly_none


def test_a_request_id_accounts_for_one_row_a_run() -> None:
    """Of two rows with the id of one known run either may be the submit; two known runs that share it are two rows."""
    shared = [row(1, 0, request_id="kie_1"), row(2, 0, request_id="kie_1")]
    assert candidates(known("kie_1"), shared) == [1, 2]
    assert found(known("kie_1", "kie_1"), shared).is_certainly_none
    assert candidates(known("kie_1", "kie_1"), [*shared, row(3, 0, request_id="kie_1")]) == [1, 2, 3]


@pytest.mark.parametrize(("begun", "is_listed"), [(-4000, True), (-4000, False), (-121, False), (-100, True)])
def test_a_request_id_that_an_older_run_has_accounts_for_no_row_near_the_submit(begun: float, is_listed: bool) -> None:
    """Runs may share an id: the older row is the older run's, also where it is not read any more; the other is not."""
    older = [row(1, begun, request_id="kie_1")] if is_listed else []
    wanted, rows = known("kie_1", begun=begun), [row(2, 0, request_id="kie_1"), *older]
    assert candidates(wanted, rows) == [2]
    assert not found(wanted, rows).is_certainly_none


def test_an_older_row_of_a_shared_request_id_stands_for_no_row_that_is_missing() -> None:
    """A listing that lacks the row of a known run near the submit is late, though an older run of that id has one."""
    runs = tuple(KnownRun(request_id="kie_1", begun_by=AT + begun) for begun in (-400, -5))
    search = found(attrs.evolve(WANTED, known=(*KNOWN, *runs)), [row(1, -400, request_id="kie_1")])
    assert not search.is_certainly_none
    assert "lack the run of request kie_1" in search.reasons[0]


def test_a_run_shortly_before_the_submit_may_have_a_row_near_it() -> None:
    """A row may be dated when the run has ended: with an id that comes once, it is that run's."""
    for begun in (-120, -61, -1):
        assert found(known("kie_1", begun=begun), [row(2, 0, request_id="kie_1")]).is_certainly_none
        search, _ = walk(attrs.evolve(known("kie_1", begun=begun), known=()), [row(2, 0, request_id="kie_1")])
        assert [each.id for each in search.result(at(3600)).candidates] == [2]


def test_a_run_too_recent_to_have_a_row_accounts_for_none() -> None:
    """Its request id may be that of the lost submit as well, and the one row may be that submit's."""
    search = found(known("kie_1", begun=3590), [row(1, 0, request_id="kie_1")])
    assert (search.candidates, search.is_certainly_none) == ((), False)
    assert "too recent" in search.reasons[0]
    assert found(known("kie_1", begun=3540), [row(1, 0, request_id="kie_1")]).is_certainly_none
    assert not found(known("kie_1", begun=3541), [row(1, 0, request_id="kie_1")]).is_certainly_none


def test_a_listing_that_lacks_a_known_run_is_not_whole() -> None:
    """A run of the same time is known and its row is not there: the submit's may be missing in the same way."""
    for begun in (0, -30):
        assert "lack the run of request kie_1" in found(known("kie_1", begun=begun), []).reasons[0]
    assert found(known("kie_1", begun=-31), []).is_certainly_none  # its row may be dated as older than the submit


def test_a_row_seen_on_two_pages_is_one() -> None:
    """New rows push a row on to the next page, and it may have changed by then."""
    wanted, newer = known("kie_1", "kie_2", "kie_3"), [row(4, 20, request_id="kie_3"), row(3, 9, request_id="kie_2")]
    unnumbered = [UsageRow(workflow_slug="mine", created_at=SENT, request_id="kie_1")] * 2
    for then, later in ([row(1, request_id="kie_1", status=word) for word in ("processing", "completed")], unnumbered):
        search = Search(wanted=wanted).take(UsagePage(rows=(*newer, then), total=4))
        search = search.take(UsagePage(rows=(newer[1], later, CONTROL), total=5))
        assert search.result(at(3600)).is_certainly_none
    twice = Search(wanted=known("kie_1")).take(UsagePage(rows=(row(1, request_id="kie_1"),) * 2 + (CONTROL,)))
    assert twice.result(at(3600)).is_certainly_none


def test_a_models_rows_are_those_without_a_workflow() -> None:
    """For a model the model ids decide, where they are reported."""
    rows = [
        row(1, 0, workflow_slug=None, model_ids=("suno-v5",)),
        row(2, 0, workflow_slug=None, model_ids=("other",)),
        row(3, 0, workflow_slug=None),
        row(4, 0, model_ids=("suno-v5",)),
    ]
    assert candidates(MODEL, rows) == [1, 3]


def test_the_walk_ends_at_rows_that_are_certainly_older() -> None:
    """As long as rows come newest first, no page is read beyond those of runs that may have a row near the submit.

    But a few are read to see a run that is known.
    """
    rows = [row(number + 1, 100 - number * 30) for number in range(100)]
    assert walk(WANTED, rows)[1] == 6
    assert walk(attrs.evolve(WANTED, known=()), rows)[1] == 2
    assert walk(WANTED, [*rows[:9], CONTROL, *rows[9:]])[1] == 1


def test_rows_out_of_order_are_all_read() -> None:
    """Once the order is broken, an old row proves nothing and every page is read."""
    rows = [row(4, 10), row(3, -1000), row(2, 0), row(1, -500), CONTROL]
    search, pages = walk(WANTED, rows, 3)
    assert pages == 3
    assert {each.id for each in search.result(at(3600)).candidates} == {2, 4}
    many = [row(99, -1000), *(row(number, 100 - number) for number in range(1, 60)), row(77, 0)]
    search, pages = walk(attrs.evolve(WANTED, known=()), many, 3)
    assert pages == 31
    assert 77 in {each.id for each in search.result(at(3600)).candidates}


def test_rows_that_may_be_the_submits_are_all_read() -> None:
    """However many there are: no walk ends before rows that are certainly older."""
    rows = [row(number, 60 - number) for number in range(1, 60)]
    search, pages = walk(attrs.evolve(WANTED, known=()), rows, 3)
    assert (pages, len(search.rows)) == (30, 59)


def test_an_empty_page_ends_the_walk() -> None:
    """A total that promises more than there is does not make an endless walk."""
    search = Search(wanted=WANTED).take(UsagePage(rows=(row(1),))).take(UsagePage())
    assert search.next_offset is None
    assert len(search.rows) == 1


@pytest.mark.parametrize(
    "page", [UsagePage(raw={"rows": [7]}), UsagePage(raw={"rows": 7}), UsagePage(total=1), UsagePage(total=3)]
)
def test_rows_that_cannot_be_read_leave_it_open(page: UsagePage) -> None:
    """A page whose JSON holds more than was read, or nothing where more is promised, is never conclusive."""
    assert "could be read" in Search(wanted=WANTED).take(page).result(at(3600)).reasons[0]


def test_a_page_that_could_not_be_read_is_not_made_good_by_the_next() -> None:
    """A row that was lost on an early page may have been the submit's, whatever the later pages show."""
    newest, control = row(1, request_id="kie_1"), UsagePage(rows=(row(1, request_id="kie_1"), CONTROL))
    for count, is_proof in ((2, True), (3, False)):
        page = UsagePage(rows=(row(2, 5, request_id="kie_2"), newest), raw={"rows": [{}] * count})
        search = Search(wanted=known("kie_1", "kie_2")).take(page).take(control)
        assert search.result(at(3600)).is_certainly_none is is_proof


def test_rows_that_a_cache_has_kept_are_as_old_as_they_say() -> None:
    """A listing that was written before the submit's row must be there proves nothing, whenever it is read."""
    for written, is_proof in ((AT + 59, False), (AT + 60, True), (None, True)):
        search = Search(wanted=WANTED).take(UsagePage(rows=(CONTROL,)), AT + 3600).take(UsagePage(), written)
        assert search.result(at(3600)).is_certainly_none is is_proof
    late = Search(wanted=WANTED).take(UsagePage(rows=(CONTROL,)), AT + 9e6)
    assert not late.result(at(59)).is_certainly_none


def test_runs_that_become_known_while_rows_are_read_account_for_theirs() -> None:
    """A row that nobody accounts for is one of theirs, they are a control, and they show that a clock is another."""
    newer = row(9, 300, request_id="newer")
    search, _ = walk(WANTED, [newer, CONTROL])
    assert not search.result(at(3600)).is_conclusive
    later = KnownRun(request_id="newer", begun_by=AT + 300)
    assert search.result(at(3600), [*KNOWN, later]).is_certainly_none
    misdated = search.result(at(3600), [*KNOWN, attrs.evolve(later, begun_after=AT + 3000)])
    assert "another clock" in misdated.reasons[0]
    alone, _ = walk(attrs.evolve(WANTED, known=()), [row(8, request_id="beside")])
    assert alone.result(at(3600), [KnownRun(request_id="beside", begun_by=AT)]).is_certainly_none


def test_rows_of_another_clock_prove_nothing() -> None:
    """The row of a known run that is older than the run shows that the submit's row is dated wrongly as well."""
    for begun, is_proof in ((-300 + 61, False), (-300 + 60, True), (None, True)):
        run = attrs.evolve(KNOWN[0], begun_after=None if begun is None else AT + begun)
        search = found(attrs.evolve(WANTED, known=(run,)), [])
        assert search.is_certainly_none is is_proof
        assert is_proof or "another clock" in search.reasons[0]
    dated = attrs.evolve(WANTED, known=(attrs.evolve(KNOWN[0], begun_after=AT - 300),))
    others = row(9, -900, request_id="control", workflow_slug="other")
    assert walk(dated, [CONTROL, others])[0].result(at(3600)).is_certainly_none
    either = (attrs.evolve(KNOWN[0], begun_after=AT), attrs.evolve(KNOWN[0], begun_after=AT - 400))
    assert found(attrs.evolve(WANTED, known=either), []).is_certainly_none


ODD_LISTINGS: dict[str, Callable[[list[UsageRow], int], tuple[Sequence[UsageRow], int | None]]] = {
    "its offset is ignored": lambda rows, _: (rows[:2], len(rows)),
    "its offset is ignored, and there is no total": lambda rows, _: (rows[:2], None),
    "its offset is ignored, and its total is of the page": lambda rows, _: (rows[:2], 2),
    "its pages are single rows, and its offset is ignored": lambda rows, _: (rows[:1], len(rows)),
    "its offset counts pages": lambda rows, offset: (rows[offset * 2 : offset * 2 + 2], len(rows)),
    "its offset counts pages, and there is no total": lambda rows, offset: (rows[offset * 2 : offset * 2 + 2], None),
    "its total is of the page": lambda rows, offset: (rows[offset : offset + 2], len(rows[offset : offset + 2])),
    "rows are lost between its pages": lambda rows, offset: (rows[offset + (offset > 0) :][:2], len(rows) - 1),
    "it stops before its total": lambda rows, offset: (rows[offset:2], len(rows)),
}


@pytest.mark.parametrize("listing", ODD_LISTINGS.values(), ids=ODD_LISTINGS)
def test_a_listing_whose_pages_do_not_join_proves_nothing(listing: Callable[..., Any]) -> None:
    """Whichever way it leaves the row of the submit out or shows it late, no absence is a proof, and the walk ends."""
    rows = [row(9, 30, request_id="kie_9"), row(8, 20, request_id="kie_8"), row(7, request_id="lost"), CONTROL]
    search, pages = Search(wanted=known("kie_9", "kie_8", begun=10)), 0
    while search.next_offset is not None:
        page, total = listing(rows, search.next_offset)
        search, pages = search.take(UsagePage(rows=tuple(page), total=total)), pages + 1
        assert pages < 9
    assert not search.result(at(3600)).is_certainly_none


def test_a_row_that_is_lost_between_two_pages_is_a_gap() -> None:
    """A page that does not begin with the last row of the one before proves nothing: the submit's may lie between."""
    rows = (row(9, 30, request_id="kie_9"), row(8, 20, request_id="kie_8"), row(7, request_id="lost"), CONTROL)
    first = Search(wanted=known("kie_9", "kie_8", begun=10)).take(UsagePage(rows=rows[:2], total=4))
    whole, gap = (first.take(UsagePage(rows=pages, total=4)) for pages in ((rows[1], CONTROL), (CONTROL,)))
    assert whole.result(at(3600)).is_certainly_none
    assert not gap.result(at(3600)).is_certainly_none


@pytest.mark.parametrize("total", [None, 5, 0])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 500])
def test_the_end_of_the_rows_is_seen_and_not_counted(total: int | None, size: int) -> None:
    """A listing without rows that are certainly older is whole where a page brings nothing more, whatever its total."""
    ids = [f"kie_{number}" for number in range(5)]
    rows = [row(number, 10 * number, request_id=ids[number]) for number in reversed(range(5))]
    search = Search(wanted=known(*ids, begun=10))
    while (offset := search.next_offset) is not None:
        search = search.take(UsagePage(rows=tuple(rows[offset : offset + size]), total=total))
    assert search.result(at(3600)).is_certainly_none


@given(st.lists(st.floats(-300, 300), max_size=40), st.integers(1, 7), st.floats(0, 200))
def test_newest_first_nothing_is_missed(ages: list[float], size: int, width: float) -> None:
    """In documented order, whatever the page size, the candidates are exactly the rows within the interval."""
    wanted = attrs.evolve(WANTED, latest=AT + width)
    rows = [row(number + 1, age) for number, age in enumerate(sorted(ages, reverse=True))]
    search = walk(wanted, [*rows, CONTROL], size)[0].result(at(3600))
    within = [each for each in rows if not (wanted.is_before(each) or wanted.is_after(each))]
    assert {each.id for each in search.candidates} == {each.id for each in within if wanted.is_of_target(each)}


def test_a_time_that_either_clock_may_have_told_is_looked_for_by_both() -> None:
    """It is searched for at the service's time too; it was not sent in the future, and neither clock is certain."""
    ahead = Moment(wall=AT + 100, earliest=AT + 3700, latest=AT + 3700, known="heard")
    wanted = Wanted.at(AT, MINE, ahead)
    assert (wanted.earliest, wanted.latest) == (AT, AT + 3600)
    behind = Wanted.at(AT, MINE, attrs.evolve(ahead, wall=AT + 3700, earliest=AT + 100, latest=AT + 100))
    assert (behind.earliest, behind.latest) == (AT - 3600, AT)
    early = Wanted.at(AT, MINE, attrs.evolve(ahead, earliest=AT + 100, latest=AT + 100, wall=AT - 3500))
    assert (early.earliest, early.latest) == (AT, AT)
    halves = (attrs.evolve(ahead, earliest=None), attrs.evolve(ahead, latest=None))
    for now in (ahead, Moment(wall=AT), attrs.evolve(ahead, wall=AT - 9e6), *halves):
        assert "by which clock" in (Wanted.at(AT, MINE, now).undated or "")


def test_runs_of_another_account_are_no_control() -> None:
    """They account for rows, but that they stand in a listing does not say that it is of the submit's account."""
    runs = [attrs.evolve(run, is_of_account=False) for run in KNOWN]
    search = found(attrs.evolve(WANTED, known=runs), [])
    assert "another account" in search.reasons[0]
    assert search.candidates == ()


@pytest.mark.parametrize("shown", [[], [attrs.evolve(CONTROL, created_at=None)], [row(9, -900, request_id="")]])
def test_rows_that_show_no_known_run_prove_nothing(shown: list[UsageRow]) -> None:
    """Rows of strangers, a known run's without a date, and one without a request id say not whose listing it is."""
    strangers = [row(number, -900 - number, request_id=f"stranger-{number}") for number in range(12)]
    wanted = attrs.evolve(WANTED, known=(*KNOWN, KnownRun(request_id="", begun_by=AT - 300)))
    search = walk(wanted, [*shown, *strangers])[0].result(at(3600))
    assert "another account" in search.reasons[0]
    assert not search.is_certainly_none


def test_a_row_that_comes_while_rows_are_read_costs_no_page() -> None:
    """It moves the others on to the next page, which repeats them; they are newest first all the same."""
    rows = [row(90 - number, 90.0 - number, request_id="r") for number in range(20)]
    old = [row(number, -900 - number, request_id="old") for number in range(5)]
    search = Search(wanted=attrs.evolve(WANTED, known=())).take(UsagePage(rows=tuple(rows)))
    search = search.take(UsagePage(rows=(*rows[-3:], *old)))
    assert search.next_offset is None


def test_an_error_says_when_its_submit_left() -> None:
    """Its bounds by the service's clock are taken as they are; without them nothing is proven."""
    end = SENT + timedelta(seconds=9)
    dated = SubmissionUnknownError(
        target="workflows/mine", sent_at=SENT, seen="reset", sent_after=SENT, sent_before=end
    )
    wanted = Wanted.of_error(dated, MINE)
    assert (wanted.earliest, wanted.latest, wanted.undated) == (AT, AT + 9, None)
    for after, before in ((None, None), (SENT, None), (None, SENT)):
        half = SubmissionUnknownError(
            target="workflows/mine", sent_at=SENT, seen="reset", sent_after=after, sent_before=before
        )
        assert Wanted.of_error(half, MINE).undated is not None


def test_two_moments_say_when_a_submit_left() -> None:
    """It left after the first and before the second, or as late as a synchronous run may last; else it is undated."""
    for lasts, latest in ((0, AT + 9), (30, AT + 31)):
        wanted = Wanted.between(at(0, bounds=1), at(8, bounds=1), lasts, MINE)
        assert (wanted.earliest, wanted.latest, wanted.undated) == (AT - 1, latest, None)
    unknown = Moment(wall=AT)
    for since, until in ((unknown, at(8)), (at(0), unknown), (attrs.evolve(at(0), latest=None), at(8))):
        assert Wanted.between(since, until, 0, MINE).undated is not None


def test_a_client_remembers_the_runs_it_began() -> None:
    """By target, the newest thousand; a run without a request id matches no row."""
    recent = RecentRuns()
    for number in range(1100):
        recent.add(MINE, f"r-{number}", at(number))
    recent.add(Target("models", "mine"), "m-1", Moment(wall=0.0))
    recent.add(MINE, None, at(0))
    assert len(recent.of(MINE)) == 999
    assert recent.of(Target("models", "mine")) == (KnownRun(request_id="m-1"),)
    assert recent.of(MINE)[-1] == KnownRun(request_id="r-1099", begun_by=AT + 1099)


def test_a_client_remembers_the_submits_it_lost() -> None:
    """By target and time, the newest thousand."""
    recent, now = RecentRuns(), Reading(loop=None, steady=0.0, boot=None, wall=0.0)
    sent = [SENT + timedelta(seconds=number) for number in range(1001)]
    for each in sent:
        recent.lose(LostSubmit(target=str(MINE), sent_at=each, since=now, until=now))
    assert (recent.lost(MINE, sent[0]), recent.lost(Target("models", "mine"), sent[1])) == (None, None)
    for each in (sent[1], sent[-1]):
        lost = recent.lost(MINE, each)
        assert lost is not None
        assert lost.sent_at == each


def test_rows_that_vanish_while_they_are_read_prove_nothing() -> None:
    """A page that should repeat the last row and is empty does not join, whatever total it has."""
    run = KnownRun(request_id="control", begun_by=AT - 10)
    newest = (row(3, -5, workflow_slug="another"), row(2, -10, request_id="control"))
    search = Search(wanted=attrs.evolve(WANTED, known=(run,))).take(UsagePage(rows=newest, total=4))
    assert search.next_offset == 1
    assert not search.take(UsagePage(rows=(), total=1)).result(at(3600)).is_certainly_none
    whole = UsagePage(rows=newest[1:], total=2)
    assert search.take(whole).result(at(3600)).is_certainly_none


def test_a_known_run_without_a_date_asks_for_no_row() -> None:
    """When it began is not known, so neither is whether its row is due."""
    undated = attrs.evolve(WANTED, known=(*KNOWN, KnownRun(request_id="undated")))
    assert found(undated, []).is_certainly_none


# What a database has lost.

DOUBT = Doubt(id="1", timeline="2", since=AT, until=AT + 600)
RUNS = (*KNOWN, KnownRun(request_id="there", begun_by=AT + 1))
THERE = row(1, 0, request_id="there")


def test_a_doubt_reads_as_it_was_written() -> None:
    """What a ledger has on record is a doubt, or nothing but its timeline."""
    for doubt in (DOUBT, Doubt(id="1", timeline="2")):
        assert Doubt.read(str(doubt)) == doubt
    assert Doubt.read("7/00000001") is None


def test_a_ledger_lacks_no_run_where_every_row_is_accounted_for() -> None:
    """Rows of all targets count, from shortly before the last run that is surely there, once none can come any more."""
    wanted = attrs.evolve(DOUBT.wanted(), known=RUNS)
    assert found(wanted, [THERE], now=at(721)).is_certainly_none
    assert not found(wanted, [THERE], now=at(719)).is_conclusive
    for lost in (
        row(9, 600),
        row(9, -119),
        row(9, 5, workflow_slug="other"),
        row(9, 5, request_id="x", source="api-slim"),
    ):
        assert [each.id for each in found(wanted, [lost, THERE]).candidates] == [9]
    assert found(wanted, [THERE, row(9, -121)]).is_certainly_none
    assert not found(wanted, []).is_conclusive  # a run on record has no row: the rows are late, or cut
    assert not walk(wanted, [THERE])[0].result(at(719)).is_conclusive


def test_a_doubt_without_dates_is_never_settled_by_rows() -> None:
    """Where nobody knows which runs are there, or since when none is sent, only a person can say so."""
    for doubt in (attrs.evolve(DOUBT, since=None), attrs.evolve(DOUBT, until=None)):
        assert not found(attrs.evolve(doubt.wanted(), known=RUNS), [THERE]).is_conclusive
        assert doubt.next_check(at(0)) is None
    assert DOUBT.next_check(Moment(wall=AT)) is None


def test_a_doubt_is_checked_when_all_rows_would_be_there_and_for_a_while_after() -> None:
    """First after two minutes, then every few seconds for two more: processes that live may still bring news."""
    assert DOUBT.next_check(at(600)) == 120
    assert DOUBT.next_check(at(720)) == DOUBT.next_check(at(840)) == 15
    assert DOUBT.next_check(at(841)) is None


@pytest.mark.parametrize("size", [2, 3, 4, 9])
def test_a_few_rows_in_order_do_not_end_a_walk(size: int) -> None:
    """Rows in any order may begin with some that look newest first by chance: its own may be further on."""
    older = [row(number, -1000 - number) for number in range(2, 2 + size)]
    wanted = attrs.evolve(WANTED, known=KNOWN)
    search, _ = walk(wanted, [CONTROL, *older[:-1], row(99, 1), older[-1]], size)
    assert not search.result(at(3600)).is_certainly_none


def test_rows_that_nobody_accounts_for_are_named() -> None:
    """By id, date, target and request; of many the first ones, and how many more there are."""
    wanted = attrs.evolve(DOUBT.wanted(), known=RUNS)
    rows = [row(7, 2, request_id="x"), row(8, 1, workflow_slug=None, model_ids=("suno-v5",)), THERE]
    assert unaccounted(found(wanted, rows)) == (
        "no job on record accounts for usage row 7 of 2026-05-08 12:00:02 UTC (workflows/mine, request x), usage row 8 "
        "of 2026-05-08 12:00:01 UTC (suno-v5, request None)"
    )
    many = unaccounted(found(wanted, [*(row(number, 5) for number in range(100, 125)), THERE]))
    assert (many.count("usage row"), many.endswith("and 5 more")) == (20, True)
    assert unaccounted(found(wanted, [THERE], now=at(0))).startswith("usage rows may be 120 s late")
    recent = (*KNOWN, *(KnownRun(request_id=f"{n}", begun_by=AT) for n in range(9)))
    late = attrs.evolve(attrs.evolve(DOUBT, until=AT).wanted(), known=recent)
    said = unaccounted(found(late, [row(n + 1, 0, request_id=f"{n}") for n in range(9)], now=at(1)))
    assert (said.count("too recent"), said.endswith("and 7 more")) == (2, True)
    assert "of nothing named" in unaccounted(found(wanted, [row(9, 5, workflow_slug=None), THERE]))
