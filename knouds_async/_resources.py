"""knouds.workflows, knouds.models and knouds.usage: runs, workflows, and usage rows (contract 2, 8, 9 and 10)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal, overload

import attrs

from knouds_async._batch.batch import Batch, gathered, run_once, submit_once
from knouds_async._batch.client import BatchClient
from knouds_async._batch.jobs import Job, JobOptions, Jobs, LedgerLike, OnUnknown, Outcome
from knouds_async._batch.progress import OnProgress
from knouds_async._batch.worker import Worker
from knouds_async._io.concurrency import ServiceTime
from knouds_async._io.pipeline import Send, search_usage
from knouds_async._sansio import endpoints
from knouds_async._sansio.inputs import Default, checked_slug, input_errors, invalid_inputs, plain_inputs
from knouds_async._sansio.reconcile import LAG, KnownRun, LostSubmit, RecentRuns, Wanted
from knouds_async.config import Timeouts, hide_url, is_integer, is_number
from knouds_async.errors import InvalidArgumentError, SubmissionUnknownError, safe_repr
from knouds_async.execution import Execution, ExecutionFactory
from knouds_async.types import (
    Inputs,
    RunResult,
    SubmissionSearch,
    Target,
    UsagePage,
    UsageRow,
    Workflow,
    WorkflowSchema,
    WorkflowSummary,
)

JSONObject = Mapping[str, Any]


class Targets:
    """What can be run, by its slug or internal name: the base of `knouds.workflows` and `knouds.models`."""

    _kind: ClassVar[Literal["workflows", "models"]]

    def __init__(self, send: Send, factory: ExecutionFactory, client: BatchClient) -> None:
        self._send = send
        self._factory = factory
        self._client = client

    async def submit(
        self,
        slug: str,
        inputs: Inputs,
        *,
        expected: float | None = None,
        validate: bool = False,
        key: str | None = None,
        ledger: LedgerLike | None = None,
        timeout: float | Timeouts | None = None,
        default: Default | None = None,
    ) -> Execution:
        """Submit a run and return its handle: `run = await execution`.

        It is sent at most once, after a wait for the rate limit. If it cannot be known whether it began a run, that is
        a SubmissionUnknownError. A target whose provider cannot be polled raises AsyncNotSupportedError, uncharged:
        `run` it. Cancelled while it waits, it is not sent; cancelled while the request is in flight, it is finished
        first and the id logged at WARNING. Contract 4.

        `expected`: seconds that this run should take, if you know better than what was learned of the target's other
        runs; runs of about the same expected duration are learned separately. It only decides when to poll.
        `validate`: fetch the schema of a workflow first, one free request; inputs that do not fit, a misspelt optional
        one among them, are an InvalidInputsError that names every fault, and nothing is submitted.
        `key`, `ledger`: for a second click, or a retry that reaches another process: a key that the ledger knows
        returns the handle of its run, however that ended, and only a new key is sent. While another process is sending
        it, that is waited for. Other inputs under the same key are an InvalidArgumentError; a key whose submit is
        unknown is a SubmissionUnknownError, until the usage rows prove that it began no run.
        `timeout`: of this request alone, a number of seconds for the whole exchange, or Timeouts instead of the
        client's; the wait for the rate limit does not count. An exchange that it ends is a SubmissionUnknownError.
        `default`: called, like that of `json.dumps`, with a value of the inputs that has no plain form in JSON; returns
        what is sent in its place. Files and bytes have none: an image field takes an https URL.
        """
        ledger = hide_url(ledger)
        target = Target(self._kind, slug)
        if validate:
            inputs, default = await self._checked(target, inputs, default), None
        if key is not None and ledger is not None:
            options = JobOptions(ledger=ledger, expected=expected, timeout=timeout, default=default)
            return await submit_once(self._client, target, inputs, key, options)
        if key is not None or ledger is not None:
            missing = "ledger" if ledger is None else "key"
            raise InvalidArgumentError(f"{missing}=None: a submit takes a key and a ledger, or neither")
        return await self._factory.submit(target, inputs, expected=expected, timeout=timeout, default=default)

    async def run(
        self,
        slug: str,
        inputs: Inputs,
        *,
        timeout: float | Timeouts | None = None,
        validate: bool = False,
        default: Default | None = None,
    ) -> RunResult:
        """Run synchronously and return the result. Prefer `submit`, whose runs have an id to pick them up by.

        `timeout`: seconds for the exchange (15 minutes when None), or Timeouts instead of the client's. When it passes,
        or the connection breaks, the run may still continue and be charged: SubmissionUnknownError. Cancelled after it
        was sent: the run is lost, and reported at WARNING. `validate`, `default`: as of `submit`. Contract 3.
        """
        target = Target(self._kind, slug)
        if validate:
            inputs, default = await self._checked(target, inputs, default), None
        return await self._factory.run(target, inputs, timeout=timeout, default=default)

    async def _checked(self, target: Target, inputs: Inputs, default: Default | None) -> dict[str, Any]:
        """Return inputs as they are sent; InvalidInputsError where they do not fit the schema, if it can be read."""
        plain = plain_inputs(inputs, default)
        schema = await self._factory.schema(target)
        if schema is not None and (wrong := input_errors(schema, plain)):
            raise invalid_inputs(target, wrong)
        return plain

    async def once(
        self,
        slug: str,
        job: Job | Inputs,
        *,
        ledger: LedgerLike,
        max_credits: float | None = None,
        validate: bool = True,
        expected: float | None = None,
        default: Default | None = None,
    ) -> Outcome:
        """Run one job and return its outcome, like that of a batch: for tasks of a queue, which may be delivered twice.

        A key that `ledger` knows is never run again: called with it again, in any process, it waits for the same run or
        returns the outcome on record. An Unknown stays one until the usage rows prove that there was no run, two
        minutes after its submit at the earliest: a call after that sends it again.
        Cancelled: the run continues, and the next call picks it up. The options are those of `map`.
        """
        ledger = hide_url(ledger)
        if ledger is None:
            raise InvalidArgumentError(
                "ledger=None: without a ledger a job that is delivered twice would be paid twice"
            )
        options = JobOptions(
            ledger=ledger, max_credits=max_credits, validate=validate, expected=expected, default=default
        )
        return await run_once(self._client, Target(self._kind, slug), job, options)

    def map(
        self,
        slug: str,
        jobs: Jobs,
        *,
        ordered: bool = False,
        max_in_flight: int | None = None,
        ledger: LedgerLike | None = None,
        max_credits: float | None = None,
        on_unknown: OnUnknown = "park",
        validate: bool = True,
        expected: float | None = None,
        on_progress: OnProgress | None = None,
        progress: bool = False,
        default: Default | None = None,
        save: str | os.PathLike[str] | None = None,
    ) -> Batch:
        """Run a target once for each job: `async with ... as outcomes: async for outcome in outcomes: ...`.

        Raises InvalidArgumentError at once for an argument, and when the block is entered what the service refuses.
        Leaving the block, by an error or a cancellation too, leaves the runs alone: see `Batch`. A target whose
        provider cannot be polled is run through the synchronous endpoint: such runs have no id, so one that is
        interrupted is unknown. Contract 4, 8.

        `jobs`: an iterable or async iterable of `Job(key, inputs)`, or of plain inputs, whose key is then derived from
        their content; read as there is room.
        `ordered`: outcomes come in the order of the jobs, not as runs end. Failures are outcomes too.
        `max_in_flight`: jobs in flight at once, 2000 when None; the rate limit needs no bound.
        `ledger`: the path of a file or a SQLiteLedger; for many machines a Postgres or its URL. What was submitted, and
        how it ended, survives a crash there, and the next batch on it continues. A key that is final is not run again,
        its outcome comes from the ledger; one that is submitted is attached by its id; one that may or may not have
        been sent is searched for in the usage rows, and sent again only if it certainly began no run.
        `max_credits`: over the life of the ledger, if there is one; a submit that could exceed it is not made, and the
        remaining jobs come out as NotRun. Prices are the workflow's estimate, or the largest real cost where that is
        more; without either one run at a time is sent until its cost is known, and none after one whose cost is not
        known.
        `on_unknown`: "park" continues after a submit whose outcome is unknown, "stop" submits nothing more.
        `validate`: check inputs against the workflow's schema, which is fetched once, before they are sent.
        `expected`: as of `submit`; the first runs are then polled in time.
        `on_progress`: called with a Progress at each change, in the event loop; an async function is awaited beside the
        jobs, and then called with the newest. What it raises ends the batch.
        `progress`: draw a bar on stderr where that is a terminal, or in a notebook (extra `progress`).
        `default`: as of `submit`; a ledger knows a job by what is sent.
        `save`: a folder for the files of completed runs; an outcome comes when its `files` are there, and files that
        are there already are not fetched again. One that cannot be saved is in `save_error`, and costs nothing else.
        """
        ledger = hide_url(ledger)
        options = JobOptions(
            ledger=ledger,
            max_credits=max_credits,
            on_unknown=on_unknown,
            validate=validate,
            expected=expected,
            default=default,
            save=save,
        )
        return Batch(
            Worker(self._client, Target(self._kind, slug), options),
            jobs,
            ordered=ordered,
            max_in_flight=max_in_flight,
            on_progress=on_progress,
            progress=progress,
        )

    async def gather(
        self,
        slug: str,
        inputs: Jobs,
        *,
        max_in_flight: int | None = None,
        ledger: LedgerLike | None = None,
        max_credits: float | None = None,
        on_unknown: OnUnknown = "park",
        validate: bool = True,
        expected: float | None = None,
        on_progress: OnProgress | None = None,
        progress: bool = False,
        default: Default | None = None,
        save: str | os.PathLike[str] | None = None,
    ) -> list[Outcome]:
        """Run a target once for each of a small list of inputs, and return the outcomes in their order.

        A failure is an outcome. The options are those of `map`. Cancelled: runs continue; a ledger has their ids,
        without one they are logged at WARNING.
        """
        ledger = hide_url(ledger)
        batch = self.map(
            slug,
            inputs,
            ordered=True,
            max_in_flight=max_in_flight,
            ledger=ledger,
            max_credits=max_credits,
            on_unknown=on_unknown,
            validate=validate,
            expected=expected,
            on_progress=on_progress,
            progress=progress,
            default=default,
            save=save,
        )
        return await gathered(batch)


class Workflows(Targets):
    """Workflows, by their slug: their runs, their schemas, and what they consist of."""

    _kind = "workflows"

    async def schema(self, slug: str) -> WorkflowSchema:
        """Return the inputs that a workflow takes, with its estimated cost in credits."""
        return await self._send(endpoints.workflow_schema(slug))

    async def public_schema(self, slug: str) -> WorkflowSchema:
        """Return the inputs of a public playground; no key is sent. NotFoundError when it is not public."""
        return await self._send(endpoints.public_schema(slug))

    async def list(self) -> tuple[WorkflowSummary, ...]:
        """Return your workflows and the templates that everyone sees."""
        return await self._send(endpoints.list_workflows())

    async def get(self, slug: str) -> Workflow:
        """Return a whole workflow; it can be changed and written back with `update`."""
        return await self._send(endpoints.get_workflow(slug))

    async def create(
        self,
        name: str,
        *,
        nodes: Sequence[JSONObject] = (),
        edges: Sequence[JSONObject] = (),
        description: str | None = None,
        tags: Sequence[str] | None = None,
        viewport: JSONObject | None = None,
        public_playground: bool | None = None,
    ) -> Workflow:
        """Create a workflow; the service derives its slug from `name` and appends `-2`, `-3` when it is taken.

        Not repeated when its answer is lost (NoAnswerError): check `list` before you create it again.
        """
        if not isinstance(name, str):
            raise InvalidArgumentError(f"name={safe_repr(name)}: must be a string")
        body = _fields(
            name=name,
            description=description,
            tags=tags,
            nodes=nodes,
            edges=edges,
            viewport=viewport,
            public_playground=public_playground,
        )
        return await self._send(endpoints.create_workflow(body))

    async def update(
        self,
        slug: str,
        workflow: Workflow | None = None,
        *,
        name: str | None = None,
        nodes: Sequence[JSONObject] | None = None,
        edges: Sequence[JSONObject] | None = None,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        viewport: JSONObject | None = None,
        public_playground: bool | None = None,
    ) -> Workflow:
        """Update a workflow you own: what is not None replaces what `workflow` (from `get`) holds.

        Whether the service keeps fields that are not sent is not documented; with `workflow` everything is sent, the
        fields this library does not know included. Repeated when its answer is lost: it sets the same again.
        """
        if workflow is not None and not isinstance(workflow, Workflow):
            raise InvalidArgumentError(
                f"workflow={safe_repr(workflow)}: must be a Workflow, from `get`; fields go by name"
            )
        kept = _as_body(workflow) if workflow is not None else {}
        changed = _fields(
            name=name,
            description=description,
            tags=tags,
            nodes=nodes,
            edges=edges,
            viewport=viewport,
            public_playground=public_playground,
        )
        if not kept and not changed:
            raise InvalidArgumentError("nothing to update: give a Workflow, or the fields that change")
        return await self._send(endpoints.update_workflow(slug, {**kept, **changed}))

    async def move(self, slug: str, folder_id: str | None) -> None:
        """Move a workflow you own into a folder; None is the root."""
        if folder_id is not None and not isinstance(folder_id, str):
            raise InvalidArgumentError(f"folder_id={safe_repr(folder_id)}: must be a string, or None for the root")
        await self._send(endpoints.move_workflow(slug, folder_id))

    async def delete(self, slug: str) -> None:
        """Delete a workflow you own. Not found when repeated after a lost answer: done."""
        await self._send(endpoints.delete_workflow(slug))


def _as_body(workflow: Workflow) -> dict[str, Any]:
    """Return a workflow as it is written back: the fields of the record over all that came with it."""
    known = _fields(**{name: getattr(workflow, name) for name in _KINDS})
    return {**workflow.raw, **known} if isinstance(workflow.raw, Mapping) else known


def _fields(**fields: Any) -> dict[str, Any]:
    """Return the fields that are not None, by the service's names; raise InvalidArgumentError for a wrong type."""
    given = {name: value for name, value in fields.items() if value is not None}
    for name, value in given.items():
        kind, what = _KINDS[name]
        is_string = isinstance(value, (str, bytes)) and kind is not str  # a string is a sequence too
        if is_string or not isinstance(value, kind):
            raise InvalidArgumentError(f"{name}={safe_repr(value)}: must be {what}")
    return {"publicPlayground" if name == "public_playground" else name: value for name, value in given.items()}


