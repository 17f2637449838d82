"""What usage rows prove of a submit whose outcome is unknown: that it certainly began no run, or nothing. Pure.

Of submits that a database has lost they prove the same: that there were none, or nothing.

An absence is a proof only where the submit is dated by the service's clock, the listing is whole and shows a run that
is known (else it may be somebody else's, late or cut), rows have had the time to come, and every row of the target from
then on is that of a known run. Source: contract 10; that rows come newest first is assumed there, so it is watched.
"""

from __future__ import annotations

import itertools
import json
import operator
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import attrs

from knouds_async._sansio.clock import Moment, Reading, begun_between
from knouds_async.errors import SubmissionUnknownError
from knouds_async.types import Record, SubmissionSearch, Target, UsagePage, UsageRow

LAG: Final = 120.0
"""Seconds by which a row may come late, or be dated apart from its submit."""

_PAGES_FOR_A_KNOWN_RUN: Final = 4
_ROWS_FOR_AN_ORDER: Final = 10  # one order in 3.6 million


@attrs.frozen(kw_only=True)
class KnownRun:
    """A run that is known to have begun: its request id, when it had begun at the latest and the earliest.

    Both in epoch seconds by the service's clock, None: not known. `is_of_account`: whether it is certain to be of the
    account whose submit is looked for.
    """

    request_id: str
    begun_by: float | None = None
    begun_after: float | None = None
    is_of_account: bool = True


@attrs.frozen(kw_only=True, eq=False, repr=False)
class LostSubmit:
    """A submit of this client whose outcome is unknown: this machine's clocks before it and after it.

    `lasts`: seconds within which a synchronous run may still begin or end.
    """

    target: str
    sent_at: datetime
    since: Reading
    until: Reading
    lasts: float = 0.0


