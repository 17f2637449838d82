"""The pytest plugin: what it refuses, its messages, other loops than asyncio's, and that it is absent for others.

How tests pass with it is in `tests/users`; here each suite is run by a pytest of its own and is meant to fail.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from knouds_async.testing import faults
from knouds_async.testing.plugin import emulator_with
from pytest_knouds.guard import _is_real

SETTINGS = """
[pytest]
addopts = --strict-markers --strict-config
filterwarnings = error
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
"""

REACHING = """
import httpx
import pytest
from knouds_async import AsyncKnouds, ConnectionFailedError, Retries


def client():
    return AsyncKnouds("knouds_live_test", retries=Retries(attempts=1))


async def test_of_a_client_that_nobody_configured():
    await client().workflows.submit("daily-picture", {})


async def test_that_swallows_the_refusal():
    try:
        await client().health()
    except Exception:
        pass


def test_with_another_library():
    with httpx.Client() as http:
        http.get("https://api.KNOUDS.ai./")


@pytest.fixture
async def account():
    return await client().whoami()


async def test_with_a_fixture(account):
    pass


@pytest.mark.knouds_real
async def test_that_means_it(monkeypatch):
    import socket

    def nothing(*_, **__):
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    with pytest.raises(ConnectionFailedError):
        await client().health()
"""

IMPOSSIBLE = """
import asyncio
import pytest


@pytest.mark.knouds(teir="pro")
def test_misspelt(knouds): ...


@pytest.mark.knouds(moon=3)
def test_unheard_of(knouds): ...


@pytest.mark.knouds("pro")
def test_positional(knouds): ...


@pytest.mark.knouds(tier="enterprise", limit=4)
def test_together(knouds): ...


@pytest.mark.knouds(faults="resett on submit")
def test_fault(knouds): ...


@pytest.mark.knouds(latency=-1)
def test_latency(knouds): ...


def test_real_time(knouds):
    asyncio.run(knouds.health())
"""


def outcomes(folder: Path, suite: str, *options: str) -> tuple[dict[str, str], str]:
    """Run a suite in a folder; give how each test ended, and all that was printed."""
    (folder / "pytest.ini").write_text(SETTINGS, encoding="utf-8")
    (folder / "test_suite.py").write_text(suite, encoding="utf-8")
    others = ("schemathesis", "xdist", "respx", "pytest_httpx", "hypothesispytest")  # half a second to import
    left_out = [f"-pno:{plugin}" for plugin in ("cacheprovider", *others)]
    command = [sys.executable, "-m", "pytest", "-rA", "--tb=short", *left_out, *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    found = re.findall(r"^(PASSED|FAILED|ERROR) test_suite\.py::(\w+)", done.stdout, re.MULTILINE)
    return {name: how for how, name in found}, done.stdout + done.stderr


@pytest.mark.slow
def test_reaching_for_the_real_service_fails(tmp_path: Path) -> None:
    """Whichever library resolves its name, and however the test handles that, it fails and nothing is sent."""
    ended, printed = outcomes(tmp_path, REACHING)
    assert ended == {
        "test_of_a_client_that_nobody_configured": "FAILED",
        "test_that_swallows_the_refusal": "FAILED",
        "test_with_another_library": "FAILED",
        "test_with_a_fixture": "ERROR",
        "test_that_means_it": "PASSED",
    }
    assert printed.count("the test reached for the real service at knouds.ai, where runs are paid for") >= 4


@pytest.mark.parametrize(
    ("host", "is_real"),
    [
        ("knouds.ai", True),
        ("api.Knouds.AI.", True),
        (b"knouds.ai", True),
        ("knouds.ai.example", False),
        ("notknouds.ai", False),
        ("knouds-media.s3.amazonaws.com", False),
        (None, False),
    ],
)
def test_the_guard_knows_the_name(host: object, *, is_real: bool) -> None:
    """The service's host and those below it are real, others are not."""
    assert _is_real(host) is is_real


