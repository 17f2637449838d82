"""Leaks of the tests on real sockets, which say REAL_TIME; and an environment that names no proxy."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect what such a test has dropped while it is still the one to blame for a ResourceWarning."""
    yield
    if getattr(request.module, "REAL_TIME", False):
        gc.collect()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from an environment that names no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
