"""Suites as users write them, each run by a pytest of its own, with their plugins, settings and warnings as errors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
USERS = Path(__file__).parent / "users"
SUITES = [*sorted(USERS.glob("with_*.py")), *sorted(USERS.glob("plugin_*"))]
LEFT_OUT = {"plugin_anyio": ["no:asyncio"], "plugin_trio": ["no:asyncio"]}


def run_pytest(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run pytest in a process of its own."""
    others = ("schemathesis", "xdist", "respx", "pytest_httpx", "hypothesispytest")  # half a second to import
    left_out = [f"-pno:{plugin}" for plugin in ("cacheprovider", *others)]
    command = [sys.executable, "-m", "pytest", "-q", *left_out, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.stem)
def test_a_users_suite_passes(suite: Path) -> None:
    """A suite of the kind users write passes with their plugins and with warnings as errors."""
    settings = (suite if suite.is_dir() else suite.parent) / "pytest.ini"
    left_out = [option for plugin in LEFT_OUT.get(suite.stem, []) for option in ("-p", plugin)]
    done = run_pytest(*left_out, "-c", settings, suite)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_five_lines_find_a_planted_double_payment() -> None:
    """An application that submits again after a lost answer fails its test, and the message shows the runs."""
    done = run_pytest("-c", USERS / "planted_bug" / "pytest.ini", USERS / "planted_bug")
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "FAILED" in done.stdout
    assert "1 job(s) were run and charged more than once" in done.stdout
    assert """workflow my-thumbnail-pipeline {"product_name": "lamp"}""" in done.stdout
    assert len(re.findall(r"thumbnail-pipeline started at \d+\.\d+ s, completed, (?:not )?polled", done.stdout)) >= 2
