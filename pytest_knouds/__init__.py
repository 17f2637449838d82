"""The pytest plugin: fixtures on an emulated service, virtual time for their tests, and a guard before the real one.

pytest imports this package in every project of its environment, so it needs pytest and the standard library alone; what
the fixtures are made of, `knouds_async.testing.plugin`, is imported by the first test that requests one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_knouds.guard import (
    pytest_runtest_call,
    pytest_runtest_setup,
    pytest_runtest_teardown,
    refuse_the_real_service,
    report_at_the_end,
)
from pytest_knouds.timing import (
    is_in_virtual_time,
    pytest_collection_modifyitems,
    pytest_fixture_setup,
    pytest_generate_tests,
)

if TYPE_CHECKING:
    import httpx

    from knouds_async import AsyncKnouds
    from knouds_async.testing import Emulator

__all__ = [
    "knouds",
    "knouds_emulator",
    "knouds_http_client",
    "knouds_url",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_fixture_setup",
    "pytest_generate_tests",
    "pytest_runtest_call",
    "pytest_runtest_setup",
    "pytest_runtest_teardown",
]

_MARKERS = (
    "knouds(**settings): settings of the `knouds_emulator` fixture: those of knouds_async.testing.Emulator, and "
    "faults, latency, virtual_time",
    "knouds_real: let the test reach the real service at knouds.ai, where runs are paid for",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that disables the guard."""
    group = parser.getgroup("knouds")
    group.addoption("--knouds-real", action="store_true", help="let every test reach the real Knouds service")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and enable the guard."""
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    refuse_the_real_service()


@pytest.fixture
def knouds_url(knouds_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the emulator on a port of this machine and yield its URL, for an application that builds its own client.

    `$KNOUDS_BASE_URL` and `$KNOUDS_KEY` point at it during the test, for child processes as well. Time is real.
    """
    from knouds_async.testing.plugin import serving

    with serving(knouds_emulator) as url:
        monkeypatch.setenv("KNOUDS_BASE_URL", url)
        monkeypatch.setenv("KNOUDS_KEY", knouds_emulator.api_key)
        yield url


def _settings(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    """Merge the markers of a test, its own over its class's and its module's."""
    merged: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers("knouds"))):
        if mark.args:
            pytest.fail(f"@pytest.mark.knouds takes settings by name only, not {mark.args!r}", pytrace=False)
        merged |= mark.kwargs
    return merged


@pytest.fixture
def knouds_emulator(request: pytest.FixtureRequest) -> Emulator:
    """Return the service in memory, as `@pytest.mark.knouds(tier="pro", duration=45, faults=...)` sets it up.

    The test runs in virtual time, unless the marker says `virtual_time=False` or it asks for `knouds_url`; its runs
    take 0.05 s then, if the marker gives no `duration`.
    """
    from knouds_async.testing.plugin import emulator_with

    settings = _settings(request)
    if not is_in_virtual_time(request.node):
        settings = {"duration": 0.05, **settings}
    try:
        return emulator_with(settings)
    except (TypeError, ValueError) as error:
        message = f"@pytest.mark.knouds: {error}"
    pytest.fail(message, pytrace=False)


@pytest.fixture
def knouds_http_client(request: pytest.FixtureRequest, knouds_emulator: Emulator) -> httpx.AsyncClient:
    """Return an `httpx.AsyncClient` on the emulator, for an application that builds its own `AsyncKnouds`.

    The marker's `latency` is the one-way delay in seconds.
    """
    from knouds_async.testing.plugin import http_client_on

    is_virtual = is_in_virtual_time(request.node)
    try:
        return http_client_on(
            knouds_emulator, _settings(request), on_real_time=report_at_the_end if is_virtual else None
        )
    except (TypeError, ValueError) as error:
        message = f"@pytest.mark.knouds: {error}"
    pytest.fail(message, pytrace=False)


@pytest.fixture
def knouds(knouds_emulator: Emulator, knouds_http_client: httpx.AsyncClient) -> AsyncKnouds:
    """Return a client of the emulated service. It needs no closing: nothing of it outlives the test's event loop."""
    from knouds_async.testing.plugin import client_on

    return client_on(knouds_emulator, knouds_http_client)
