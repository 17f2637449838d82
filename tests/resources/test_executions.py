"""Executions by their ids."""

from __future__ import annotations

from typing import Any

import pytest

from knouds_async import AsyncKnouds, InvalidArgumentError
from knouds_async.testing import Emulator


@pytest.mark.parametrize("target", [5, "my-slug", "folders/x", b"workflows/x"], ids=repr)
def test_a_handle_is_of_a_target(emulator: Emulator, target: Any) -> None:
    """What is no target is refused when a run is attached, not when its waiting fails."""
    with pytest.raises(InvalidArgumentError, match="target"):
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test").executions.attach("abc", target)
