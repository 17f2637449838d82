"""The public API as a type checker sees it: checked by mypy and pyright, never run."""

import dataclasses
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypedDict, assert_never, assert_type
from uuid import UUID

import attrs
import httpx
import pydantic

from knouds_async import (
    JSON,
    Account,
    APIError,
    AsyncKnouds,
    Batch,
    Cancelled,
    CapabilityDeniedError,
    Completed,
    Execution,
    ExecutionFailedError,
    ExecutionState,
    Failed,
    Failure,
    Health,
    Inputs,
    Job,
    KnoudsError,
    Ledger,
    LedgerCounts,
    LedgerEntry,
    Limiter,
    LimiterStats,
    Media,
    NotRun,
    NotRunReason,
    Outcome,
    Polling,
    Pricing,
    Progress,
    RateLimitError,
    Retries,
    RunResult,
    SchemaField,
    ScopeDeniedError,
    Secret,
    SQLiteLedger,
    Status,
    SubmissionSearch,
    SubmissionUnknownError,
    Target,
    Timeouts,
    Unknown,
    UsagePage,
    UsageRow,
    WaitTimeoutError,
    Workflow,
    WorkflowSchema,
    WorkflowSummary,
)
from knouds_async.config import Backoff


def building() -> None:
    """Build a client in every way there is."""
    assert_type(AsyncKnouds(), AsyncKnouds)
    assert_type(AsyncKnouds("key"), AsyncKnouds)
    knouds = AsyncKnouds(
        Secret("key"),
        tier="pro",
        base_url="https://knouds.ai",
        polling=Polling.backoff(first=1, factor=1.5, longest=5),
        retries=Retries(attempts=3, longest=60.0),
        timeouts=Timeouts(run=600),
        limiter=Limiter("pro"),
        http_client=httpx.AsyncClient(),
    )
    assert_type(knouds.limiter, Limiter)
    assert_type(knouds.limiter.stats("GET /api/usage"), LimiterStats)
    assert_type(knouds.limiter.stats("GET /api/usage").left, int | None)
    assert_type(Polling.every(5), Polling)
    assert_type(Polling.every(5).schedule, Backoff | None)
    assert_type(Retries().attempts, int)
    assert_type(Timeouts().read, float)
    assert_type(Secret("key").reveal(), str)
    AsyncKnouds(5)  # type: ignore[arg-type]
    AsyncKnouds("key", "pro")  # type: ignore[call-arg]
    Retries(3)  # type: ignore[call-arg]


async def running() -> None:
    """Submit, wait and run."""
    async with AsyncKnouds() as knouds:
        assert_type(knouds, AsyncKnouds)
        inputs: Inputs = {"product_name": "Knouds", "size": [1, 2]}
        execution = await knouds.workflows.submit("my-pipeline", inputs)
        assert_type(execution, Execution)
        assert_type(await execution, RunResult)
        assert_type(await execution.wait(timeout=5), ExecutionState)
        assert_type(await execution.refresh(), ExecutionState)
        assert_type(await execution.cancel(), ExecutionState)
        async for state in execution.updates():
            assert_type(state, ExecutionState)
        assert_type(execution.id, str)
        assert_type(execution.target, Target | None)
        assert_type(execution.state, ExecutionState)
        assert_type(await knouds.models.submit("gpt-image-2", {}), Execution)
        assert_type(await knouds.models.run("gpt-image-2", {}, timeout=600), RunResult)
        run = await knouds.workflows.run("my-pipeline", {})
        assert_type(run, RunResult)
        assert_type(run.images, tuple[Media, ...])
        assert_type(run.images[0].url, str)
        assert_type(run.images[0].kind, Literal["image", "video", "audio"])
        assert_type(run.text, str | None)
        assert_type(run.cost, float | None)
        assert_type(run.ms, float | None)
        assert_type(run.execution_id, str | None)
        assert_type(run.result, Any)
        await knouds.workflows.submit("my-pipeline", [1])  # type: ignore[arg-type]
        await knouds.workflows.submit(5, {})  # type: ignore[arg-type]
        run.cost = 5  # type: ignore[misc]
    assert_type(await AsyncKnouds().aclose(), None)


