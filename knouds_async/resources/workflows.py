"""knouds.workflows: runs of workflows, and the workflows themselves (contract 2, 8, 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from knouds_async._io.pipeline import Send
from knouds_async._sansio import calls
from knouds_async.errors import InvalidArgumentError
from knouds_async.execution import Execution
from knouds_async.resources.runs import Runs
from knouds_async.types import Inputs, RunResult, Target, Workflow, WorkflowSchema, WorkflowSummary

JSONObject = Mapping[str, Any]


class Workflows:
    """Workflows by their slug."""

    def __init__(self, send: Send, runs: Runs) -> None:
        """Belong to one client."""
        self._send = send
        self._runs = runs

    async def submit(self, slug: str, inputs: Inputs) -> Execution:
        """Submit a run of the workflow `slug` and give its handle: `run = await execution`.

        Sent at most once: an outcome that stays open is a SubmissionUnknownError and is never sent again by this
        library. Waits for its turn at the rate limit first. Cancelled while waiting: nothing was sent; cancelled while
        the request is under way: the request is finished first and the id logged at WARNING. Contract 4.
        """
        return await self._runs.submit(Target("workflows", slug), inputs)

    async def run(self, slug: str, inputs: Inputs, *, timeout: float | None = None) -> RunResult:
        """Run the workflow `slug` synchronously and give its result.

        `timeout`: seconds for the exchange (15 minutes when None); when it passes, the run may still go on and be
        charged: SubmissionUnknownError. The same when the connection breaks. Cancelled after it was sent: the run is
        lost and reported at WARNING; prefer `submit`, whose runs can be picked up by id. Contract 3.
        """
        return await self._runs.run(Target("workflows", slug), inputs, timeout=timeout)

    async def schema(self, slug: str) -> WorkflowSchema:
        """Give the inputs that a workflow takes, with its estimated cost in credits."""
        return await self._send(calls.workflow_schema(slug))

    async def public_schema(self, slug: str) -> WorkflowSchema:
        """Give the inputs of a public playground; no key is sent. NotFoundError when it is not public."""
        return await self._send(calls.public_schema(slug))

    async def list(self) -> tuple[WorkflowSummary, ...]:
        """Give your workflows and the templates that everyone sees."""
        return await self._send(calls.list_workflows())

    async def get(self, slug: str) -> Workflow:
        """Give a whole workflow; it can be changed and written back with `update`."""
        return await self._send(calls.get_workflow(slug))

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

        Not repeated when its answer is lost (NoAnswerError): look at `list` before you create it again.
        """
        if not isinstance(name, str):
            raise InvalidArgumentError(f"name={name!r}: must be a text")
        body = _given(
            name=name,
            description=description,
            tags=tags,
            nodes=nodes,
            edges=edges,
            viewport=viewport,
            publicPlayground=public_playground,
        )
        return await self._send(calls.create_workflow(body))

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
        whole = _whole(workflow) if workflow is not None else {}
        given = _given(
            name=name,
            description=description,
            tags=tags,
            nodes=nodes,
            edges=edges,
            viewport=viewport,
            publicPlayground=public_playground,
        )
        return await self._send(calls.update_workflow(slug, {**whole, **given}))

    async def move(self, slug: str, folder_id: str | None) -> None:
        """Move a workflow you own into a folder; None is the root."""
        await self._send(calls.move_workflow(slug, folder_id))

    async def delete(self, slug: str) -> None:
        """Delete a workflow you own. Found gone when repeated after a lost answer: done."""
        await self._send(calls.delete_workflow(slug))


def _whole(workflow: Workflow) -> dict[str, Any]:
    """Give a workflow as it is written back: the fields of the record over all that came with it."""
    known = _given(
        slug=workflow.slug,
        name=workflow.name,
        description=workflow.description,
        tags=workflow.tags,
        nodes=workflow.nodes,
        edges=workflow.edges,
        viewport=workflow.viewport,
        publicPlayground=workflow.public_playground,
    )
    return {**workflow.raw, **known} if isinstance(workflow.raw, Mapping) else known


def _given(**fields: Any) -> dict[str, Any]:
    """Give the fields that were given, by the service's names."""
    return {name: value for name, value in fields.items() if value is not None}