class RecentRuns:
    """What one client remembers of its submits: runs that are known to have begun and submits that were lost."""

    def __init__(self) -> None:
        self._runs: deque[tuple[str, KnownRun]] = deque(maxlen=1000)
        self._lost: deque[LostSubmit] = deque(maxlen=1000)

    def lose(self, submit: LostSubmit) -> None:
        """Remember a submit whose outcome is unknown."""
        self._lost.append(submit)

    def lost(self, target: Target, sent_at: datetime) -> LostSubmit | None:
        """Return the submit of that target and time, if it was this client's."""
        name = str(target)
        return next((each for each in self._lost if (each.target, each.sent_at) == (name, sent_at)), None)

    def add(self, target: Target, request_id: str | None, begun_by: Moment) -> None:
        """Remember a run whose receipt came before `begun_by`; one without a request id matches no row."""
        if request_id:
            self._runs.append((str(target), KnownRun(request_id=request_id, begun_by=begun_by.latest)))

    def of(self, target: Target, *, is_of_account: bool = True) -> tuple[KnownRun, ...]:
        """Return the runs of a target; `is_of_account`: whether the submit that is looked for is this client's too."""
        name = str(target)
        return tuple(attrs.evolve(run, is_of_account=is_of_account) for of, run in self._runs if of == name)


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Wanted:
    """The submit that is looked for: it left between `earliest` and `latest`, epoch seconds by the service's clock.

    `undated`: why these bounds are only a guess, None where they are certain. `known`: the runs that are accounted for,
    one row each. `lag`: seconds by which rows may be late. `target`: None for any.
    """

    target: Target | None
    earliest: float
    latest: float
    undated: str | None = None
    known: Sequence[KnownRun] = ()
    lag: float = LAG

    @classmethod
    def of_error(cls, error: SubmissionUnknownError, target: Target) -> Wanted:
        """Return what an error says of its submit."""
        guess = error.sent_at.timestamp()
        after, before = error.sent_after, error.sent_before
        if after is None or before is None:
            undated = "the service's clock was not known when it left, so no time is certain at which its row can be"
            return cls(target=target, earliest=guess, latest=guess, undated=undated)
        return cls(target=target, earliest=after.timestamp(), latest=before.timestamp())

    @classmethod
    def between(cls, since: Moment, until: Moment, lasts: float, target: Target) -> Wanted:
        """Return a submit that left between two moments."""
        bounds = begun_between(since, until, lasts)
        undated = f"when it left: {since.known}" if bounds is None else None
        earliest, latest = bounds or (since.middle, until.middle)
        return cls(target=target, earliest=earliest, latest=latest, undated=undated)

    @classmethod
    def at(cls, sent_at: float, target: Target, now: Moment) -> Wanted:
        """Return a submit that left at `sent_at` by a clock that nobody names: this machine's or the service's.

        Both count, and neither is certain: it may have been set since. A moment still to come is not when it left.
        """
        undated = "it is not known by which clock its time was read: give the error itself, which says when it left"
        if now.earliest is None or now.latest is None:
            return cls(target=target, earliest=sent_at, latest=sent_at, undated=f"{undated}; {now.known}")
        by_ours = (sent_at + now.earliest - now.wall, sent_at + now.latest - now.wall)
        past = [moment for moment in (sent_at, *by_ours) if moment <= now.latest]
        return cls(target=target, earliest=min(sent_at, *by_ours), latest=max(past, default=sent_at), undated=undated)

    def not_yet(self, now: Moment) -> str | None:
        """Return why its row may still be to come at the moment `now`; None when it would be there."""
        if now.earliest is None:
            return f"{now.known}, so nobody can say whether its row would be there by now"
        left = self.latest + self.lag - now.earliest
        if left <= 0:
            return None
        return f"usage rows may be {self.lag:g} s late, so its row may still come for {left:.0f} s"

    def is_of_target(self, row: UsageRow) -> bool:
        """Return whether a row may be a run of the target; what a row does not say does not rule it out."""
        if self.target is None:
            return True
        if self.target.kind == "workflows" and row.source == "api-slim":
            return False
        return may_be_of(self.target, row.workflow_slug, row.model_ids)

    def is_before(self, row: UsageRow) -> bool:
        """Return whether a row is certainly older than the submit."""
        return row.created_at is not None and row.created_at.timestamp() < self.earliest - self.lag

    def is_long_before(self, row: UsageRow) -> bool:
        """Return whether a row is older than that of any run that may have one beside the submit's."""
        return row.created_at is not None and row.created_at.timestamp() < self.earliest - 3 * self.lag

    def has_row_before(self, run: KnownRun) -> bool:
        """Return whether the row of a known run is certainly older than the submit."""
        return run.begun_by is not None and run.begun_by < self.earliest - 2 * self.lag

    def is_after(self, row: UsageRow) -> bool:
        """Return whether a row is newer than the submit's can be."""
        return row.created_at is not None and row.created_at.timestamp() > self.latest + self.lag

    def shows_known_run(self, row: UsageRow) -> bool:
        """Return whether a row is a run of the target, known to have run at about the submit's time or before it."""
        if not row.request_id or row.created_at is None or not self.is_of_target(row) or self.is_after(row):
            return False
        return any(run.request_id == row.request_id and run.is_of_account for run in self.known)

    def is_misdated(self, row: UsageRow) -> bool:
        """Return whether a row of a known run is older than the run: then the rows are dated by another clock."""
        starts = [run.begun_after for run in self.known if run.request_id == row.request_id]
        date = None if row.created_at is None or not self.is_of_target(row) else row.created_at.timestamp()
        return bool(starts) and date is not None and all(each is not None and date < each - self.lag for each in starts)


def may_be_of(target: Target, slug: str | None, models: Sequence[str]) -> bool:
    """Return whether a run with this slug and these models may be one of a target; what is not known rules out none."""
    if target.kind == "workflows":
        return slug in (target.name, None)
    return slug is None and (target.name in models or not models)


def inconclusive(reason: str) -> SubmissionSearch:
    """Return a search that proves nothing, and why."""
    return SubmissionSearch(candidates=(), is_conclusive=False, reasons=(reason,))


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Doubt(Record):
    """Why a ledger may lack runs: it is on another database than it was, or a process misses what it had committed.

    `id`: of its own. `timeline`: of the database where it was noticed. `since`, `until`: epoch seconds by the service's
    clock: what was committed before `since` is there, and nothing was submitted on the ledger's word after `until`;
    None: not known.
    """

    id: str
    timeline: str
    since: float | None = None
    until: float | None = None

    @classmethod
    def read(cls, text: str) -> Doubt | None:
        """Return the doubt that a ledger has on record; None for one that has nothing but its timeline."""
        return cls(**json.loads(text)) if text.startswith("{") else None

    def __str__(self) -> str:
        """Return it as a ledger has it on record."""
        return json.dumps(attrs.asdict(self))

    def wanted(self) -> Wanted:
        """Return what may be missing as the submit that is looked for: one of any target, all that time."""
        if self.since is None or self.until is None:
            undated = "by the service's clock it is not known which runs the ledger has, or since when it has not"
            return Wanted(target=None, earliest=0.0, latest=0.0, undated=undated)
        return Wanted(target=None, earliest=self.since, latest=self.until, lag=LAG)

    def next_check(self, now: Moment) -> float | None:
        """Return the seconds after which a check may find more; None where only a person can help.

        Rows may be late by one lag, and news of processes that are still there by another.
        """
        if self.since is None or self.until is None or now.earliest is None:
            return None
        left = self.until + LAG - now.earliest
        if left > 0:
            return left
        return None if left < -LAG else LAG / 8


