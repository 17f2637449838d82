"""Scenarios: in virtual time, by default on asyncio alone; with the slow tests they run on trio, too."""

from typing import Any

import pytest

from knouds_async.testing import virtual_backend


@pytest.fixture(params=["asyncio", pytest.param("trio", marks=pytest.mark.slow)])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run the test on both backends, on trio only with the slow tests: a scenario takes long."""
    return virtual_backend(request.param)
