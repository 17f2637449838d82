"""The agenda by what was learned: looks, sweeps and the requests for them, in tables and under any listing."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knouds_async._sansio.agenda import Agenda, Plan
from knouds_async._sansio.course import Course, Stage
from knouds_async._sansio.learned import CANCELLED, Learned
from knouds_async._sansio.listing import Listing
from knouds_async._sansio.pace import bound
from knouds_async._sansio.spending import Quota
from knouds_async._sansio.sweeps import Page
from knouds_async.config import Polling

LAW = "workflows/a"


def course(number: int, submitted: float | None = 0.0, request: str | None = "") -> Course:
    """Give a run that was just submitted; `request` "" is its own."""
    return Course(f"x{number}", law=LAW, submitted=submitted, request_id=f"r{number}" if request == "" else request)


def watching(number: int, *, learned: Learned | None = None, **options: Any) -> Agenda:
    """Give an agenda that watches so many runs, all submitted at 0."""
    agenda = Agenda(Polling(**options), learned or Learned())
    for place in range(number):
        agenda.watch(course(place), 0.0, 0.5)
    return agenda


def listing(rows: dict[int, str], total: int | None = None) -> Listing:
    """Give a page with the rows of some runs."""
    return Listing(tuple((f"r{number}", status) for number, status in rows.items()), len(rows), total)


def page_after(agenda: Agenda, now: float) -> Page:
    """Let time pass from then on, with looks that find all runs going, until a sweep is due; give its page."""
    for step in range(400):
        plan = agenda.plan(now + step / 10, 0.5)
        for name in plan.looks:
            agenda.looked(name, now + step / 10, 0.5)
        if plan.page is not None:
            return plan.page
    raise AssertionError("no sweep")


def swept(agenda: Agenda, rows: dict[int, str], now: float = 0.0) -> tuple[Plan, float]:
    """Let the agenda sweep and see these rows; give the plan that follows, and when that was."""
    page = page_after(agenda, now)
    assert agenda.listed(page, listing(rows), page.began) is None
    return agenda.plan(page.began, 0.5), page.began


def going(number: int) -> dict[int, str]:
    """Give the rows of so many runs that go on."""
    return dict.fromkeys(range(number), "processing")


def test_one_run_is_looked_at_when_its_end_is_likely() -> None:
    """Cold: after some seconds, and then at steps of four; nothing is due before, and nothing twice."""
    agenda, now, looks = watching(1), 0.0, []
    for _ in range(5):
        plan = agenda.plan(now, 0.5)
        assert (plan.looks, plan.page) == ([], None)
        now = plan.at
        assert agenda.plan(now, 0.5).looks == ["x0"]
        assert agenda.plan(now + 1, 0.5) == Plan([], None, math.inf)
        looks.append(now)
        agenda.looked("x0", now, 0.5)
    assert 5 <= looks[0] <= 8
    assert all(2 <= later - sooner <= 8 for sooner, later in pairwise(looks))


def test_a_run_of_unknown_age_is_looked_at_at_once_and_then_as_if_half_over() -> None:
    """An attached run is looked at now, and some seconds later."""
    agenda = Agenda(Polling(), Learned())
    agenda.watch(course(0, submitted=None), 100.0, 0.5)
    assert agenda.plan(100.0, 0.5).looks == ["x0"]
    agenda.looked("x0", 100.0, 0.5)
    assert 102 <= agenda.plan(100.0, 0.5).at <= 106


def test_three_runs_are_swept_and_what_a_listing_shows_as_over_is_looked_at() -> None:
    """A hint makes one look, at once; the run is over only when that look says so."""
    agenda = watching(5)
    plan = agenda.plan(0.0, 0.5)
    assert plan.page is None
    assert plan.at <= 1.0
    at = next(step / 10 for step in range(1, 200) if agenda.plan(step / 10, 0.5).page is not None)
    assert 1 <= at <= 8
    agenda.listed(Page(at), listing({0: "processing", 1: "completed", 2: "processing"}), at)
    assert agenda.plan(at, 0.5).looks == ["x1"]
    agenda.over("x1", at + 0.1)
    agenda.looked("x1", at + 0.1, 0.5)
    assert ("x1" in agenda, len(agenda)) == (False, 4)


def test_a_row_that_slips_to_the_next_page_makes_no_second_look() -> None:
    """New rows push older ones down, so a page may show again what the one before it has shown as over."""
    agenda = watching(5)
    page = page_after(agenda, 0.0)
    for _ in range(2):
        agenda.listed(page, listing({1: "completed"}), page.began)
    assert agenda.plan(page.began, 0.5).looks == ["x1"]


def test_two_runs_are_not_swept_and_no_run_is_without_sweeps() -> None:
    """Two runs are looked at singly; so are many when listings are not wanted."""
    for agenda in (watching(2), watching(20, sweeps=False)):
        assert all(agenda.plan(now / 4, 0.5).page is None for now in range(200))


def test_a_run_that_a_listing_has_just_shown_going_is_not_looked_at() -> None:
    """Once a listing was first with an end, those that it shows going are left to it."""
    agenda = watching(8)
    _, now = swept(agenda, going(8))
    for _ in range(40):
        now += 1.0
        plan = agenda.plan(now, 0.5)
        for name in plan.looks:
            agenda.over(name, now) if name == "x0" else None
            agenda.looked(name, now, 0.5)
        if plan.page is not None:
            agenda.listed(plan.page, listing(going(8) | {0: "completed"}), now)
    assert "x0" not in agenda
    looked = [name for name in (f"x{number}" for number in range(3, 8)) if agenda._roster.get(name).count]  # type: ignore[union-attr]
    assert looked == []


def test_a_hint_that_is_wrong_is_not_believed_again_soon() -> None:
    """A run that a look finds going is deaf to hints for a while, and is looked at as ever."""
    agenda = watching(5)
    plan, now = swept(agenda, {0: "completed"})
    assert plan.looks == ["x0"]
    agenda.looked("x0", now, 0.5)
    agenda.listed(Page(now + 1), listing({0: "completed"}), now + 1)
    assert agenda.plan(now + 1, 0.5).looks == []
    agenda.listed(Page(now + 20), listing({0: "completed"}), now + 20)
    assert "x0" in agenda.plan(now + 20, 0.5).looks


def test_an_unknown_word_is_learned() -> None:
    """A status that nobody knows is looked up once, and then known to be of runs that go on."""
    agenda = watching(5)
    plan, now = swept(agenda, {0: "rendering"})
    assert plan.looks == ["x0"]
    agenda.looked("x0", now, 0.5)
    agenda.listed(Page(now + 1), listing({0: "rendering", 1: "rendering"}), now + 1)
    assert agenda.plan(now + 1, 0.5).looks == []


def test_a_request_that_two_runs_share_shows_neither() -> None:
    """Runs that cannot be told apart in a listing are looked at singly."""
    agenda = Agenda(Polling(), Learned())
    for number in range(4):
        agenda.watch(course(number, request="same"), 0.0, 0.5)
    agenda.watch(course(9, request=None), 0.0, 0.5)
    agenda.plan(0.0, 0.5)
    agenda.listed(Page(6.0), Listing((("same", "completed"),), 1), 6.0)
    assert agenda.plan(6.0, 0.5).looks == []
    assert sorted(agenda.plan(9.0, 0.5).looks) == ["x0", "x1", "x2", "x3", "x9"]


def test_a_run_is_identified_by_its_first_look() -> None:
    """The request of an attached run, once it is known, is what listings show it by; a second name does not count."""
    agenda = Agenda(Polling(), Learned())
    late = course(0, request=None)
    agenda.identify(late, "r0")
    agenda.watch(late, 0.0, 0.5)
    other = course(1, request=None)
    agenda.watch(other, 0.0, 0.5)
    agenda.identify(other, "r1")
    agenda.identify(other, "r2")
    agenda.plan(0.0, 0.5)
    agenda.listed(Page(6.0), listing({0: "completed", 1: "completed", 2: "processing"}), 6.0)
    assert sorted(agenda.plan(6.0, 0.5).looks) == ["x0", "x1"]


def test_failing_sweeps_wait_longer_each_time_and_lasting_faults_end_them() -> None:
    """After each failure the next sweep comes later; one that would fail again ends them for ten minutes."""
    agenda, starts = watching(20), []
    for step in range(400):
        if agenda.plan(step / 4, 0.5).page is not None:
            starts.append(step / 4)
            agenda.not_listed(step / 4, is_lasting=len(starts) == 4)
    assert len(starts) == 4
    gaps = [later - sooner for sooner, later in pairwise(starts)]
    assert gaps == sorted(gaps)
    assert all(agenda.plan(100.0 + now, 0.5).page is None for now in range(400))
    assert any(agenda.plan(700.0 + now / 4, 0.5).page is not None for now in range(100))


def test_looks_that_fail_are_tried_again_after_a_pause() -> None:
    """Each failure in a row lengthens the pause, to ten seconds at most; a look that comes back ends that."""
    agenda, now, pauses = watching(1), 7.5, []
    assert agenda.plan(now, 0.5).looks == ["x0"]
    for _ in range(7):
        agenda.looked("x0", now, 0.5, is_alive=False)
        pauses.append(agenda.plan(now, 0.5).at - now)
        now += pauses[-1]
        assert agenda.plan(now, 0.5).looks == ["x0"]
    assert pauses == pytest.approx([2, 4, 6, 8, 10, 10, 10])
    agenda.looked("x0", now, 0.5)
    assert agenda.plan(now, 0.5).at < now + 8


def test_a_known_end_whose_look_failed_goes_first_again() -> None:
    """After the pause the run is looked at before all that only may be over."""
    agenda = watching(5)
    plan, now = swept(agenda, {3: "failed"})
    assert plan.looks == ["x3"]
    agenda.looked("x3", now, 0.5, is_alive=False)
    few = Quota(limit=100, left=1, resets_in=30.0)
    assert agenda.plan(now + 10, 0.5, polls=few).looks == ["x3"]


def test_known_ends_wait_for_requests_and_go_oldest_first() -> None:
    """With two requests left two ends are looked at, the rest when the window is over; no sweep is made meanwhile."""
    agenda = Agenda(Polling(), Learned())
    for number in range(6):
        agenda.watch(course(number, submitted=float(number)), 5.0, 0.5)
    page = page_after(agenda, 5.0)
    now = page.began
    agenda.listed(page, listing(dict.fromkeys(reversed(range(6)), "completed")), now)
    assert agenda.plan(now, 0.5, polls=Quota(limit=100, left=2, resets_in=20.0)).looks == ["x0", "x1"]
    plan = agenda.plan(now + 5, 0.5, polls=Quota(limit=100, left=0, resets_in=15.0))
    assert (plan.looks, plan.page) == ([], None)
    assert plan.at == pytest.approx(now + 20.06)
    full = Quota(limit=100, left=100, resets_in=60.0)
    assert agenda.plan(now + 20.1, 0.5, polls=full).looks == ["x2", "x3", "x4", "x5"]


def test_one_look_may_always_wait_in_line() -> None:
    """With nothing left and nothing under way one look is made, which waits for its turn."""
    agenda = watching(1)
    assert agenda.plan(8.0, 0.5, polls=Quota(limit=100, left=0, resets_in=30.0)).looks == ["x0"]


def test_one_look_goes_ahead_while_the_quota_is_not_known() -> None:
    """Many runs are due, and nothing is known of the quota: the first answer tells, or two seconds pass."""
    agenda = watching(50, sweeps=False)
    assert agenda.plan(0.0, 0.5).at > 5
    first = agenda.plan(8.0, 0.5)
    assert len(first.looks) == 1
    assert first.at == 10.0
    assert agenda.plan(9.0, 0.5).looks == []
    agenda.looked(first.looks[0], 9.1, 0.5)
    assert len(agenda.plan(9.2, 0.5).looks) == 49
    silent = watching(50, sweeps=False)
    assert len(silent.plan(8.0, 0.5).looks) == 1
    assert len(silent.plan(10.1, 0.5).looks) == 49


def test_scarce_looks_are_spread_and_go_to_those_unseen_for_longest() -> None:
    """Of many that are due each gets its turn over the window, those first whose ends are most likely unseen."""
    learned = Learned()
    for age in (30.0, 40.0, 50.0) * 10:
        learned.ended(LAW, age, age)
    agenda = Agenda(Polling(sweeps=False), learned)
    for number in range(40):
        agenda.watch(course(number, submitted=-2.0 * number), 0.0, 0.5)
    looks: list[str] = []
    for step in range(40):
        left = Quota(limit=20, left=20 - len(looks), resets_in=60.0 - step / 2)
        plan = agenda.plan(40.0 + step / 2, 0.5, polls=left)
        looks += plan.looks
        assert len(plan.looks) <= 2
        assert plan.at <= 41.1 + step / 2
    assert 4 <= len(looks) <= 8
    assert set(looks) <= {f"x{number}" for number in range(25, 40)}


def test_plain_looks_that_are_due_go_in_turn() -> None:
    """On a plain schedule scarce requests go to who is due first."""
    agenda = Agenda(Polling.every(2.0), Learned())
    for number in range(5):
        agenda.watch(course(number, submitted=number / 10), 0.5, 0.5)
    few = Quota(limit=100, left=2, resets_in=7.0)
    plan = agenda.plan(3.0, 0.5, polls=few)
    assert plan.looks == ["x0", "x1"]
    assert plan.at == pytest.approx(10.06)
    assert agenda.plan(10.1, 0.5, polls=Quota(limit=100, left=9, resets_in=60.0)).looks == ["x2", "x3", "x4"]


def test_scarce_requests_cost_more() -> None:
    """The same runs are looked at more rarely when there are few requests for them."""

    def first_look(limit: int) -> float:
        agenda, quota = watching(30, sweeps=False), Quota(limit=limit, left=limit, resets_in=60.0)
        agenda.plan(0.0, 0.5, polls=quota)
        return next(now / 4 for now in range(400) if agenda.plan(now / 4, 0.5, polls=quota).looks)

    assert first_look(10_000) < first_look(40) - 5


def test_a_look_that_was_begun_for_an_earlier_wait_serves_the_next() -> None:
    """A run whose waiter changes is not looked at twice at once, unless the first look hangs."""
    agenda, one = Agenda(Polling(), Learned()), course(0)
    agenda.watch(one, 0.0, 0.5)
    assert agenda.plan(8.0, 0.5).looks == ["x0"]
    agenda.forget("x0")
    agenda.watch(one, 9.0, 0.5)
    assert agenda.plan(30.0, 0.5).looks == []
    agenda.forget("x0")
    agenda.watch(one, 30.0, 0.5)
    assert agenda.plan(30.0, 0.5).looks == ["x0"]
    agenda.dropped(31.0, 0.5)
    assert agenda.plan(31.0, 0.5).looks == ["x0"]


def test_a_run_that_is_asked_to_end_is_looked_at_soon() -> None:
    """A cancel is over within seconds; its end teaches nothing of the runs of the target."""
    learned = Learned()
    agenda, one = Agenda(Polling(), learned), course(0)
    agenda.watch(one, 0.0, 0.5)
    agenda.cancelling(one, 1.0, 0.5)
    agenda.cancelling(one, 1.2, 0.5)
    assert agenda.plan(1.2, 0.5).at < 4
    assert agenda.plan(4.0, 0.5).looks == ["x0"]
    agenda.over("x0", 4.0)
    assert list(learned.to_dict()) == [CANCELLED]
    idle = course(1)
    agenda.cancelling(idle, 5.0, 0.5)
    agenda.watch(idle, 6.0, 0.5)
    assert agenda.plan(6.0, 0.5).at < 9
    under_way = course(2)
    agenda.watch(under_way, 6.0, 0.5)
    assert "x2" in agenda.plan(20.0, 0.5).looks
    agenda.cancelling(under_way, 20.0, 0.5)
    assert under_way.stage is Stage.UNDER_WAY


def test_a_run_that_says_its_age_is_looked_at_by_it() -> None:
    """The date of an attached run, once it is known, is what its age is counted from."""
    agenda, one = Agenda(Polling(), Learned()), course(0, submitted=None)
    agenda.watch(one, 100.0, 0.5)
    assert agenda.plan(100.0, 0.5).looks == ["x0"]
    agenda.date(one, 99.0)
    agenda.looked("x0", 100.0, 0.5)
    assert agenda.plan(100.0, 0.5).at > 105
    hinted = course(1)
    agenda.watch(hinted, 100.0, 0.5)
    agenda.hint("x1")
    agenda.date(hinted, 90.0)
    assert agenda.plan(100.0, 0.5).looks == ["x1"]
    agenda.over("x1", 100.1)
    assert len(agenda._roster.crowd) == 1


def test_a_hint_from_elsewhere_makes_one_look() -> None:
    """What a delivery announces is looked at now, once; and one that is wrong costs listings nothing."""
    agenda = watching(1)
    agenda.hint("x0")
    agenda.hint("x0")
    agenda.hint("nobody")
    assert agenda.plan(0.1, 0.5).looks == ["x0"]
    agenda.hint("x0")
    agenda.looked("x0", 0.2, 0.5)
    assert agenda.plan(0.2, 0.5).looks == []
    agenda.hint("x0")
    assert agenda.plan(0.3, 0.5).looks == ["x0"]
    agenda.over("x0", 0.4)
    agenda.over("x0", 0.4)
    agenda.looked("x0", 0.4, 0.5)
    assert len(agenda) == 0


def test_who_waits_until_a_deadline_gets_a_last_look() -> None:
    """A look just before the deadline, if the run may well be over by then, and not otherwise; also one of several."""
    agenda = watching(1, cost_of_request=100.0)
    assert agenda.plan(0.0, 0.5).at > 60
    agenda.hurry("x0", 50.0, 0.0, 0.5)
    agenda.hurry("x0", 5.0, 0.0, 0.5)
    agenda.hurry("nobody", 5.0, 0.0, 0.5)
    assert agenda.plan(4.6, 0.5).looks == []
    assert agenda.plan(6.0, 0.5).at == 49.5
    assert agenda.plan(49.5, 0.5).looks == ["x0"]
    agenda.hurry("x0", 52.0, 49.6, 0.5)
    agenda.looked("x0", 49.7, 0.5)
    assert agenda.plan(49.7, 0.5).at > 52


def test_a_hinted_run_may_leave() -> None:
    """A run that nobody waits for any more is not looked at, hint or not, and all counts are as before."""
    agenda = watching(4)
    agenda.plan(0.0, 0.5)
    page = agenda.plan(6.0, 0.5).page
    assert page is not None
    agenda.listed(page, listing({0: "completed", 1: "completed"}), 6.0)
    agenda.forget("x0")
    agenda.forget("x0")
    looks = agenda.plan(6.0, 0.5).looks
    assert "x1" in looks
    assert "x0" not in looks
    for number in range(1, 4):
        agenda.forget(f"x{number}")
    assert (len(agenda), len(agenda._roster.crowd), agenda._hints.listable()) == (0, 0, 0)


def test_a_sweep_goes_on_to_the_next_page_while_runs_are_missing() -> None:
    """A full page that lacks some runs is followed by the next, and the sweep is over when all were shown."""
    agenda = watching(4)
    first = page_after(agenda, 0.0)
    others = tuple((f"other{number}", "completed") for number in range(498))
    second = agenda.listed(first, Listing((*others, ("r0", "processing"), ("r1", "processing")), 500), first.began)
    assert second is not None
    assert (second.offset, second.shown) == (500, 2)
    assert agenda.plan(first.began, 0.5).page is None
    assert agenda.listed(second, listing({2: "processing", 3: "processing"}), first.began) is None


def test_a_cut_leaves_what_was_not_under_way_alone() -> None:
    """When looks are cut, only the runs that were being looked at are due again."""
    agenda = Agenda(Polling(), Learned())
    agenda.watch(course(0), 0.0, 0.5)
    agenda.watch(course(1, submitted=7.5), 7.5, 0.5)
    assert agenda.plan(8.0, 0.5).looks == ["x0"]
    agenda.dropped(8.0, 0.5)
    assert agenda.plan(8.0, 0.5).looks == ["x0"]


def test_a_ranking_holds_for_a_moment() -> None:
    """Several looks at once go to the likeliest; one that has left since it was ranked is passed over."""
    agenda = Agenda(Polling(sweeps=False), Learned())
    for number in range(20):
        agenda.watch(course(number, submitted=-float(number)), 0.0, 0.5)
    scarce = Quota(limit=15, left=15, resets_in=3.0)
    assert agenda.plan(60.0, 0.5, polls=scarce).looks == []
    assert agenda.plan(60.2, 0.5, polls=scarce).looks == ["x19"]
    agenda.forget("x18")
    assert agenda.plan(60.4, 0.5, polls=scarce).looks == ["x17"]
    assert agenda.plan(61.4, 0.5, polls=scarce).looks == ["x16", "x15", "x14", "x13", "x12"]


@settings(max_examples=60)
@given(st.data(), st.integers(1, 12), st.integers(0, 2**32))
def test_no_listing_delays_a_run_beyond_its_bound(data: st.DataObject, number: int, seed: int) -> None:
    """Whatever listings say, each run is looked at or shown going within the longest step, and never twice at once."""
    dice = random.Random(seed)
    words = data.draw(st.lists(st.sampled_from(["processing", "completed", "odd", None]), min_size=1, max_size=4))
    agenda, now = watching(number), 0.0
    under_way: dict[str, float] = {}
    seen = dict.fromkeys(range(number), 0.0)
    while now < 200.0:
        plan = agenda.plan(now, dice.random())
        assert not set(plan.looks) & set(under_way)
        assert plan.at > now
        under_way |= dict.fromkeys(plan.looks, now + dice.uniform(0.01, 1.0))
        if plan.page is not None:
            rows = {place: word for place in range(number) if (word := dice.choice(words)) is not None}
            if dice.random() < 0.1:
                agenda.not_listed(now, is_lasting=False)
            else:
                seen |= dict.fromkeys((place for place, word in rows.items() if word != "completed"), now)
                agenda.listed(plan.page, listing(rows), now)
            now += 0.01
            continue
        now = max(now + 0.01, min(plan.at, min(under_way.values(), default=math.inf), 200.0))
        for name in [name for name, at in under_way.items() if at <= now]:
            del under_way[name]
            agenda.looked(name, now, dice.random())
            seen[int(name[1:])] = now
        assert all(now - last <= 45.0 + bound(last) for last in seen.values())


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32))
def test_all_ends_are_found_under_any_quota(number: int, limit: int, seed: int) -> None:
    """Runs that end at any time are all found, with no more looks in a window than there are, and no standstill."""
    dice = random.Random(seed)
    ends = [dice.expovariate(1 / 40) for _ in range(number)]
    agenda, now, spent, window = watching(number), 0.0, 0, 0
    for _ in range(20_000):
        if not len(agenda):
            break
        if now // 60 != window:
            window, spent = int(now // 60), 0
        quota = Quota(limit=limit, left=limit - spent, resets_in=60 - now % 60)
        plan = agenda.plan(now, 0.5, polls=quota)
        spent += len(plan.looks)
        assert spent <= limit + 1
        if spent > limit:  # it waits in line for the next window
            window, spent = window + 1, 1
            now = 60.0 * window
        for name in plan.looks:
            if ends[int(name[1:])] <= now:
                agenda.over(name, now, lasted=ends[int(name[1:])])
            agenda.looked(name, now, 0.5)
        if plan.page is not None:
            rows = {place: "completed" if end <= now else "processing" for place, end in enumerate(ends)}
            agenda.listed(plan.page, listing(rows), now)
        elif not plan.looks:
            now = max(now + 0.01, min(plan.at, 60 * (window + 1) + 0.01))
    assert len(agenda) == 0