class Named(TypedDict):
    """Inputs as a dictionary of a known form."""

    product_name: str


@dataclasses.dataclass
class Sized:
    """Inputs as a dataclass."""

    size: int = 1


@attrs.frozen
class Styled:
    """Inputs as an attrs class."""

    style: str = "bold"


class Dated(pydantic.BaseModel):
    """Inputs as a pydantic model."""

    when: datetime


async def giving_inputs(knouds: AsyncKnouds, run: RunResult) -> None:
    """Inputs are what JSON can say and what has one plain form in it; a file is neither."""
    named: Named = {"product_name": "Knouds"}
    sizes: dict[str, list[int]] = {"size": [1, 2]}
    plain: JSON = {"a": [1, {"b": None}]}
    assert plain
    for inputs in (named, sizes, Sized(), Styled(), Dated(when=datetime.now(UTC))):
        await knouds.workflows.submit("a", inputs)
    await knouds.workflows.submit("a", {"when": date(2026, 1, 1), "id": UUID(int=1), "price": Decimal(1)})
    await knouds.workflows.submit("a", {"status": Status.FAILED, "of": [Sized(), {"b": named}], "image": run.images[0]})
    await knouds.models.run("a", {"a": "b"}, timeout=Timeouts(connect=1), default=str)
    await knouds.workflows.submit("a", {"image": Path("cup.png")})  # type: ignore[dict-item]
    await knouds.workflows.submit("a", {"images": [Path("cup.png")]})  # type: ignore[list-item]
    await knouds.workflows.gather("a", [{"image": Path("cup.png")}])  # type: ignore[dict-item]
    knouds.models.map("a", [Job("a", {"image": Path("cup.png")})])  # type: ignore[dict-item]
    await knouds.workflows.submit("a", {"tags": {"a", "b"}})  # type: ignore[dict-item]
    await knouds.workflows.submit("a", {"n": 1}, timeout="5")  # type: ignore[arg-type]
    other: dict[str, Any] = {"image": Path("cup.png")}
    await knouds.workflows.submit("a", other, default=str, timeout=5)
    wrong: JSON = {"a": Path("cup.png")}  # type: ignore[dict-item]
    assert wrong


async def picking_up(knouds: AsyncKnouds) -> None:
    """Pick runs up again by their id."""
    assert_type(knouds.executions.attach("run-1"), Execution)
    assert_type(knouds.executions.attach("run-1", "workflows/a"), Execution)
    execution = knouds.executions.attach("run-1", Target("workflows", "a"))
    assert_type(knouds.executions.attach(execution), Execution)
    state = await knouds.executions.get("run-1")
    assert_type(state, ExecutionState)
    assert_type(await knouds.executions.cancel("run-1"), ExecutionState)
    assert_type(state.status, Status | str)
    assert_type(state.is_final, bool)
    assert_type(state.error, Failure | None)
    assert_type(state.model_ids, tuple[str, ...])
    assert_type(state.created_at, datetime | None)
    assert_type(Target.parse("models/a"), Target)
    Target("executions", "a")  # type: ignore[arg-type]


async def workflows(knouds: AsyncKnouds) -> None:
    """Read and write workflows."""
    assert_type(await knouds.workflows.list(), tuple[WorkflowSummary, ...])
    assert_type((await knouds.workflows.list())[0].slug, str)
    workflow = await knouds.workflows.get("a")
    assert_type(workflow, Workflow)
    assert_type(workflow.nodes, tuple[Mapping[str, Any], ...])
    assert_type(await knouds.workflows.create("A", nodes=[{"id": "1"}], edges=(), tags=["x"]), Workflow)
    assert_type(await knouds.workflows.update("a", workflow, name="B"), Workflow)
    assert_type(await knouds.workflows.move("a", None), None)
    assert_type(await knouds.workflows.delete("a"), None)
    schema = await knouds.workflows.schema("a")
    assert_type(schema, WorkflowSchema)
    assert_type(await knouds.workflows.public_schema("a"), WorkflowSchema)
    assert_type(schema.fields, tuple[SchemaField, ...])
    assert_type(schema.estimated_credit_cost, float | None)


