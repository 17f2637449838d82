"""Runs the tests that ask for `knouds_emulator` in virtual time, under whichever async plugin they have.

pytest-asyncio is given a loop for the runner of one such test, and none where a test shares its loop with others;
pytest-trio a way to run them, anyio's plugin a backend with options. A clock or loop of the project's own wins.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any, Final

import pytest

__all__ = ["is_in_virtual_time"]

_FIXTURE: Final = "knouds_emulator"
_PORT: Final = "knouds_url"
_HIDDEN: Final[Any] = getattr(pytest, "HIDDEN_PARAM", "virtual_time")
_RUNNER: Final = "_function_scoped_runner"
_FACTORY: Final = "_asyncio_loop_factory"


class _Virtual:
    """A parameter for `anyio_backend`: it makes the fixture be set up anew, with a clock of the test's own."""

    def __init__(self, backend: object) -> None:
        self.backend = backend


def is_in_virtual_time(node: pytest.Item) -> bool:
    """Return whether a test runs in virtual time: not with a socket, else as its nearest marker says."""
    if _PORT in getattr(node, "fixturenames", ()):
        return False
    marked = [mark.kwargs["virtual_time"] for mark in node.iter_markers("knouds") if "virtual_time" in mark.kwargs]
    return bool(marked[0]) if marked else True


def _is_wanted(node: pytest.Item, fixtures: object) -> bool:
    if not isinstance(fixtures, list) or _FIXTURE not in fixtures or _PORT in fixtures:
        return False
    return is_in_virtual_time(node)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None, object, object]:
    """Parametrize a test in virtual time for anyio's plugin and pytest-asyncio; its id stays."""
    if not _is_wanted(metafunc.definition, metafunc.fixturenames):
        return (yield)
    _choose_backends(metafunc)
    return (yield)


def _choose_backends(metafunc: pytest.Metafunc) -> None:
    if any("anyio_backend" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize") if mark.args):
        return
    definitions = metafunc.definition._fixtureinfo.name2fixturedefs.get("anyio_backend")  # noqa: SLF001
    if not definitions:
        return
    fixture = definitions[-1]
    if fixture.params is None:
        metafunc.parametrize("anyio_backend", [_Virtual(None)], ids=[_HIDDEN], indirect=True)
    elif fixture.func.__module__ == "anyio.pytest_plugin":
        backends = [_Virtual(backend) for backend in fixture.params]
        mark = pytest.mark.parametrize(
            "anyio_backend", backends, ids=[str(one) for one in fixture.params], indirect=True
        )
        metafunc.definition.add_marker(mark)  # a marker is what keeps the fixture's own parameters out


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Set up anyio's backend or pytest-asyncio's loop with a virtual clock."""
    if fixturedef.argname == _RUNNER and _is_wanted(request.node, request.fixturenames):
        return (yield from _in_virtual_loop(fixturedef))
    backend = yield
    if fixturedef.argname != "anyio_backend" or fixturedef.cached_result is None:
        return backend
    parameter = getattr(request, "param", None)
    if isinstance(parameter, _Virtual):
        backend = parameter.backend if backend is parameter else backend
    elif request.scope != "function" or not _is_wanted(request.node, request.fixturenames):
        return backend
    backend = _virtual(backend)
    fixturedef.cached_result = (backend, fixturedef.cached_result[1], None)
    return backend


def _in_virtual_loop(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    """Create pytest-asyncio's runner of one test with our loop; a loop that the project chose wins.

    Its hook for loop factories would have every fixture of a wider scope set up anew, for its parameter is shared.
    """
    made = fixturedef.func
    if _FACTORY not in fixturedef.argnames:  # before pytest-asyncio 1.4; the emulator then refuses the real clock
        return (yield)

    def runner(**given: Any) -> Generator[Any, None, None]:
        from knouds_async.testing.virtual_time import VirtualTimeLoop

        yield from made(**{**given, _FACTORY: given[_FACTORY] or VirtualTimeLoop})

    fixturedef.func = runner  # type: ignore[misc,unused-ignore]
    try:
        return (yield)
    finally:
        fixturedef.func = made  # type: ignore[misc,unused-ignore]


def _virtual(backend: Any) -> object:
    from knouds_async.testing.virtual_time import virtual_backend

    name, options = (backend, {}) if isinstance(backend, str) else backend
    if {"clock", "loop_factory"} & set(options):
        return backend
    kept = {option: value for option, value in options.items() if option != "use_uvloop"}
    return name, {**kept, **virtual_backend(name)[1]}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests for pytest-trio to run in virtual time; a clock among the test's own fixtures wins."""
    for item in items:
        trio = next(item.iter_markers("trio"), None)
        if trio is not None and _is_wanted(item, getattr(item, "fixturenames", None)):
            run = partial(_run_in_virtual_time, trio.kwargs.get("run"))
            item.add_marker(pytest.mark.trio(run=run), append=False)


def _run_in_virtual_time(run: Any, *args: Any, clock: Any = None, **options: Any) -> Any:
    import trio
    from trio.testing import MockClock

    return (run or trio.run)(*args, clock=clock or MockClock(autojump_threshold=0), **options)
