"""Workflows and models: run, written, read and deleted; usage in pages; and what is refused before any request."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs
import httpx
import pytest

from knouds_async import (
    AsyncKnouds,
    AsyncNotSupportedError,
    Completed,
    ExecutionFailedError,
    InvalidArgumentError,
    InvalidInputsError,
    InvalidSlugError,
    ModelTierRequiredError,
    NoAnswerError,
    NotFoundError,
    Retries,
    SubmissionUnknownError,
    Timeouts,
    UsageRow,
    Workflow,
)
from knouds_async.testing import Emulator, faults
from tests.scripted_client import scripted

SLUG = "my-thumbnail-pipeline"
INPUTS = {"product_name": "Knouds"}


async def test_a_synchronous_run_gives_its_result(knouds: AsyncKnouds) -> None:
    """`run` waits for the server and gives the result, of a workflow and of a model."""
    run = await knouds.workflows.run(SLUG, INPUTS)
    assert run.images
    assert run.cost == 12
    assert (await knouds.models.run("claude-sonnet", {"prompt": "hello"})).execution_id is None


@pytest.mark.parametrize("kind", ["submit", "run"])
async def test_what_was_checked_is_what_is_sent(knouds: AsyncKnouds, emulator: Emulator, kind: str) -> None:
    """Inputs are read once, before the schema is fetched: what changes in them meanwhile is not sent."""
    converted: list[object] = []

    def as_text(value: object) -> str:
        converted.append(value)
        return "Cup"

    inputs: dict[str, Any] = {"product_name": object()}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(getattr(knouds.workflows, kind), SLUG, inputs, validate=True, default=as_text))
        await anyio.wait_all_tasks_blocked()
        inputs["style"] = "nonsense"
    assert [run.inputs for run in emulator.runs] == [{"product_name": "Cup"}]
    assert len(converted) == 1


@pytest.mark.parametrize("kind", ["submit", "run"])
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"product_name": "x", "styel": "3d"}, "'styel' is no field"),
        ({"count": 99}, "'count' must be at most 4, not 99; 'product_name' is required and missing"),
    ],
)
async def test_inputs_are_checked_where_that_is_asked(
    knouds: AsyncKnouds, emulator: Emulator, kind: str, inputs: dict[str, Any], words: str
) -> None:
    """With `validate` what the schema refuses is an error that names every fault, and no run is asked for."""
    act = getattr(knouds.workflows, kind)
    with pytest.raises(InvalidInputsError, match=words) as refused:
        await act(SLUG, inputs, validate=True)
    assert not refused.value.may_have_run
    assert [request.method for request in emulator.requests] == ["GET"]
    await act(SLUG, INPUTS, validate=True)
    assert len(emulator.runs) == 1


async def test_what_cannot_be_checked_is_left_to_the_service(make_client: Any) -> None:
    """A key that may not read the schema submits without it; a slug that nothing has is refused before a submit."""
    emulator = Emulator(tier="business", capabilities=("workflow:run", "execution:read"))
    knouds = make_client(emulator)
    await knouds.workflows.submit(SLUG, INPUTS, validate=True)
    assert len(emulator.runs) == 1
    emulator = Emulator(tier="business")
    knouds = make_client(emulator)
    with pytest.raises(NotFoundError):
        await knouds.workflows.submit("nowhere", INPUTS, validate=True)
    with pytest.raises(InvalidInputsError):
        await knouds.workflows.submit(SLUG, ["x"], validate=True)
    assert [request.method for request in emulator.requests] == ["GET"]


async def test_a_synchronous_run_that_fails_says_so(make_client: Any) -> None:
    """500 EXECUTION_FAILED is the run's own failure."""
    knouds = make_client(Emulator(tier="business", duration=5.0, failure_rate=1.0))
    with pytest.raises(ExecutionFailedError) as caught:
        await knouds.workflows.run(SLUG, INPUTS)
    assert caught.value.code == "EXECUTION_FAILED"
    assert caught.value.may_have_run