_KINDS: Final[Mapping[str, tuple[type, str]]] = {
    "slug": (str, "a string"),
    "name": (str, "a string"),
    "description": (str, "a string"),
    "tags": (Sequence, "a list of strings"),
    "nodes": (Sequence, "a list of mappings"),
    "edges": (Sequence, "a list of mappings"),
    "viewport": (Mapping, "a mapping"),
    "public_playground": (bool, "True or False"),
}


class Models(Targets):
    """Runs of single models, by their internal name.

    A model has no schema to check inputs against or to take a price from, so `validate` has nothing to do.
    """

    _kind = "models"


class Usage:
    """Usage rows, newest first."""

    def __init__(self, send: Send, time: ServiceTime, recent: RecentRuns) -> None:
        self._send = send
        self._time = time
        self._recent = recent

    async def list(
        self,
        *,
        status: str | None = None,
        model_id: str | None = None,
        workflow_slug: str | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> UsagePage:
        """Return one page: `limit` rows (50 when None, 500 at most) from `offset` on, filtered by what is not None."""
        filters = {"status": status, "model_id": model_id, "workflow_slug": workflow_slug}
        return await self._send(endpoints.list_usage(**filters, limit=limit, offset=offset))

    def iter(
        self,
        *,
        status: str | None = None,
        model_id: str | None = None,
        workflow_slug: str | None = None,
        page_size: int = endpoints.LARGEST_PAGE,
    ) -> UsageRows:
        """Iterate over all rows, page by page: `async for row in knouds.usage.iter(): ...`.

        Rows that arrive meanwhile push older ones down; a row whose id was returned already is left out.
        """
        endpoints.list_usage(status=status, model_id=model_id, workflow_slug=workflow_slug)  # checks the filters
        if not (is_integer(page_size) and 1 <= page_size <= endpoints.LARGEST_PAGE):
            most = endpoints.LARGEST_PAGE
            raise InvalidArgumentError(f"page_size={safe_repr(page_size)}: must be an integer from 1 to {most}")
        return UsageRows(self, {"status": status, "model_id": model_id, "workflow_slug": workflow_slug}, page_size)

    @overload
    async def find_submission(
        self, error: SubmissionUnknownError, /, *, tolerance: float = LAG, exclude: Collection[str] = ()
    ) -> SubmissionSearch: ...

    @overload
    async def find_submission(
        self, target: Target | str, sent_at: datetime | float, *, tolerance: float = LAG, exclude: Collection[str] = ()
    ) -> SubmissionSearch: ...

    async def find_submission(
        self,
        target: Target | str | SubmissionUnknownError,
        sent_at: datetime | float | None = None,
        *,
        tolerance: float = LAG,
        exclude: Collection[str] = (),
    ) -> SubmissionSearch:
        """Search for a submit whose outcome is unknown: proof that it began no run, or every row that could be it.

        Give the SubmissionUnknownError itself, which knows when it left by the service's clock; or what was submitted
        and when, as `error.sent_at` said (an aware datetime, or epoch seconds): of a submit of another client that
        finds the rows that could be it, but proves nothing, for the clock that told the time may have been set since.
        `tolerance`: seconds by which rows may be late. `exclude`: request ids of other runs that are known to have run
        on the account of the submit. One of them at least has to stand in the rows, else they may be another account's;
        for a submit of this client's own, so do the runs that it submitted. It never picks one of several; `reasons`
        of what it returns say what keeps it from being conclusive. Contract 10.
        """
        error = target if isinstance(target, SubmissionUnknownError) else None
        known, lag = _target(target), _seconds(tolerance)
        sent = _datetime(sent_at) if error is None else error.sent_at
        is_list = isinstance(exclude, Collection) and not isinstance(exclude, str)
        if not is_list or not all(isinstance(each, str) for each in exclude):
            raise InvalidArgumentError(f"exclude={safe_repr(exclude)}: must be a collection of request ids")
        if not self._time.moment().is_known:
            await self.list(limit=1)  # its answer has the service's time
        lost = self._recent.lost(known, sent)
        wanted = self._wanted(error, known, sent, lost)
        # Before the submit, and not so long that no row near it could be theirs; a run that is known twice is one.
        others = [KnownRun(request_id=each, begun_by=wanted.earliest - lag) for each in set(exclude)]

        async def runs() -> list[KnownRun]:
            recent = self._recent.of(known, is_of_account=lost is not None)
            return [*(run for run in recent if run.request_id not in exclude), *others]

        wanted = attrs.evolve(wanted, known=await runs(), lag=lag)
        return await search_usage(self._send, wanted, self._time, runs)

    def _wanted(
        self, error: SubmissionUnknownError | None, target: Target, sent_at: datetime, lost: LostSubmit | None
    ) -> Wanted:
        """Return what is known of a submit: from its error, from what this client remembers, or as it was given."""
        if error is not None and error.sent_after is not None:
            return Wanted.of_error(error, target)
        if lost is not None:
            return Wanted.between(self._time.moment(lost.since), self._time.moment(lost.until), lost.lasts, target)
        if error is not None:
            return Wanted.of_error(error, target)
        return Wanted.at(sent_at.timestamp(), target, self._time.moment())

    async def models(self) -> tuple[str, ...]:
        """Return the distinct model ids of the account's usage."""
        return await self._send(endpoints.usage_models())


class UsageRows:
    """All usage rows, as an async iterator that requests a page when it has run out of rows."""

    def __init__(self, usage: Usage, filters: dict[str, str | None], page_size: int) -> None:
        self._usage = usage
        self._filters = filters
        self._page_size = page_size
        self._offset = 0
        self._rows: deque[UsageRow] = deque()
        self._returned_ids: set[int | str] = set()
        self._is_last = False

    def __aiter__(self) -> UsageRows:
        """Return itself."""
        return self

    async def __anext__(self) -> UsageRow:
        """Return the next row. Cancelled: nothing is lost, the next step requests the same page again."""
        while not self._rows and not self._is_last:
            self._take(await self._usage.list(**self._filters, limit=self._page_size, offset=self._offset))
        if not self._rows:
            raise StopAsyncIteration
        return self._rows.popleft()

    def _take(self, page: UsagePage) -> None:
        """Keep the rows not returned yet; a page that brings no row is the last, whatever `total` says."""
        self._offset += len(page.rows)
        is_full = page.total is None or self._offset < page.total
        self._is_last = not page.rows or not is_full
        for row in page.rows:
            if row.id is None or row.id not in self._returned_ids:
                self._rows.append(row)
            if row.id is not None:
                self._returned_ids.add(row.id)


def _target(target: object) -> Target:
    if isinstance(target, SubmissionUnknownError):
        target = target.target
    known = Target.parse(target) if isinstance(target, str) else target
    if not isinstance(known, Target):
        message = (
            f"target={safe_repr(target)}: must be a SubmissionUnknownError, a Target or a string (workflows/<slug>)"
        )
        raise InvalidArgumentError(message)
    checked_slug(known.name)
    return known


def _datetime(value: datetime | float | None) -> datetime:
    if value is None:
        raise InvalidArgumentError("sent_at is missing: say when it was sent, or give the error itself")
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InvalidArgumentError(
                f"sent_at={safe_repr(value)}: must have a time zone; pass the error itself, or its `sent_at`"
            )
        return value
    return datetime.fromtimestamp(_seconds(value, "sent_at"), UTC)


def _seconds(value: float, name: str = "tolerance") -> float:
    if is_number(value) and 0 <= value < 1e11:
        return float(value)
    raise InvalidArgumentError(f"{name}={safe_repr(value)}: must be a number of seconds of at least 0")
