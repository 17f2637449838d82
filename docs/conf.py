"""How the docs are built: Markdown by MyST, the reference from the docstrings, and no network."""

import re
from enum import Enum
from typing import Any

from docutils import nodes

import knouds_async
import knouds_async.testing
import knouds_async.webhooks

project = "knouds_async"
author = "The knouds_async developers"
copyright = f"2026, {author}"
release = version = knouds_async.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "knouds_async"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_theme_options = {"light_css_variables": {"code-font-size": "78%"}}
myst_heading_anchors = 3
default_role = "code"
nitpicky = True
suppress_warnings = ["ref.python"]  # `Workflow` is a record, and also what an emulator is given

NOT_CALLED = {"Execution", "Updates", "Batch", "Workflows", "Models", "Executions", "Usage", "UsageRows"}
"""Classes whose instances users get from a client, and never create."""

autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

_PUBLIC = {
    name: f"{module.__name__}.{name}"
    for module in (knouds_async.testing, knouds_async.webhooks, knouds_async)
    for name in module.__all__
}


def _link(app: Any, env: Any, node: Any, text: nodes.Node) -> nodes.Node | None:
    """Link a type in a signature to where it is documented, by its public name; show others as they are."""
    if node.get("refdomain") != "py":
        return None
    target = _PUBLIC.get(node.get("reftarget", "").rpartition(".")[2], "")
    domain, page = env.get_domain("py"), node["refdoc"]
    return domain.resolve_xref(env, page, app.builder, "obj", target, node, text) or text


def _sign(app: Any, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str) -> Any:
    """Remove the signatures of classes that users do not call, and the defaults that a factory makes."""
    if what == "class" and (
        thing.__name__ in NOT_CALLED or issubclass(thing, Enum) or getattr(thing, "_is_protocol", False)
    ):
        return "", None
    return signature and (signature.replace("NOTHING", "..."), returns)


def _read(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Remove the references to the API contract: they are for readers of the source."""
    text = "\n".join(lines)
    lines[:] = re.sub(
        r" *\(contract [\d, and]+\)|: contract [\d, and]+(?=\))| *\bContract [\d, and]+\.", "", text
    ).split("\n")


def setup(app: Any) -> None:
    """Register the functions above with Sphinx."""
    app.connect("missing-reference", _link)
    app.connect("autodoc-process-signature", _sign)
    app.connect("autodoc-process-docstring", _read)