async def test_a_synchronous_run_that_takes_too_long_is_unknown(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """A time-out after the request left is unknown, with target and time, and is not sent again."""
    with pytest.raises(SubmissionUnknownError, match=SLUG) as caught:
        await knouds.workflows.run(SLUG, INPUTS, timeout=10)
    assert caught.value.target == f"workflows/{SLUG}"
    assert len(emulator.runs) == 1


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "x"])
async def test_an_impossible_run_timeout_is_refused(knouds: AsyncKnouds, emulator: Emulator, timeout: Any) -> None:
    """A timeout that is no number of seconds is refused before any request."""
    for call in (knouds.workflows.run, knouds.workflows.submit, knouds.models.submit):
        with pytest.raises(InvalidArgumentError, match="timeout"):
            await call(SLUG, INPUTS, timeout=timeout)
    assert emulator.requests.count == 0


@pytest.mark.parametrize("timeout", [10, Timeouts(submit=10, run=10)])
@pytest.mark.parametrize("name", ["submit", "run"])
async def test_a_timeout_is_of_one_call(make_client: Any, name: str, timeout: Any) -> None:
    """It bounds that exchange alone; the client's own bounds the next, which may take longer."""
    emulator = Emulator(tier="business", duration=5.0)
    knouds = make_client(emulator)
    emulator.faults.add(faults.stalled(20, after_run=True), nth=1)
    emulator.faults.add(faults.stalled(20, after_run=True), nth=2)
    for target in (knouds.workflows, knouds.models):
        run = getattr(target, name)
        began = anyio.current_time()
        with pytest.raises(SubmissionUnknownError, match="no complete answer within 10 s"):
            await run(SLUG if target is knouds.workflows else "claude-sonnet", INPUTS, timeout=timeout)
        assert anyio.current_time() - began == pytest.approx(10, abs=1)
    await getattr(knouds.workflows, name)(SLUG, INPUTS)


async def test_timeouts_of_a_call_are_those_of_its_request() -> None:
    """Each phase that `Timeouts` bound reaches the HTTP client, in place of the client's own."""
    seen: list[dict[str, float]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.extensions["timeout"])
        return httpx.Response(200, json={"success": True, "executionId": "run-1", "status": "processing"})

    async with scripted(answer) as knouds:
        await knouds.workflows.submit(SLUG, INPUTS, timeout=Timeouts(connect=3, write=4))
        await knouds.workflows.submit(SLUG, INPUTS)
    assert [(each["connect"], each["write"]) for each in seen] == [(3, 4), (10, 30)]


async def test_inputs_of_people_are_sent_as_what_they_are(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """Runs of both kinds take values that are not JSON, and `default` for the rest; files are refused, unsent."""
    inputs: Any = {"product_name": date(2026, 11, 29), "style": Path("photo")}
    for refused in (knouds.workflows.submit, knouds.workflows.run, knouds.models.submit, knouds.models.run):
        with pytest.raises(InvalidInputsError, match="pass its https URL"):
            await refused(SLUG, inputs)
    assert emulator.requests.count == 0
    await knouds.workflows.run(SLUG, inputs, default=str)
    await knouds.workflows.submit(SLUG, inputs, default=str)
    await knouds.models.submit("gpt-image-2", {"prompt": "a", **inputs}, default=str)
    (outcome,) = await knouds.workflows.gather(SLUG, [inputs], default=str)
    assert isinstance(outcome, Completed), outcome
    assert {run.inputs["style"] for run in emulator.runs} == {"photo"}
    assert len(emulator.runs) == 4


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda w: w.create(5), "name=5"),
        (lambda w: w.create(None), "name=None"),
        (lambda w: w.create("x", tags="red"), "tags='red'"),
        (lambda w: w.create("x", nodes={"id": "1"}), "nodes={'id': '1'}"),
        (lambda w: w.create("x", edges=b"[]"), "edges=b'\\[\\]'"),
        (lambda w: w.create("x", viewport=[0, 0, 1]), "viewport="),
        (lambda w: w.create("x", public_playground="yes"), "public_playground='yes'"),
        (lambda w: w.update("x", {"name": "y"}), "workflow={'name': 'y'}"),
        (lambda w: w.update("x", description=5), "description=5"),
        (lambda w: w.update("x"), "nothing to update"),
        (lambda w: w.move("x", 5), "folder_id=5"),
    ],
)
async def test_a_workflow_of_the_wrong_types_is_not_sent(
    knouds: AsyncKnouds, emulator: Emulator, call: Callable[[Any], Any], named: str
) -> None:
    """Fields of types that the service cannot mean are refused by name, before any request."""
    with pytest.raises(InvalidArgumentError, match=named):
        await call(knouds.workflows)
    assert not emulator.requests


