"""Runs the tests that ask for `knouds_emulator` in virtual time, under whichever async plugin they have.

Rule of the file: each plugin is told in the way it offers. pytest-asyncio is given a loop factory for those tests
alone, pytest-trio a way to run them, anyio's plugin a backend with options. A clock or loop that the project chose
itself wins.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from functools import partial
from typing import Any, Final

import pytest

__all__ = ["is_in_virtual_time"]

_FIXTURE: Final = "knouds_emulator"
_PORT: Final = "knouds_url"
_HIDDEN: Final[Any] = getattr(pytest, "HIDDEN_PARAM", "virtual_time")
_LOOP_HOOK: Final = "pytest_asyncio_loop_factories"


class _Virtual:
    """A parameter for `anyio_backend`: it makes the fixture be set up anew, with a clock of the test's own."""

    def __init__(self, backend: object) -> None:
        self.backend = backend


class _LoopFactories:
    """What pytest-asyncio asks for a test's event loop; there only while the parameters of such a test are made."""

    @pytest.hookimpl(trylast=True, optionalhook=True)
    def pytest_asyncio_loop_factories(self) -> Mapping[str, Any]:
        """Give the loop with the virtual clock."""
        from knouds_async.testing.virtual_time import VirtualTimeLoop

        return {"virtual_time": VirtualTimeLoop}


def is_in_virtual_time(node: pytest.Item) -> bool:
    """Tell whether a test is to run in virtual time: not with a socket, else by the marker's word, its own first."""
    if _PORT in getattr(node, "fixturenames", ()):
        return False
    said = [mark.kwargs["virtual_time"] for mark in node.iter_markers("knouds") if "virtual_time" in mark.kwargs]
    return bool(said[0]) if said else True


def _is_wanted(node: pytest.Item, fixtures: object) -> bool:
    if not isinstance(fixtures, list) or _FIXTURE not in fixtures or _PORT in fixtures:
        return False
    return is_in_virtual_time(node)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None, object, object]:
    """Tell anyio's plugin and pytest-asyncio of a test in virtual time, through its parameters; its id stays."""
    if not _is_wanted(metafunc.definition, metafunc.fixturenames):
        return (yield)
    _choose_backends(metafunc)
    plugins = metafunc.config.pluginmanager
    if not hasattr(plugins.hook, _LOOP_HOOK):
        return (yield)
    factories = _LoopFactories()
    plugins.register(factories)
    try:
        return (yield)
    finally:
        plugins.unregister(factories)


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
    """Give anyio's plugin a backend with a virtual clock, where `anyio_backend` is set up for such a test."""
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


def _virtual(backend: Any) -> object:
    from knouds_async.testing.virtual_time import virtual_backend

    name, options = (backend, {}) if isinstance(backend, str) else backend
    if {"clock", "loop_factory"} & set(options):
        return backend
    kept = {option: value for option, value in options.items() if option != "use_uvloop"}
    return name, {**kept, **virtual_backend(name)[1]}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell pytest-trio how to run a test in virtual time; a clock among the test's own fixtures wins."""
    for item in items:
        trio = next(item.iter_markers("trio"), None)
        if trio is not None and _is_wanted(item, getattr(item, "fixturenames", None)):
            run = partial(_run_in_virtual_time, trio.kwargs.get("run"))
            item.add_marker(pytest.mark.trio(run=run), append=False)


def _run_in_virtual_time(run: Any, *args: Any, clock: Any = None, **options: Any) -> Any:
    import trio
    from trio.testing import MockClock

    return (run or trio.run)(*args, clock=clock or MockClock(autojump_threshold=0), **options)
