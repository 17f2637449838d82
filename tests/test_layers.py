"""Which layer may import which: down only, and the pure core nothing that waits, reads a clock or draws random numbers.

And how long a function may be.
"""

import ast
import re
import sys
from functools import cache
from graphlib import TopologicalSorter

from tests.trees import PACKAGE, nodes_of, text_of, tree_of

FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

CORE = {"errors", "types", "config", "_sansio"}
PUBLIC = {"", "errors", "types", "config", "execution", "client"}  # "" is the package itself
BELOW: dict[str, set[str]] = {
    "errors": {"errors"},
    "types": {"errors", "types"},
    "config": {"errors"},
    "_sansio": CORE,
    "telemetry": CORE,
    "_io": {*CORE, "_io", "telemetry"},
    "execution": {*CORE, "telemetry", "_io"},
    "_batch": {*CORE, "telemetry", "_io", "execution", "_batch"},
    "_resources": {*CORE, "telemetry", "_io", "execution", "_batch", "_resources"},
    "client": {*CORE, "telemetry", "_io", "execution", "_batch", "_resources"},
    "testing": {*PUBLIC, "telemetry", "_sansio", "testing"},
    "webhooks": {*PUBLIC, "telemetry", "_sansio", "_io", "postgres", "webhooks"},
    "_web": {*PUBLIC, "telemetry", "_io"},
    **{top: {*PUBLIC, "_web", "webhooks"} for top in ("fastapi", "aiohttp")},
    "_cli": {*PUBLIC, "_sansio", "_cli", "_batch", "postgres", "testing"},
    "__main__": {"_cli"},
    "ledgers": {"_batch", "_sansio"},
    "postgres": {"_batch", "_io", "config", "errors"},
    "": {*CORE, "_io", "execution", "_resources", "client", "_batch", "webhooks"},
}
FOREIGN: dict[str, set[str]] = {
    "errors": set(),
    "types": {"attrs"},
    "config": {"attrs"},
    "_sansio": {"attrs", "cattrs"},
    "telemetry": {"opentelemetry"},
    "_io": {"attrs", "anyio", "httpx", "httpcore", "psycopg", "trio"},
    "execution": {"attrs", "anyio"},
    "_batch": {"attrs", "anyio", "rich", "IPython"},
    "_resources": {"attrs", "anyio"},
    "client": {"anyio", "httpx", "httpx2"},
}
IMPURE = {
    "anyio", "asyncio", "concurrent", "httpcore", "httpx", "logging", "multiprocessing", "os", "random", "secrets",
    "select", "selectors", "signal", "socket", "sqlite3", "subprocess", "threading", "time", "trio", "urllib.request",
    "uuid",
}  # fmt: skip
MOST_OF_A_FUNCTION = 35  # lines, its signature and docstring aside; about 10 is what reads well


def modules() -> dict[str, ast.Module]:
    """Return the modules of the package by their names."""
    return {name: tree_of(path) for name, path in FILES.items()}


@cache
def imports(tree: ast.AST) -> set[str]:
    """Return the modules that a part of a file imports, at any depth of it."""
    found = set()
    for node in nodes_of(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else str(node.module) for name in names}
    return found