async def account(knouds: AsyncKnouds) -> None:
    """Ask about the account and the service."""
    assert_type(await knouds.whoami(), Account)
    assert_type(await knouds.pricing(), Pricing)
    assert_type(await knouds.health(), Health)
    page = await knouds.usage.list(status="completed", limit=50, offset=0)
    assert_type(page, UsagePage)
    assert_type(page.rows, tuple[UsageRow, ...])
    assert_type(page.rows[0].id, int | str | None)
    assert_type(page.rows[0].status, Status | str | None)
    async for row in knouds.usage.iter(workflow_slug="a"):
        assert_type(row, UsageRow)
    assert_type(await knouds.usage.models(), tuple[str, ...])


async def batches(knouds: AsyncKnouds) -> None:
    """Run many jobs."""

    async def source() -> AsyncIterator[Job]:
        yield Job("a", {"product_name": "x"})

    batch = knouds.workflows.map("a", [{"product_name": "x"}], ordered=True, max_in_flight=5, max_credits=100)
    assert_type(batch, Batch)
    async with batch as outcomes:
        assert_type(outcomes, Batch)
        async for outcome in outcomes:
            assert_type(outcome, Completed | Failed | Cancelled | NotRun | Unknown)
            assert_type(outcome.job, Job)
            match outcome:
                case Completed():
                    assert_type(outcome.run, RunResult)
                case Failed():
                    assert_type(outcome.error, ExecutionFailedError)
                case Cancelled():
                    assert_type(outcome.state, ExecutionState)
                case NotRun():
                    assert_type(outcome.reason, NotRunReason)
                case Unknown():
                    assert_type(outcome.sent_at, datetime | None)
                case _:
                    assert_never(outcome)
        assert_type(outcomes.progress, Progress)
        assert_type(outcomes.stop(), None)
    knouds.models.map("gpt-image-2", source(), ledger="renders.db", on_unknown="stop", on_progress=print)
    knouds.workflows.map("a", (Job("a", {}) for _ in range(3)), ledger=SQLiteLedger("renders.db"), validate=False)
    assert_type(await knouds.workflows.gather("a", [{}]), list[Outcome])
    assert_type(await knouds.models.gather("a", [{}]), list[Outcome])
    knouds.workflows.map("a", [], on_unknown="resend")  # type: ignore[arg-type]
    async with SQLiteLedger("renders.db") as ledger:
        kept: Ledger = ledger
        assert_type(await kept.look("a"), LedgerEntry | None)
        assert_type(await ledger.counts(), LedgerCounts)
        assert_type(await ledger.unknown(), tuple[LedgerEntry, ...])
        assert_type(await ledger.resolve("a", "run-1"), LedgerEntry)
        assert_type(await ledger.retry_failed(), int)


async def failing(execution: Execution, knouds: AsyncKnouds) -> None:
    """Catch what can go wrong."""
    try:
        await execution.wait(timeout=1)
    except WaitTimeoutError as late:
        assert_type(late.timeout, float)
        timeout: TimeoutError = late
        raise timeout from None
    except ExecutionFailedError as failed:
        assert_type(failed.code, str | None)
        assert_type(failed.message, str)
    except SubmissionUnknownError as unknown:
        assert_type(unknown.target, str)
        assert_type(unknown.sent_at, datetime)
        assert_type(unknown.sent_after, datetime | None)
        search = await knouds.usage.find_submission(unknown.target, unknown.sent_at)
        assert_type(await knouds.usage.find_submission(unknown), SubmissionSearch)
        assert_type(search.reasons, tuple[str, ...])
        assert_type(search, SubmissionSearch)
        assert_type(search.candidates, tuple[UsageRow, ...])
        assert_type(search.is_certainly_none, bool)
    except RateLimitError as limited:
        assert_type(limited.retry_after, float | None)
        assert_type(limited.limit, int | None)
    except (CapabilityDeniedError, ScopeDeniedError) as denied:
        assert_type(denied.required, str | None)
    except APIError as refused:
        assert_type(refused.status, int | None)
        assert_type(refused.code, str | None)
        assert_type(refused.message, str)
    except KnoudsError as error:
        assert_type(error.may_have_run, bool)
        assert_type(error.execution_id, str | None)
