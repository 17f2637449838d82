"""How the docs are built: Markdown by MyST, the reference from the docstrings, links to other projects' docs.

`KNOUDS_DOCS_OFFLINE=1` leaves out the latter, which take a network.
"""

import inspect
import os
import re
from enum import Enum
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref

import knouds_async
import knouds_async.testing
import knouds_async.webhooks

project = "knouds_async"
author = "The knouds_async developers"
copyright = f"2026, {author}"
release = version = knouds_async.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "anyio": ("https://anyio.readthedocs.io/en/stable", None),
    "attrs": ("https://www.attrs.org/en/stable", None),
}
if os.environ.get("KNOUDS_DOCS_OFFLINE"):
    intersphinx_mapping = {}
exclude_patterns = ["_build"]
html_extra_path = ["llms.txt"]
html_theme = "furo"
html_title = "knouds_async"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_theme_options = {"light_css_variables": {"code-font-size": "78%"}}
myst_heading_anchors = 3
default_role = "code"
nitpicky = True

NOT_CALLED = {"Execution", "Updates", "Batch", "Targets", "Workflows", "Models", "Executions", "Usage", "UsageRows"}
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


_EXPLAINED = re.compile(r"(?:^|(?<=[.);,] ))((?:`\w+`(?:, | and )?)+): ")
_NO_EXPLANATION = re.compile(r"(?<=[.)] )(?:Raises|Cancelled|When cancelled|Leaving|After|Over|Else|In a ledger)\b")
_ERROR = re.compile(rf"(?<![\w`.])({'|'.join(name for name in knouds_async.__all__ if name.endswith('Error'))})\b(?!`)")


def _read(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Make a list of what a docstring explains by name, and links of its errors; drop references to the contract."""
    text = "\n".join(lines)
    text = re.sub(r" *\(contract [\d, and]+\)|: contract [\d, and]+(?=\))| *\bContract [\d, and]+\.", "", text)
    if what != "module":
        text = _list_parameters(thing, text)
    lines[:] = _ERROR.sub(r":py:exc:`\1 <knouds_async.\1>`", text).split("\n")


def _list_parameters(thing: Any, text: str) -> str:
    """Return a docstring with its sentences like "`timeout`: seconds" as a list of parameters or attributes."""
    prose, fields = [], []
    for paragraph in re.split(r"\n\s*\n", text):
        flat = " ".join(paragraph.split())
        explained = (
            [] if "::" in paragraph or paragraph.lstrip().startswith(("-", ".. ")) else [*_EXPLAINED.finditer(flat)]
        )
        if not explained:
            prose.append(paragraph)
            continue
        prose.append(flat[: explained[0].start()].strip())
        ends = [*(each.start() for each in explained[1:]), len(flat)]
        for each, end in zip(explained, ends, strict=True):
            said = flat[each.end() : end].strip(" ;,")
            if (more := _NO_EXPLANATION.search(said)) is not None:
                prose.append(said[more.start() :])
                said = said[: more.start()].strip()
            fields += _fields(thing, re.findall(r"`(\w+)`", each[1]), said)
    return "\n\n".join([*filter(None, prose), "\n".join(fields)])


def _fields(thing: Any, names: list[str], said: str) -> list[str]:
    """Return the entries of names that are explained together: the others point to the first."""
    try:
        parameters = set(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        parameters = set()
    texts = [said, *[f"with `{names[0]}`, see there." for _ in names[1:]]]
    kinds = ["param" if name in parameters else "ivar" for name in names]
    return [f":{kind} {name}: {text}" for kind, name, text in zip(kinds, names, texts, strict=True)]


def _link_names(app: Any, doctree: nodes.document, docname: str) -> None:
    """Link each public name that a page mentions as code to where it is documented."""
    domain = app.env.get_domain("py")
    for literal in [*doctree.findall(nodes.literal)]:
        target = _PUBLIC.get(literal.astext().removesuffix("()"))
        if target is None or isinstance(literal.parent, (nodes.reference, pending_xref)):
            continue
        asked = pending_xref("", refdomain="py", reftype="obj", reftarget=target)
        found = domain.resolve_xref(app.env, docname, app.builder, "obj", target, asked, literal.deepcopy())
        if found is not None:
            literal.replace_self(found)


def setup(app: Any) -> None:
    """Register the functions above with Sphinx."""
    app.connect("missing-reference", _link)
    app.connect("autodoc-process-signature", _sign)
    app.connect("autodoc-process-docstring", _read)
    app.connect("doctree-resolved", _link_names)