async def test_a_workflow_is_created_changed_moved_and_deleted(knouds: AsyncKnouds) -> None:
    """Workflows are written, read back and written again without loss."""
    node = {"id": "n1", "type": "requestInput", "position": {"x": 0, "y": 0}, "data": {}}
    made = await knouds.workflows.create("My poster", nodes=[node], edges=[], tags=["a"])
    again = await knouds.workflows.create("My poster")
    assert (made.slug, again.slug) == ("my-poster", "my-poster-2")
    read = await knouds.workflows.get("my-poster")
    assert read.nodes == (node,)
    await knouds.workflows.update("my-poster", read, description="for walls")
    changed = await knouds.workflows.get("my-poster")
    assert (changed.description, changed.nodes, changed.tags) == ("for walls", (node,), ("a",))
    await knouds.workflows.move("my-poster", "folder-1")
    listed = {row.slug: row for row in await knouds.workflows.list()}
    assert listed["my-poster"].folder_id == "folder-1"
    await knouds.workflows.delete("my-poster")
    with pytest.raises(NotFoundError):
        await knouds.workflows.get("my-poster")


async def test_the_schemas_are_read(knouds: AsyncKnouds) -> None:
    """A workflow's inputs are listed; one that is not public has no public schema."""
    schema = await knouds.workflows.schema(SLUG)
    assert {field.name for field in schema.fields} >= {"product_name", "style", "count"}
    with pytest.raises(NotFoundError):
        await knouds.workflows.public_schema("no-such-workflow")


@pytest.mark.parametrize("slug", ["../..", "x?async=false&", "x#y", "", "Upper", "a/b", "a\n", None, 7])
async def test_a_malformed_slug_is_named_and_nothing_is_sent(
    knouds: AsyncKnouds, emulator: Emulator, slug: Any
) -> None:
    """Slugs that could change the path are refused, with the value named."""
    for refused in (knouds.workflows.submit(slug, {}), knouds.models.run(slug, {}), knouds.workflows.get(slug)):
        with pytest.raises(InvalidSlugError) as caught:
            await refused
        assert repr(slug)[:50] in str(caught.value)
        assert not caught.value.may_have_run
    assert emulator.requests.count == 0


@pytest.mark.parametrize("inputs", [None, [1], "x", {"a": float("nan")}, {"a": {1, 2}}, {1: 2}, {"a": b"x"}])
async def test_inputs_that_are_not_json_are_refused(knouds: AsyncKnouds, emulator: Emulator, inputs: Any) -> None:
    """Inputs that JSON cannot say are refused with the place, and nothing is sent."""
    with pytest.raises(InvalidInputsError, match="inputs"):
        await knouds.workflows.submit(SLUG, inputs)
    assert emulator.requests.count == 0


async def test_a_delete_that_was_never_sent_before_is_not_done_by_a_404(make_client: Any, emulator: Emulator) -> None:
    """A refused connection first, then a 404: there was nothing to delete."""
    emulator.faults.add(faults.refused(), route="DELETE /api/workflows/:slug", nth=1)
    with pytest.raises(NotFoundError):
        await make_client(emulator).workflows.delete("no-such-workflow")


