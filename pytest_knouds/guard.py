"""Fails a test that reaches for the real service: a run there costs money, and no test should pay by mistake.

Nothing is patched. Python calls an audit hook for each name lookup, whichever library makes it; the lookup of the
service's name is refused, and the test fails at its end even if it swallows the exception. uvloop resolves names
without audit events, so our own connections raise one: there only those are seen. A name behind an HTTP proxy is
resolved by the proxy, and a child process has its own hooks: neither is seen.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Final

import pytest

__all__ = ["RealServiceRefusedError", "refuse_the_real_service", "report_at_the_end"]

_HOST: Final = "knouds.ai"
_EVENTS: Final = ("socket.getaddrinfo", "knouds_async.connect")
_MESSAGE: Final = (
    f"the test reached for the real service at {_HOST}, where runs are paid for, and was stopped before anything was "
    "sent. Use the fixture `knouds`, or give AsyncKnouds the fixture `knouds_http_client` or a base_url; "
    "@pytest.mark.knouds_real or --knouds-real if the real service is meant"
)


class RealServiceRefusedError(Exception):
    """The name of the real service was looked up in a test."""


class _Guard:
    """Whether a test is guarded, and its violations; one per process, as audit hooks are."""

    is_active = False
    is_installed = False
    violations: list[str] = []  # noqa: RUF012


def refuse_the_real_service() -> None:
    """Install the hook, once per process: an audit hook cannot be removed, only be idle."""
    if not _Guard.is_installed:
        _Guard.is_installed = True
        sys.addaudithook(_hook)


def report_at_the_end(message: str) -> None:
    """Fail the running test with a message, even if it swallows the exception."""
    if message not in _Guard.violations:
        _Guard.violations.append(message)


def _hook(event: str, args: tuple[object, ...]) -> None:
    if event in _EVENTS and _Guard.is_active and _is_real(args[0]):
        report_at_the_end(_MESSAGE)
        raise RealServiceRefusedError(_MESSAGE)


def _is_real(host: object) -> bool:
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    return isinstance(name, str) and f".{name.lower().rstrip('.')}".endswith(f".{_HOST}")


def _guarded(item: pytest.Item) -> Generator[None, object, object]:
    """Run one phase of a test under guard."""
    _Guard.violations.clear()
    _Guard.is_active = not (item.config.getoption("--knouds-real") or item.get_closest_marker("knouds_real"))
    try:
        result = yield
    except Exception as error:
        if _Guard.violations:
            raise pytest.fail.Exception("; ".join(_Guard.violations), pytrace=False) from error
        raise
    finally:
        _Guard.is_active = False
    if _Guard.violations:
        pytest.fail("; ".join(_Guard.violations), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Guard the fixtures."""
    return (yield from _guarded(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Guard the test."""
    return (yield from _guarded(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Guard what comes after it."""
    return (yield from _guarded(item))
