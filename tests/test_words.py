"""The words of the package: one meaning for each class name, and none of the words that were retired."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.trees import PACKAGE, TESTS, nodes_of, text_of, tree_of, trees

RETIRED = {
    "agenda", "aside", "books", "canary", "courier", "course", "crowd", "fate", "grants", "keeper", "lessons",
    "likeliest", "maps", "mending", "mirror", "roster", "scene", "scouts", "strikes", "telling", "unawaited", "untaken",
    "wallet", "witness",
}  # fmt: skip
"""Words of an earlier, private language: CONTRIBUTING.md has the ones that took their place."""

OLD_TONE = re.compile(
    r"\b(whoever|whomever|mend(s|ed|ing)?|(goes|go|went|going) on|(is|are|was|were) over(?! (a|the|its|sockets))"
    r"|still out|what is out|runs? (that )?(is|are) out|a look|looks(?! like)|looked at|(is|are|be) told)\b",
    re.IGNORECASE,
)
"""Phrases for what has plain ones: a poll, finish, in flight, continue, fix, report."""


def identifiers(tree: ast.AST) -> set[str]:
    """Return every name that a module gives to something, or uses."""
    found = set()
    for node in nodes_of(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


def words(identifier: str) -> set[str]:
    """Return the words of an identifier, whether written in snake or in camel case."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)}


def prose(path: Path) -> str:
    """Return the docstrings and comments of a module."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in nodes_of(tree_of(path)) if isinstance(node, documented)]
    tokens = tokenize.generate_tokens(io.StringIO(text_of(path)).readline)
    return "\n".join([*texts, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield the functions of the package and of the tests, each with its file."""
    for path, tree in (trees(PACKAGE) | trees(TESTS)).items():
        for node in nodes_of(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def test_a_class_name_has_one_meaning() -> None:
    """No two modules of the package define a class of the same name."""
    names = Counter(
        node.name for tree in trees(PACKAGE).values() for node in nodes_of(tree) if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in names.items() if count > 1} == set()


def test_no_identifier_has_a_retired_word() -> None:
    """No name has a word that only this library used: an engineer who knows httpx, asyncio and h11 can guess each."""
    used = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path, tree in trees(PACKAGE).items()
        for name in identifiers(tree)
        if words(name) & RETIRED
    }
    assert used == set()


def test_docstrings_begin_with_a_plain_verb() -> None:
    """Docstrings begin with Return, Create, Send or Raise, not with Give, Tell or Take; so do those of helpers."""
    odd = re.compile(r"(Give|Tell|Take|Say|Have|Let|Hear|Know|See|Belong)\b")
    found = [
        f"{path.parent.name}/{path.name}:{node.lineno}"
        for path, node in functions()
        if not node.name.startswith("test_") and odd.match(ast.get_docstring(node) or "")
    ]
    assert found == []


def test_a_constructor_has_no_docstring_of_its_own() -> None:
    """What a constructor takes stands in the docstring of its class."""
    documented = [(path, node) for path, node in functions() if node.name == "__init__" and ast.get_docstring(node)]
    assert [f"{path.parent.name}/{path.name}:{node.lineno}" for path, node in documented] == []


def test_prose_has_no_phrase_of_the_old_tone() -> None:
    """Documents, docstrings and comments say poll, finish, in flight, continue and fix."""
    code = [path for path in (*PACKAGE.rglob("*.py"), *TESTS.rglob("*.py")) if OLD_TONE.search(text_of(path))]
    texts = {path: prose(path) for path in code if path != Path(__file__)}
    documents = [*TESTS.parent.glob("*.md"), *TESTS.parent.glob("docs/*.md")]
    texts |= {path: text_of(path) for path in documents}
    found = {path: [match[0] for match in OLD_TONE.finditer(text)] for path, text in texts.items()}
    named = {f"{path.parent.name}/{path.name}": words for path, words in found.items() if words}
    assert named == {}