async def test_an_update_that_was_sent_once_is_never_called_not_sent(make_client: Any, emulator: Emulator) -> None:
    """An answer lost first, then no connection: the update may have been made."""
    knouds = make_client(emulator, retries=Retries(attempts=3))
    await knouds.workflows.create("Poster")
    route = "PUT /api/workflows/:slug"
    emulator.faults.add(route=route, script=[faults.reset(after_run=True), faults.refused(), faults.refused()])
    with pytest.raises(NoAnswerError):
        await knouds.workflows.update("poster", description="new")


async def test_an_update_sends_what_was_changed_in_the_record() -> None:
    """The fields of the record win over the JSON it came from, which keeps what the library does not know."""
    sent: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.content)
        return httpx.Response(200, json={"slug": "a"})

    old = Workflow(slug="a", name="Old", raw={"slug": "a", "name": "Old", "futureField": 7})
    await scripted(answer).workflows.update("a", attrs.evolve(old, name="New"))
    assert b'"name":"New"' in sent[0]
    assert b'"futureField":7' in sent[0]


async def test_a_model_is_submitted(knouds: AsyncKnouds) -> None:
    """A model whose provider can be polled is submitted; others say to run them synchronously."""
    assert (await (await knouds.models.submit("gpt-image-2", {"prompt": "a cloud"}))).images
    with pytest.raises(AsyncNotSupportedError, match=r"\.run"):
        await knouds.models.submit("claude-sonnet", {"prompt": "hello"})


async def test_models_need_a_tier(make_client: Any) -> None:
    """A refusal for the tier is typed and says what to do."""
    knouds = make_client(Emulator(tier="pro"))
    with pytest.raises(ModelTierRequiredError, match="upgrade"):
        await knouds.models.submit("gpt-image-2", {"prompt": "a cloud"})


async def test_usage_is_listed_and_walked(knouds: AsyncKnouds) -> None:
    """A page has rows and a total, `iter` walks all pages without repeating a row, `models` names what was used."""
    for _ in range(7):
        await (await knouds.workflows.submit(SLUG, INPUTS))
    page = await knouds.usage.list(limit=3, offset=1, workflow_slug=SLUG)
    assert (len(page.rows), page.total) == (3, 7)
    rows = [row async for row in knouds.usage.iter(page_size=2)]
    assert len({row.id for row in rows}) == 7
    assert isinstance(rows[0], UsageRow)
    assert await knouds.usage.models()


@pytest.mark.parametrize("limit", [0, 501, 1.5, True])
async def test_an_impossible_page_is_refused(knouds: AsyncKnouds, emulator: Emulator, limit: Any) -> None:
    """A page has 1 to 500 rows; anything else is refused at once, also by `iter`."""
    with pytest.raises(InvalidArgumentError, match="limit"):
        await knouds.usage.list(limit=limit)
    with pytest.raises(InvalidArgumentError, match="page_size"):
        knouds.usage.iter(page_size=limit)
    assert emulator.requests.count == 0


@pytest.mark.parametrize("exclude", ["kie_1", None, 5, [5], iter(["kie_1"])], ids=lambda each: type(each).__name__)
async def test_known_runs_are_named_in_a_collection(knouds: AsyncKnouds, emulator: Emulator, exclude: Any) -> None:
    """What is no collection of ids, or an iterator that could be read only once, is refused before any request."""
    with pytest.raises(InvalidArgumentError, match="exclude"):
        await knouds.usage.find_submission(f"workflows/{SLUG}", 1.8e9, exclude=exclude)
    assert emulator.requests.count == 0


async def test_a_job_is_not_run_once_without_a_ledger(knouds: AsyncKnouds, emulator: Emulator) -> None:
    """A ledger that is None, as from a variable that is not set, is refused: each delivery would be paid for."""
    ledger: Any = None
    with pytest.raises(InvalidArgumentError, match="ledger=None"):
        await knouds.workflows.once(SLUG, INPUTS, ledger=ledger)
    assert not emulator.runs
