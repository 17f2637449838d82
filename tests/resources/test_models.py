"""Models: which can be submitted, and for whom."""

from __future__ import annotations

from typing import Any

import pytest

from knouds_async import AsyncKnouds, AsyncNotSupportedError, ModelTierRequiredError
from knouds_async.testing import Emulator


async def test_a_model_is_submitted(knouds: AsyncKnouds) -> None:
    """A model whose provider can be polled is submitted; others say to run them synchronously."""
    assert (await (await knouds.models.submit("gpt-image-2", {"prompt": "a cloud"}))).images
    with pytest.raises(AsyncNotSupportedError, match=r"\.run"):
        await knouds.models.submit("claude-sonnet", {"prompt": "hello"})


async def test_models_need_a_tier(make_client: Any) -> None:
    """A refusal for the tier is typed and says what to do."""
    knouds = make_client(Emulator(tier="pro"))
    with pytest.raises(ModelTierRequiredError, match="upgrade"):
        await knouds.models.submit("gpt-image-2", {"prompt": "a cloud"})
