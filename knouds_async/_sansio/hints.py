"""The runs that listings or deliveries reported finished, until a poll confirms it. Pure.

A report never finishes a run. One that a poll refutes makes further reports of that run ignored for a while.
"""

from __future__ import annotations

import attrs

from knouds_async._sansio.grants import ReadyQueue
from knouds_async._sansio.listings import ListingBreaker, ListingScheduler, PageRequest, StatusPage
from knouds_async._sansio.pace import longest_step
from knouds_async._sansio.roster import RunIndex
from knouds_async._sansio.tracked_run import PollStage, TrackedRun


class ReportedFinished:
    """The runs that were reported finished and have not been polled since."""

    def __init__(self, index: RunIndex, ready: ReadyQueue, listings: ListingScheduler, breaker: ListingBreaker) -> None:
        self._index = index
        self._ready = ready
        self._listings = listings
        self._breaker = breaker
        self._statuses: dict[str, str | None] = {}  # the status by which a listing reported it
        self._matching: dict[str, str] = {}

    def add(self, run: TrackedRun, status: str | None = None) -> None:
        """Poll a run before all others; `status`: by which a listing shows it, None for another source."""
        self._ready.discard(run)
        self._index.mark_reported(run)
        self._statuses[run.execution_id] = status
        self._ready.add_reported(run)

    def discard(self, execution_id: str) -> None:
        """Remove a run that is no longer polled."""
        self._statuses.pop(execution_id, None)

    def was_listed(self, run: TrackedRun) -> bool:
        """Return whether it was a listing that reported the run."""
        return self._statuses.get(run.execution_id) is not None

    def refute(self, run: TrackedRun, now: float) -> None:
        """Record that a poll found a reported run still running."""
        self._index.unmark_reported(run)
        status = self._statuses.pop(run.execution_id)
        if status is not None and self._breaker.record_wrong_end(now, status):
            run.ignore_until = now + longest_step(run.age(now))

    def listable_count(self) -> int:
        """Return the number of runs that a listing can still show something new of."""
        return self._index.listable_count() - len(self._statuses)

    def page_received(self, page: PageRequest, status_page: StatusPage, now: float) -> PageRequest | None:
        """Process a page; return the next page of the listing, None when it is complete."""
        matched, deepest = page.matched, 0
        finished: dict[str, tuple[TrackedRun, str]] = {}
        for row, (request, status) in enumerate(status_page.row_statuses, 1):
            run = self._index.by_request_id(request)
            if run is None:
                continue
            deepest = row
            if run.is_reported:
                continue
            is_running = self._breaker.means_running(status)
            self._breaker.record_match(is_running=is_running)
            if is_running:
                matched += run.last_listed_at != page.started_at
                self._listed_running(run, page.started_at, now)
            elif run.ignore_until > now or run.stage is PollStage.IN_FLIGHT:
                matched += 1
            else:
                finished[run.execution_id] = run, status
        for run, status in sorted(finished.values(), key=lambda one: one[0].started_at):
            self.add(run, status)
        self._matching |= self._breaker.relevant(status_page.row_statuses)
        following = self._listings.next_page(
            attrs.evolve(page, matched=matched), status_page, self.listable_count(), deepest
        )
        if following is None:
            self._breaker.check_unlisted_ends(
                page.started_at, now, self._matching, is_last_page=status_page.row_count < page.limit
            )
            self._matching = {}
        return following

    def _listed_running(self, run: TrackedRun, started_at: float, now: float) -> None:
        run.last_listed_at = started_at
        if run.stage is PollStage.READY:  # it waits for a request, and may need none any more
            self._ready.discard(run)
            self._index.schedule(run, now)

    def reset(self) -> None:
        """Forget the listing in progress: it was cut short."""
        self._matching = {}
