"""Scenarios: in virtual time, but for those on a ledger's file; on trio only with the slow tests."""

from typing import Any

import pytest

from knouds_async.testing import virtual_backend
from tests.batch.conftest import closed_databases, ledger, path, quick

__all__ = ["closed_databases", "ledger", "path", "quick"]


@pytest.fixture(params=["asyncio", pytest.param("trio", marks=pytest.mark.slow)])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run the test on both backends, on trio only with the slow tests: a scenario takes long.

    A ledger's thread is invisible to a clock that jumps: a module that has one says REAL_TIME.
    """
    if getattr(request.module, "REAL_TIME", False):
        return request.param, {}
    return virtual_backend(request.param)
