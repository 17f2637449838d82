"""The account's workflows: what is stored, the JSON shapes, checks of workflows and inputs (contract 2, 8, 9)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count, pairwise

import attrs

from knouds_async.config import is_number
from knouds_async.testing._service.catalog import EmulatedWorkflow
from knouds_async.testing._service.replies import ErrorResponse, not_found

__all__ = ["StoredWorkflow", "WorkflowStore", "check_inputs"]

JsonObject = Mapping[str, object]
Check = Callable[[object], bool]

BLANK_NAME = "Untitled workflow"


def checked_parts(body: JsonObject) -> dict[str, object]:
    """Return the parts present in a body, by attribute name; 400 INVALID_BODY when one has the wrong shape."""
    parts: dict[str, object] = {}
    for key, (attribute, is_valid) in _PARTS.items():
        if key in body:
            if not is_valid(body[key]):
                raise ErrorResponse(400, "INVALID_BODY", f"'{key}' has the wrong shape")
            parts[attribute] = body[key]
    if "name" in parts:
        parts["name"] = str(parts["name"]).strip() or BLANK_NAME
    return parts


def settings_of(node: JsonObject) -> JsonObject:
    """Return the settings of a node: its `data`."""
    settings = node.get("data")
    return settings if isinstance(settings, Mapping) else {}


def is_request_input(node: JsonObject) -> bool:
    """Return whether a node is a Request Input, whose fields are the workflow's inputs."""
    return re.sub(r"[^a-z]", "", str(node.get("type", "")).lower()) == "requestinput"


def _is_string(value: object) -> bool:
    return isinstance(value, str)


def _is_string_or_null(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _list_of(is_valid: Check) -> Check:
    return lambda value: isinstance(value, list) and all(is_valid(one) for one in value)


def _object_with(needed: Mapping[str, Check], optional: Mapping[str, Check]) -> Check:
    """Create the check of an object that may have further keys."""

    def is_valid(value: object) -> bool:
        if not isinstance(value, dict):
            return False
        return all(name in value and check(value[name]) for name, check in needed.items()) and all(
            check(value[name]) for name, check in optional.items() if name in value
        )

    return is_valid


_is_position = _object_with({}, {"x": is_number, "y": is_number})
_is_viewport = _object_with({}, {"x": is_number, "y": is_number, "zoom": is_number})
_is_field = _object_with(
    {"name": _is_string, "type": _is_string},
    {
        "options": _is_list,
        "min": is_number,
        "max": is_number,
        "step": is_number,
        "required": _is_bool,
        "helperText": _is_string,
    },
)
_has_fields = _object_with({}, {"fields": _list_of(_is_field)})
_is_plain_node = _object_with(
    {"id": _is_string, "type": _is_string}, {"position": _is_position, "data": _object_with({}, {})}
)
_is_edge = _object_with(
    {"id": _is_string, "source": _is_string, "target": _is_string},
    {"sourceHandle": _is_string_or_null, "targetHandle": _is_string_or_null},
)


def _is_node(value: object) -> bool:
    if not (isinstance(value, dict) and _is_plain_node(value)):
        return False
    return not is_request_input(value) or _has_fields(settings_of(value))


_PARTS: dict[str, tuple[str, Check]] = {
    "name": ("name", _is_string),
    "description": ("description", _is_string),
    "tags": ("tags", _list_of(_is_string)),
    "nodes": ("nodes", _list_of(_is_node)),
    "edges": ("edges", _list_of(_is_edge)),
    "viewport": ("viewport", _is_viewport),
    "publicPlayground": ("public_playground", _is_bool),
}


Field = Mapping[str, object]


def check_inputs(fields: Sequence[Field], inputs: Mapping[str, object]) -> None:
    """Raise 400 INVALID_INPUTS for the first field that does not fit."""
    for field in fields:
        name = str(field.get("name"))
        if name in inputs:
            if problem := _problem(field, inputs[name]):
                raise ErrorResponse(400, "INVALID_INPUTS", f"Field '{name}' {problem}", {"field": name})
        elif field.get("required") and "default" not in field:
            raise ErrorResponse(400, "INVALID_INPUTS", f"Field '{name}' is required", {"field": name})


def _problem(field: Field, value: object) -> str | None:
    match field.get("type"):
        case "text" | "textarea":
            return None if isinstance(value, str) else "must be a string"
        case "number":
            return None if is_number(value) else "must be a number"
        case "slider":
            return _slider_problem(field, value)
        case "pills":
            return _pills_problem(field, value)
        case "toggle":
            return None if isinstance(value, bool) else "must be true or false"
        case "image" | "video":
            is_url = isinstance(value, str) and value.startswith("https://") and len(value) > len("https://")
            return None if is_url else "must be an HTTPS URL"
        case _:
            return None


def _slider_problem(field: Field, value: object) -> str | None:
    if not is_number(value):
        return "must be a number"
    low, high, step = field.get("min"), field.get("max"), field.get("step")
    if isinstance(low, int | float) and value < low:
        return f"must be at least {low}"
    if isinstance(high, int | float) and value > high:
        return f"must be at most {high}"
    if isinstance(step, int | float) and step > 0:
        steps = (float(value) - (low if isinstance(low, int | float) else 0)) / step
        if not math.isfinite(steps) or abs(steps - round(steps)) > 1e-6:
            return f"must be in steps of {step}"
    return None


def _pills_problem(field: Field, value: object) -> str | None:
    options = field.get("options")
    if not isinstance(options, Sequence):
        return None
    allowed = [option.get("value") if isinstance(option, Mapping) else option for option in options]
    return None if value in allowed else f"must be one of {allowed}"


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

    def __init__(self, workflows: Iterable[EmulatedWorkflow], updated_at: str) -> None:
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


def _stored(workflow: EmulatedWorkflow, updated_at: str) -> StoredWorkflow:
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