_ROWS_NAMED: Final = 20
_REASONS_NAMED: Final = 3


def unaccounted(search: SubmissionSearch) -> str:
    """Return which rows nobody accounts for, and what else keeps a ledger in doubt, for people."""
    rows = [f"{_named(row)} ({_run_of(row)})" for row in search.candidates]
    named = [f"no job on record accounts for {_first(rows, _ROWS_NAMED, ', ')}"] if rows else []
    reasons = [_first(search.reasons, _REASONS_NAMED, "; ")] if search.reasons else []
    return "; ".join((*named, *reasons))


def _first(texts: Sequence[str], count: int, between: str) -> str:
    more = len(texts) - count
    return between.join(texts[:count]) + (f" and {more} more" if more > 0 else "")


def _run_of(row: UsageRow) -> str:
    what = f"workflows/{row.workflow_slug}" if row.workflow_slug else ", ".join(row.model_ids) or "of nothing named"
    return f"{what}, request {row.request_id}"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Search:
    """A walk through the pages of usage rows: `next_offset` is None when it has seen all it needs.

    Each page begins with the last row of the one before, so that a gap shows. The walk ends at rows that are certainly
    older than the submit, or where a page brings nothing more: `total` may count the rows of a page.

    `rows`: all that were read, each once. `last_page`: those of the last page. `written`: when the service wrote the
    oldest of the pages, as far as they say. `pages_past`: how many end beyond the submit.
    """

    wanted: Wanted
    next_offset: int | None = 0
    rows: tuple[UsageRow, ...] = ()
    last_page: Sequence[UsageRow] = ()
    written: float | None = None
    is_whole: bool = True
    pages_past: int = 0

    def take(self, page: UsagePage, written: float | None = None) -> Search:
        """Search one page, which the service wrote at `written`, epoch seconds; None where it does not say."""
        rows = _together(self.rows, page.rows)
        is_past = any(map(self.wanted.is_long_before, rows)) and _are_newest_first(rows)
        needs_more = bool(self.wanted.known) and self.pages_past < _PAGES_FOR_A_KNOWN_RUN
        needs_more = needs_more and not any(map(self.wanted.shows_known_run, rows))
        is_done = not self._brings_more(page) or (is_past and not needs_more)
        overlap = int(len(page.rows) > 1)
        return attrs.evolve(
            self,
            next_offset=None if is_done else (self.next_offset or 0) + len(page.rows) - overlap,
            rows=rows,
            last_page=page.rows,
            written=min((each for each in (self.written, written) if each is not None), default=None),
            is_whole=self.is_whole and _all_read(page) and self._goes_on_in(page),
            pages_past=self.pages_past + is_past,
        )

    def _brings_more(self, page: UsagePage) -> bool:
        return bool(page.rows) and not (self.last_page and _is_same(page.rows[-1], self.last_page[-1]))

    def _goes_on_in(self, page: UsagePage) -> bool:
        """Return whether a page follows on the rows before without a gap, or shows that there are no more."""
        is_end = page.total is None or (self.next_offset or 0) + len(page.rows) >= page.total
        overlaps = len(self.last_page) > 1
        if not self.last_page or not page.rows:
            return bool(page.rows) or (is_end and not overlaps)
        if not self._brings_more(page):  # with the first row in it, it is the first page once more
            return is_end and overlaps and not any(_is_same(row, self.rows[0]) for row in page.rows)
        return not overlaps or any(_is_same(row, self.last_page[-1]) for row in page.rows)

    def result(self, now: Moment, known: Sequence[KnownRun] | None = None) -> SubmissionSearch:
        """Return what is proven at the moment `now`, at which the walk began, and what keeps it from being a proof.

        What a cache has kept is as old as it says. `known`: the runs that are known by now, among which are those of
        the newest rows; None: the same as before.
        """
        if known is not None:
            return attrs.evolve(self, wanted=attrs.evolve(self.wanted, known=known)).result(now)
        if self.written is not None and now.earliest is not None:
            now = attrs.evolve(now, earliest=min(now.earliest, self.written))
        candidates, unexplained = self._accounts(now)
        dated = (self.wanted.undated, self.wanted.not_yet(now))
        reasons = (*filter(None, dated), *self._incomplete(), *unexplained)
        return SubmissionSearch(candidates=candidates, is_conclusive=not reasons, reasons=reasons)

    def _incomplete(self) -> list[str]:
        reasons = [] if self.is_whole else ["not every usage row could be read, or their pages do not join"]
        if (misdated := next(filter(self.wanted.is_misdated, self.rows), None)) is not None:
            reasons.append(f"{_named(misdated)} is older than its run, so the rows are dated by another clock")
        if not any(map(self.wanted.shows_known_run, self.rows)):
            target = self.wanted.target or "the ledger"
            reasons.append(
                f"the usage rows show no run of {target} that is known to have run by then, so they may be another "
                "account's, late or cut"
            )
        return reasons

    def _accounts(self, now: Moment) -> tuple[tuple[UsageRow, ...], list[str]]:
        """Hold the rows against the runs that are known: give those that could be the submit, and what is odd.

        Runs may share a request id: an older row is then that of the known run, and the one near the submit is not.
        """
        settled, recent = self._known_by(now)
        by_id = defaultdict[str | None, list[UsageRow]](list)
        for row in self.rows:
            if self.wanted.is_of_target(row):
                by_id[row.request_id or None].append(row)
        found, reasons = list[UsageRow](), list[str]()
        for request_id, rows in by_id.items():
            until = [row for row in rows if not self.wanted.is_after(row)]
            since = [row for row in rows if not self.wanted.is_before(row)]
            near = [row for row in since if not self.wanted.is_after(row)]
            sure = settled[request_id]
            either = sure + recent[request_id]
            if near and len(until) > either:
                found += near
            elif near and len(until) > sure:
                reasons.append(f"the run of request {request_id} is too recent to tell its row from another one")
            elif len(since) > either:
                reasons.append(f"{_named(since[-1])} belongs to no run that is known")
        return tuple(found), [*reasons, *self._missing(settled, by_id)]

    def _known_by(self, now: Moment) -> tuple[Counter[str | None], Counter[str | None]]:
        """Count the known runs by request id: those whose rows must be there by now, and those that are too recent.

        Without those that are so old that no row beside the submit's is theirs.
        """
        settled, recent = Counter[str | None](), Counter[str | None]()
        for run in itertools.filterfalse(self.wanted.has_row_before, self.wanted.known):
            by, earliest = run.begun_by, now.earliest
            is_settled = by is not None and earliest is not None and by + self.wanted.lag <= earliest
            (settled if is_settled else recent)[run.request_id] += 1
        return settled, recent

    def _missing(self, settled: Counter[str | None], by_id: dict[str | None, list[UsageRow]]) -> list[str]:
        """Name a known run of about that time whose row should be there and is not."""
        since = self.wanted.earliest - self.wanted.lag / 2  # before that its row may be dated as older than the submit
        for run in self.wanted.known:
            is_near = run.begun_by is not None and since <= run.begun_by <= self.wanted.latest
            rows = [row for row in by_id.get(run.request_id, ()) if not self.wanted.is_before(row)]
            if is_near and settled[run.request_id] > len(rows):
                return [f"the usage rows lack the run of request {run.request_id}, which is known to have run by then"]
        return []


