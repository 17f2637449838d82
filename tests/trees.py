"""The sources that the checks of the whole tree read: parsed once, and only in a process that runs such a check."""

import ast
from functools import cache
from pathlib import Path

import knouds_async

PACKAGE = Path(knouds_async.__file__).parent
TESTS = Path(__file__).parent


@cache
def text_of(path: Path) -> str:
    """Return the text of a file."""
    return path.read_text(encoding="utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    """Parse a module."""
    return ast.parse(text_of(path))


@cache
def nodes_of(tree: ast.AST) -> list[ast.AST]:
    """Return a tree and all that is below it."""
    return list(ast.walk(tree))


def trees(folder: Path) -> dict[Path, ast.Module]:
    """Parse the modules of a folder and of those below."""
    return {path: tree_of(path) for path in sorted(folder.rglob("*.py"))}
