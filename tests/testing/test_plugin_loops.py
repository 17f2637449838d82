"""The pytest plugin beside other loops than asyncio's own: uvloop, and one that lasts longer than a test."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.testing.test_plugin import outcomes

UNDER_UVLOOP = """
import asyncio

import uvloop

from knouds_async import AsyncKnouds, Retries

KEY = "knouds_live_test"


def test_reaching():
    async def reach():
        async with AsyncKnouds(KEY, retries=Retries(attempts=1)) as knouds:
            await knouds.health()

    try:
        uvloop.run(reach())
    except Exception:
        pass


def test_elsewhere():
    async def reach():
        async with AsyncKnouds(KEY, base_url="http://127.0.0.1:1", retries=Retries(attempts=1)) as knouds:
            await knouds.health()

    try:
        uvloop.run(reach())
    except Exception:
        pass
"""

SHARED = """
import asyncio

import pytest
import pytest_asyncio


@pytest_asyncio.fixture(loop_scope="{scope}", scope="{scope}")
async def shared():
    loop, made = asyncio.get_running_loop(), []
    yield loop, made
    assert asyncio.get_running_loop() is loop


@pytest.mark.asyncio(loop_scope="{scope}")
async def test_before(shared):
    shared[1].append(1)
    assert shared[0] is asyncio.get_running_loop()


{mark}
async def test_in_virtual_time(knouds):
    await asyncio.sleep(0)
    await knouds.health()


{mark}
@pytest.mark.knouds(virtual_time=False)
async def test_in_real_time(knouds):
    await knouds.health()


@pytest.mark.asyncio(loop_scope="function")
async def test_in_a_loop_of_its_own(knouds):
    await asyncio.sleep(3600)
    await knouds.health()


@pytest.mark.asyncio(loop_scope="{scope}")
async def test_after(shared):
    assert shared[1] == [1]
    assert shared[0] is asyncio.get_running_loop()
"""


@pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed")
def test_the_guard_holds_under_uvloop(tmp_path: Path) -> None:
    """uvloop tells nobody which name it looks up; the client itself says where it connects."""
    ended, printed = outcomes(tmp_path, UNDER_UVLOOP)
    assert ended == {"test_reaching": "FAILED", "test_elsewhere": "PASSED"}
    assert "the test reached for the real service at knouds.ai" in printed


@pytest.mark.parametrize("scope", ["session", "module"])
@pytest.mark.parametrize("is_default", [True, False])
def test_a_loop_that_others_share_is_left_to_them(tmp_path: Path, scope: str, is_default: bool) -> None:
    """In a wider loop scope no virtual loop takes the others' away; the test is told what to say instead."""
    mark = "@pytest.mark.asyncio" if is_default else f'@pytest.mark.asyncio(loop_scope="{scope}")'
    options = ("-o", f"asyncio_default_test_loop_scope={scope}") if is_default else ()
    ended, printed = outcomes(tmp_path, SHARED.format(scope=scope, mark=mark), *options)
    assert ended == {
        "test_before": "PASSED",
        "test_in_virtual_time": "FAILED",
        "test_in_real_time": "PASSED",
        "test_in_a_loop_of_its_own": "PASSED",
        "test_after": "PASSED",
    }, printed
    assert "virtual_time=False" in printed
