"""The account's workflows: what is stored, how slugs are chosen, and the JSON shapes (contract 2, 9)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, pairwise

import attrs

from knouds_async.testing._service.catalog import Workflow
from knouds_async.testing._service.replies import ErrorResponse, not_found
from knouds_async.testing._service.workflow_parts import BLANK_NAME, checked_parts, is_request_input, settings_of

__all__ = ["StoredWorkflow", "WorkflowStore"]

JsonObject = Mapping[str, object]

_INITIAL_VIEWPORT: JsonObject = {"x": 0, "y": 0, "zoom": 1}


@attrs.define(kw_only=True, eq=False)
class StoredWorkflow:
    """One workflow as the service keeps it; fields and models are read from its nodes."""

    slug: str
    user: str
    updated_at: str
    name: str = BLANK_NAME
    description: str = ""
    tags: Sequence[str] = ()
    nodes: Sequence[JsonObject] = ()
    edges: Sequence[JsonObject] = ()
    viewport: JsonObject = attrs.field(default=_INITIAL_VIEWPORT)
    public_playground: bool = False
    folder_id: str | None = None
    is_template: bool = False

    @property
    def fields(self) -> list[JsonObject]:
        """Return the input fields of its Request Input nodes."""
        nodes = [settings_of(node) for node in self.nodes if is_request_input(node)]
        return [field for node in nodes for field in _objects(node.get("fields"))]

    @property
    def models(self) -> tuple[str, ...]:
        """Return the models its nodes run, without duplicates, in order."""
        named = [settings_of(node).get("model") for node in self.nodes]
        return tuple(dict.fromkeys(name for name in named if isinstance(name, str)))

    def summary(self, price: int) -> dict[str, object]:
        """Return the row of the listing."""
        return {
            "slug": self.slug,
            "name": self.name,
            "description": self.description,
            "tags": list(self.tags),
            "updatedAt": self.updated_at,
            "estimatedCreditCost": price,
            "folderId": self.folder_id,
        }

    def full(self) -> dict[str, object]:
        """Return the whole workflow, in the shape that a create takes."""
        return {
            "slug": self.slug,
            "name": self.name,
            "description": self.description,
            "tags": list(self.tags),
            "nodes": list(self.nodes),
            "edges": list(self.edges),
            "viewport": self.viewport,
            "publicPlayground": self.public_playground,
        }

    def schema(self, price: int | None) -> dict[str, object]:
        """Return the input schema; the estimate is left out of the public one."""
        fields = self.fields
        estimate = {} if price is None else {"estimatedCreditCost": price}
        return {
            "name": self.name,
            "description": self.description,
            "fields": fields,
            "values": {str(field.get("name")): field["default"] for field in fields if "default" in field},
            **estimate,
        }

    def change(self, body: JsonObject, updated_at: str) -> None:
        """Apply the given parts of a create or update body; 400 INVALID_BODY when one has the wrong shape."""
        parts = checked_parts(body)
        for name, value in parts.items():
            setattr(self, name, value)
        self.updated_at = updated_at


class WorkflowStore:
    """All workflows, in the order they were created."""

    def __init__(self, workflows: Iterable[Workflow], updated_at: str) -> None:
        """Start with the account's initial workflows."""
        self._by_slug = {one.slug: _stored(one, updated_at) for one in workflows}

    def visible_to(self, user: str) -> list[StoredWorkflow]:
        """List a user's own workflows and the templates."""
        return [one for one in self._by_slug.values() if one.user == user or one.is_template]

    def find(self, slug: str, user: str) -> StoredWorkflow:
        """Return a workflow that the user can see; 404 otherwise."""
        found = self._by_slug.get(slug)
        if found is None or not (found.user == user or found.is_template):
            raise not_found("Workflow")
        return found

    def find_own(self, slug: str, user: str) -> StoredWorkflow:
        """Return a workflow that the user may change; 404 or 403 otherwise."""
        found = self.find(slug, user)
        if found.user != user:
            required = f"workflow:{slug}:write"
            raise ErrorResponse(403, "CAPABILITY_DENIED", "Only the owner can change it", {"required": required})
        return found

    def find_public(self, slug: str) -> StoredWorkflow:
        """Return a workflow with a public playground; 404 otherwise."""
        found = self._by_slug.get(slug)
        if found is None or not found.public_playground:
            raise not_found("Workflow")
        return found

    def create(self, body: JsonObject, user: str, updated_at: str) -> StoredWorkflow:
        """Add a workflow; the slug comes from its name, with -2, -3 … when taken."""
        created = StoredWorkflow(slug="", user=user, updated_at=updated_at)
        created.change(body, updated_at)
        created.slug = self._free_slug(created.name)
        self._by_slug[created.slug] = created
        return created

    def delete(self, slug: str, user: str) -> None:
        """Remove a workflow of the user's own."""
        del self._by_slug[self.find_own(slug, user).slug]

    def _free_slug(self, name: str) -> str:
        base = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "workflow"
        numbered = (f"{base}-{number}" for number in count(2))
        return base if base not in self._by_slug else next(one for one in numbered if one not in self._by_slug)


def _stored(workflow: Workflow, updated_at: str) -> StoredWorkflow:
    inputs = [("input", "requestInput", {"fields": list(workflow.fields)})] if workflow.fields else []
    models = [(f"model-{place}", "model", {"model": name}) for place, name in enumerate(workflow.models, 1)]
    steps = [*inputs, *models, ("output", "output", {})]
    nodes = [
        {"id": node_id, "type": kind, "position": {"x": 240 * place, "y": 0}, "data": settings}
        for place, (node_id, kind, settings) in enumerate(steps)
    ]
    edges = [
        {
            "id": f"{one[0]}-{next_one[0]}",
            "source": one[0],
            "target": next_one[0],
            "sourceHandle": "out",
            "targetHandle": "in",
        }
        for one, next_one in pairwise(steps)
    ]
    return StoredWorkflow(
        slug=workflow.slug,
        user=workflow.user,
        updated_at=updated_at,
        name=workflow.name or workflow.slug,
        description=workflow.description,
        tags=workflow.tags,
        nodes=nodes,
        edges=edges,
        public_playground=workflow.public_playground,
        folder_id=workflow.folder_id,
        is_template=workflow.is_template,
    )


def _objects(value: object) -> list[JsonObject]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, Sequence) else []
