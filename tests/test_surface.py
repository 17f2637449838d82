"""The public surface: its names, its docstrings, its types, and what importing it costs."""

import contextlib
import importlib
import importlib.resources
import inspect
import logging
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest

import knouds_async
import knouds_async.testing

UNWANTED = ["starlette", "uvicorn", "rich", "cyclopts", "trio", "aiohttp", "sqlite3"]
SPELLED_OUT = {"__init__", "__await__", "__aenter__", "__aexit__", "__aiter__", "__anext__", "__iter__", "__next__"}


def is_public(name: str) -> bool:
    """Return whether a dotted name has no private part; the classes of resources are what a client's attributes are."""
    return not any(part.startswith("_") for part in name.replace("._resources", "").split("."))


def modules() -> Iterator[ModuleType]:
    """Return every module that users may import."""
    yield knouds_async
    for found in pkgutil.walk_packages(knouds_async.__path__, "knouds_async."):
        if is_public(found.name):
            yield importlib.import_module(found.name)


def defined() -> dict[str, Any]:
    """Return every public class and function, by the name under which it was defined."""
    values = [value for module in modules() for value in vars(module).values() if is_public(_home(value))]
    values += [getattr(module, name) for module in (knouds_async, knouds_async.testing) for name in module.__all__]
    kept = [value for value in values if inspect.isclass(value) or inspect.isfunction(value)]
    named = {f"{value.__module__}.{value.__qualname__}": value for value in kept if _home(value)}
    return {name: value for name, value in named.items() if is_public(value.__qualname__)}


def _home(value: Any) -> str:
    """Return the module of ours that a value was defined in; "" for all others."""
    home = str(getattr(value, "__module__", ""))
    return home if home.startswith("knouds_async") else ""


def members(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Return the methods and properties that a class defines itself, unwrapped."""
    for name, value in vars(kind).items():
        plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        plain = plain.fget if isinstance(plain, property) else getattr(plain, "func", plain)
        is_ours = isinstance(plain, FunctionType) and plain.__module__ != "typing"  # a Protocol's own `__init__`
        if (is_public(name) or name in SPELLED_OUT) and is_ours:
            yield name, plain


CALLABLES: dict[str, Callable[..., Any]] = {
    name: value for name, value in defined().items() if inspect.isfunction(value)
} | {
    f"{name}.{member}": plain
    for name, kind in defined().items()
    if inspect.isclass(kind)
    for member, plain in members(kind)
}
NAMED: dict[str, Any] = {name: value for name, value in defined().items() if inspect.isclass(value)} | CALLABLES


def test_all_is_complete() -> None:
    """`__all__` holds every public name, once, and nothing else; ruff sees to the order."""
    for module in (knouds_async, knouds_async.testing):
        names = [name for name, value in vars(module).items() if is_public(name) and not isinstance(value, ModuleType)]
        modules_given = [name for name in module.__all__ if isinstance(getattr(module, name), ModuleType)]
        assert sorted(module.__all__) == sorted({*names, *modules_given}), module.__name__


def test_the_surface_is_not_empty() -> None:
    """The checks below see the classes that users meet."""
    for name in ("client.AsyncKnouds.aclose", "execution.Execution.wait", "_resources.Targets.submit"):
        assert f"knouds_async.{name}" in CALLABLES
    assert "knouds_async.types.RunResult.images" in CALLABLES
    assert len(CALLABLES) > 100


def test_everything_public_has_a_docstring() -> None:
    """Each class, function, method and property says in a sentence what it is for; a constructor in its class."""
    own = {
        name: vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__ for name, value in NAMED.items()
    }
    silent = [name for name in NAMED if not own[name]]
    assert [name for name in silent if not name.endswith(".__init__")] == []


def test_everything_public_is_typed() -> None:
    """Each parameter and each return value has an annotation."""
    signatures = {name: inspect.signature(value) for name, value in CALLABLES.items()}
    untyped = [
        (name, each.name)
        for name, signature in signatures.items()
        for each in signature.parameters.values()
        if each.name not in ("self", "cls") and each.annotation is inspect.Parameter.empty
    ]
    untyped += [(name, "return") for name, it in signatures.items() if it.return_annotation is inspect.Signature.empty]
    assert untyped == []


def test_docstrings_explain_what_there_is() -> None:
    """What a docstring explains by name, as in "`timeout`: seconds", is a parameter or an attribute."""
    explained = {name: _explained(value) for name, value in NAMED.items()}
    assert [(name, word) for name, words in explained.items() for word in words if not hasattr(NAMED[name], word)] == []


def _explained(value: Any) -> set[str]:
    """Return the names that a docstring explains and that are no parameters."""
    text = vars(value).get("__doc__") or "" if inspect.isclass(value) else value.__doc__ or ""
    explained = re.findall(r"(?:^|\. |\n\s*)((?:`\w+`(?:, | and )?)+):", text)
    named = {word for words in explained for word in re.findall(r"`(\w+)`", words)}
    with contextlib.suppress(ValueError, TypeError):  # not every class has a signature
        named -= set(inspect.signature(value).parameters)
    return named


def run(code: str) -> list[str]:
    """Run code in an interpreter of its own and give the words it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.split()


def test_importing_brings_in_nothing_that_is_not_needed() -> None:
    """Beyond what httpx imports by itself, none of the optional libraries is loaded."""
    assert (
        run(f"""
import sys, httpx, httpcore, anyio, attrs, cattrs
before = set(sys.modules)
import knouds_async
print(*sorted(({{name.partition(".")[0] for name in set(sys.modules) - before}}) & set({UNWANTED})))
""")
        == []
    )


def test_importing_loads_no_part_of_what_is_below_that_only_running_needs() -> None:
    """What anyio loads at its first use it still loads then, and statistics take no part in the start."""
    assert (
        run("""
import sys, httpx, httpcore, anyio, attrs, cattrs
before = set(sys.modules)
import knouds_async
print(*sorted(name for name in set(sys.modules) - before if name.startswith(("anyio", "statistics"))))
""")
        == []
    )


def test_importing_works_without_optional_libraries() -> None:
    """None of them needs to be installed."""
    assert run(f"""
import sys
sys.modules.update(dict.fromkeys({UNWANTED}))
import knouds_async
print("imported")
""") == ["imported"]


def test_importing_changes_nothing() -> None:
    """Importing starts no thread, sets no log level, and adds no handler: warnings go to stderr where none is set."""
    assert run("""
import logging, threading, knouds_async
log = logging.getLogger("knouds_async")
print(threading.active_count(), log.level, *log.handlers, *logging.root.handlers)
""") == ["1", "0"]


def test_a_record_reaches_the_caller_s_handlers(caplog: pytest.LogCaptureFixture) -> None:
    """The library's records go where the application sends its own."""
    logging.getLogger("knouds_async").warning("seen")
    assert caplog.messages == ["seen"]


def test_the_package_is_marked_as_typed() -> None:
    """Type checkers read the annotations of an installed package only with this mark."""
    assert importlib.resources.files(knouds_async).joinpath("py.typed").is_file()


def test_a_warning_that_names_a_run_is_seen_without_any_logging_set_up() -> None:
    """Without logging set up warnings go to stderr and the rest is silent; with it nothing appears twice."""
    code = """
import logging, sys
import knouds_async
log = logging.getLogger("knouds_async")
log.info("quiet")
log.warning("execution 1")
logging.basicConfig(stream=sys.stdout)
log.warning("execution 2")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stderr == "execution 1\n"
    assert done.stdout.count("execution 2") == 1