def for_types_only(tree: ast.AST) -> set[str]:
    """Return the modules that are imported under `if TYPE_CHECKING`."""
    guarded = [node for node in nodes_of(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    return {name for node in guarded for name in imports(node)}


def layer(module: str) -> str:
    """Return the part of the package that a module belongs to; "" is the package itself."""
    return [*module.split("."), ""][1]


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of what a function does."""
    does = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (does[-1].end_lineno or 0) - does[0].lineno + 1 if does else 0


def of(*layers: str) -> list[str]:
    """Return the modules of some layers."""
    return [module for module in FILES if layer(module) in layers]


def top(name: str) -> str:
    """Return the package that a module comes from."""
    return name.partition(".")[0]


def impurities(tree: ast.AST) -> list[str]:
    """Return what a module imports, says or calls that could wait, read a clock, or draw random numbers."""
    found = [name for name in imports(tree) if {name, top(name)} & IMPURE]
    impure = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await, ast.Global, ast.Nonlocal)
    found += [ast.unparse(node) for node in nodes_of(tree) if isinstance(node, impure)]
    clocks = {"now", "utcnow", "today", "open", "input", "print", "environ", "getenv"}
    calls = [ast.unparse(node.func) for node in nodes_of(tree) if isinstance(node, ast.Call)]
    return found + [
        call for call in calls if call in clocks or (call.startswith("date") and call.split(".")[-1] in clocks)
    ]


def test_every_module_has_a_layer() -> None:
    """A new part of the package has to say whom it may import."""
    assert {layer(module) for module in FILES} <= set(BELOW)


def test_imports_go_down_only() -> None:
    """No module imports from a layer beside or above its own."""
    ours = {
        module: {name for name in imports(tree) if top(name) == "knouds_async"} for module, tree in modules().items()
    }
    upwards = [
        (module, name) for module, names in ours.items() for name in names if layer(name) not in BELOW[layer(module)]
    ]
    assert upwards == []


def test_a_layer_uses_its_own_libraries_only() -> None:
    """What is not of the standard library is used where the layer is for it."""
    known = {"knouds_async", *sys.stdlib_module_names}
    foreign = {module: {top(name) for name in imports(tree_of(FILES[module]))} - known for module in of(*FOREIGN)}
    assert {module: names for module, names in foreign.items() if not names <= FOREIGN[layer(module)]} == {}


def test_the_core_is_pure() -> None:
    """It imports nothing that could wait, read a clock, or draw random numbers, and does none of it by other means."""
    core = {module: tree_of(FILES[module]) for module in of("_sansio")}
    assert len(core) > 5
    assert {module: found for module, tree in core.items() if (found := impurities(tree))} == {}


def test_http_stays_below() -> None:
    """httpx and httpcore are imported in `_io` and by the emulator's transport; two more modules name a type of it."""
    users = {
        module
        for module, tree in modules().items()
        if {top(name) for name in imports(tree)} & {"httpx", "httpx2", "httpcore"} and layer(module) != "_io"
    }
    naming = {"knouds_async.client", "knouds_async.testing.plugin"}
    assert users <= {"knouds_async.testing.transport", *naming}
    for tree in (tree_of(FILES[module]) for module in naming):
        at_runtime = [node for node in tree.body if not isinstance(node, ast.If)]
        assert "httpx" in for_types_only(tree)
        assert not any({"httpx", "httpx2"} & imports(node) for node in at_runtime)


def test_one_file_knows_asyncio_from_trio() -> None:
    """All else is anyio; the virtual clock and the command line, which starts a loop, aside."""
    users = {
        module for module, tree in modules().items() if {top(name) for name in imports(tree)} & {"asyncio", "trio"}
    }
    users -= set(of("_cli"))
    assert users == {"knouds_async._io.concurrency", "knouds_async.testing.virtual_time"}


def test_the_environment_is_read_in_one_place() -> None:
    """`config` reads it, and the command line what a terminal can do."""
    readers = {
        module
        for module, tree in modules().items()
        for node in nodes_of(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
    }
    assert readers - set(of("_cli")) == {"knouds_async.config"}


def test_nothing_of_ours_is_imported_for_types_only() -> None:
    """An import of our own that only the type checker may see hides a cycle."""
    guarded = [(module, name) for module, tree in modules().items() for name in for_types_only(tree)]
    assert [(module, name) for module, name in guarded if top(name) == "knouds_async"] == []


def test_there_is_no_import_cycle() -> None:
    """The modules can be put in an order in which each imports only those before it."""
    graph = {module: imports(tree) & set(FILES) - {module} for module, tree in modules().items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)


def test_a_module_says_what_it_is_for() -> None:
    """The first line of its docstring is a whole sentence."""
    docs = {module: ast.get_docstring(tree_of(FILES[module])) or "" for module in FILES if text_of(FILES[module])}
    assert [module for module, doc in docs.items() if not doc.partition("\n")[0].endswith(".")] == []


def test_a_function_does_little() -> None:
    """What is longer has parts that have names."""
    functions = [
        (module, node)
        for module, tree in modules().items()
        for node in nodes_of(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [(module, node.name) for module, node in functions if lines_of(node) > MOST_OF_A_FUNCTION] == []


def test_threads_are_waited_for_everywhere() -> None:
    """No other module hands work to a thread by `anyio.to_thread`, whose shield asyncio's cancellation goes through."""
    assert [module for module, path in FILES.items() if "to_thread" in text_of(path)] == [
        "knouds_async._io.concurrency"
    ]


def test_no_file_is_opened_beside_a_database() -> None:
    """Closing a descriptor of a database's file drops its locks (POSIX): such files are only ever made, exclusively."""
    for module in ("knouds_async._io.shared_limiter", "knouds_async._batch.sqlite"):
        opened = re.findall(r"os\.open\((.*?)\)", text_of(FILES[module]))
        assert opened
        assert [arguments for arguments in opened if not re.search(r"O_EXCL|^os\.devnull,", arguments)] == []
        assert re.findall(r"(?<![\w.])open\(|path\.(?:open|read_bytes|read_text|touch)\(", text_of(FILES[module])) == []


def test_a_value_of_a_caller_is_shown_by_one_function() -> None:
    """What was meant as the key may be in any argument: a message says `name=` of it by `safe_repr`, not by `!r`."""
    found = {name: re.findall(r"\w+=\{[\w.]+!r[^}]*\}(?!>)", text_of(path)) for name, path in FILES.items()}
    del found["knouds_async.testing.emulator"]  # its own repr
    assert {name: values for name, values in found.items() if values} == {}
