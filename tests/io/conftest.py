"""Leaks of the tests on real sockets, which say REAL_TIME."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect what such a test has dropped while it is still the one to blame for a ResourceWarning."""
    yield
    if getattr(request.module, "REAL_TIME", False):
        gc.collect()