@pytest.mark.slow
def test_impossible_settings_are_told(tmp_path: Path) -> None:
    """A marker that cannot be fails its test in one line that says why."""
    ended, printed = outcomes(tmp_path, IMPOSSIBLE)
    assert set(ended.values()) == {"ERROR", "FAILED"}
    for told in (
        "there is no setting 'teir'; did you mean 'tier'?",
        "there is no setting 'moon'; there are: api_key, ",
        "takes settings by name only, not ('pro',)",
        "limit has no effect: 'enterprise'",
        "no fault is called 'resett' (did you mean reset?)",
        "latency must be finite seconds",
        "the test was to run in virtual time, but its clock is that of asyncio.",
    ):
        assert told in printed
    assert "During handling" not in printed


@pytest.mark.slow
def test_the_markers_are_registered(tmp_path: Path) -> None:
    """`pytest --markers` tells of them."""
    printed = outcomes(tmp_path, "", "--markers")[1]
    assert "@pytest.mark.knouds(**settings)" in printed
    assert "@pytest.mark.knouds_real" in printed


@pytest.mark.slow
def test_a_project_without_it_is_left_alone(tmp_path: Path) -> None:
    """Where no test asks for it, nothing of the library is imported and nothing is said."""
    suite = """
import sys


def test_nothing():
    loaded = {name.partition(".")[0] for name in sys.modules}
    assert not loaded & {"knouds_async", "httpx", "httpcore", "cattrs"}
"""
    ended, printed = outcomes(tmp_path, suite, "-p", "no:respx", "-p", "no:pytest_httpx", "--no-header")
    assert ended == {"test_nothing": "PASSED"}, printed
    assert "knouds" not in printed.replace(str(tmp_path), "")


@pytest.mark.slow
def test_it_imports_pytest_and_the_standard_library_only() -> None:
    """What pytest loads in every project of an environment costs no more than it must."""
    code = """
import json, sys, pytest
before = set(sys.modules)
import pytest_knouds
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert set(json.loads(done.stdout)) - sys.stdlib_module_names == {"pytest_knouds"}


@pytest.mark.parametrize(
    ("given", "struck"),
    [
        (faults.not_found(), ["not_found", "not_found"]),
        ("bad_gateway on GET /api/health nth=2", ["bad_gateway"]),
        ([{"fault": faults.not_found(), "nth": 1}, "service_error status=500 on GET /api/health"], 2),
        ((), []),
    ],
)
def test_faults_of_the_marker(ask: Any, given: Any, struck: Any) -> None:
    """A fault, words, arguments, or a list of them: all are attached."""
    emulator = emulator_with({"faults": given})
    statuses = [ask(emulator)("GET /api/health").status for _ in range(2)]
    assert sum(emulator.faults.struck.values()) == (struck if isinstance(struck, int) else len(struck))
    assert sum(status != 200 for status in statuses) == sum(emulator.faults.struck.values())


def test_a_fault_of_another_kind_is_refused() -> None:
    """What is neither a fault nor words nor arguments is a TypeError that shows it."""
    with pytest.raises(TypeError, match="faults: 3 must be a Fault"):
        emulator_with({"faults": [3]})


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


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed")
def test_the_guard_holds_under_uvloop(tmp_path: Path) -> None:
    """uvloop does not reveal which name it resolves; the client itself says where it connects."""
    ended, printed = outcomes(tmp_path, UNDER_UVLOOP)
    assert ended == {"test_reaching": "FAILED", "test_elsewhere": "PASSED"}
    assert "the test reached for the real service at knouds.ai" in printed


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["session", "module"])
@pytest.mark.parametrize("is_default", [True, False])
def test_a_loop_that_others_share_is_left_to_them(tmp_path: Path, scope: str, is_default: bool) -> None:
    """In a wider loop scope no virtual loop replaces the shared one; the error says what to write instead."""
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