def _are_newest_first(rows: Sequence[UsageRow]) -> bool:
    """Return whether rows are newest first, and so many that it is not by chance."""
    dates = [row.created_at for row in rows if row.created_at is not None]
    return len(set(dates)) >= _ROWS_FOR_AN_ORDER and all(map(operator.ge, dates, dates[1:]))


def _together(known: tuple[UsageRow, ...], rows: Sequence[UsageRow]) -> tuple[UsageRow, ...]:
    """Return all rows, each once: new rows push a row on to the next page, and it may have changed by then."""
    ids, together = {row.id for row in known}, list(known)
    for row in rows:
        if not (row in together if row.id is None else row.id in ids):
            ids.add(row.id)
            together.append(row)
    return tuple(together)


def _is_same(row: UsageRow, other: UsageRow) -> bool:
    """Return whether two rows are one, which may have changed meanwhile."""
    return row == other if row.id is None else row.id == other.id


def _all_read(page: UsagePage) -> bool:
    """Return whether every row of the answer could be read."""
    rows = page.raw.get("rows") if isinstance(page.raw, dict) else page.rows
    return isinstance(rows, (list, tuple)) and len(rows) == len(page.rows)


def _named(row: UsageRow) -> str:
    when = f" of {row.created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if row.created_at is not None else ""
    return f"usage row {row.id}{when}" if row.id is not None else f"a usage row{when}"
