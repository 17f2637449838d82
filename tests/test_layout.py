"""Where tests stand: each module of the package has a test file named after it, and what crosses modules is a scenario.

A private name is imported only where the test file of its own module imports it, too.
"""

import ast
from collections.abc import Iterator

from tests.trees import PACKAGE, TESTS, nodes_of, trees

NEED_A_SERVER = {
    "_io.database": "postgres/test_database",
    "_io.postgres": "postgres/test_database",
    "_io.database_limiter": "postgres/test_limiter",
    "_io.transactions": "postgres/test_database",
    "_batch.postgres": "postgres/test_ledger",
    "_cli.ledgers": "postgres/test_cli",
    "postgres": "postgres/test_bus",
}
"""Modules whose tests are together in the folder that starts a PostgreSQL."""

OF_NO_MODULE = {"scenarios", "http_clients", "users", "typing"}  # folders whose tests cross modules, or are others'
OF_THE_TREE = {  # checks of the whole tree: of its words and layers, of documents, examples and other people's projects
    "test_changelog",
    "test_documents",
    "postgres/test_examples",
    "test_examples",
    "test_layers",
    "test_layout",
    "test_observability",
    "test_package",
    "test_readme",
    "test_surface",
    "test_users",
    "test_words",
}


def home(module: str) -> str:
    """Return the path of the test file of a module, such as `io/test_pool` for `_io.pool`."""
    if module in NEED_A_SERVER:
        return NEED_A_SERVER[module]
    top, *rest = module.split(".")
    return f"{top.strip('_')}/test_{rest[-1].strip('_')}" if rest else f"test_{top.strip('_')}"


def modules() -> Iterator[str]:
    """Yield the modules that have something to test, by their names below the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if not path.name.startswith("__"):
            yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


HOMES = {module: home(module) for module in modules()}


def files() -> dict[str, ast.Module]:
    """Return the files of the tests, by their paths without `.py`."""
    return {path.relative_to(TESTS).with_suffix("").as_posix(): tree for path, tree in trees(TESTS).items()}


def private_names(tree: ast.AST) -> set[tuple[str, str]]:
    """Return the private names that a file imports, each with the module it is defined in; "" is the module itself."""
    found = set()
    for node in nodes_of(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("knouds_async"):
            below = (node.module or "").removeprefix("knouds_async").removeprefix(".")
            for alias in node.names:
                inner = f"{below}.{alias.name}".removeprefix(".")
                found.add((inner, "") if inner in HOMES else (below, alias.name))
    return {(module, name) for module, name in found if any(map(is_private, [*module.split("."), name]))}


def is_private(part: str) -> bool:
    """Return whether a part of a dotted name has one underscore."""
    return part.startswith("_") and not part.startswith("__")


def test_every_module_has_a_test_file_of_its_name() -> None:
    """The tests of a module are found by its name."""
    present = files()
    assert {module for module, name in HOMES.items() if name not in present} == set()


def test_every_test_file_is_named_after_a_module_or_is_a_scenario() -> None:
    """What crosses modules is in `scenarios`, and what is of one module in the file of its name."""
    named = {name for name in files() if name.rpartition("/")[2].startswith("test_")}
    of_modules = {name for name in named if name.partition("/")[0] not in OF_NO_MODULE}
    assert of_modules - set(HOMES.values()) - OF_THE_TREE == set()


def test_no_test_imports_a_private_name_that_the_test_of_its_module_does_not() -> None:
    """A private name is used in tests only where the test file of its own module uses it, too."""
    imported = {file: private_names(tree) for file, tree in files().items()}
    tested = {each for file, names in imported.items() for each in names if HOMES.get(each[0]) == file}
    assert {file: names - tested for file, names in imported.items() if names - tested} == {}
