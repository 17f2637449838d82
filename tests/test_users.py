"""Suites as users write them, each run by a pytest of its own: anyio's plugin, which runs ours, must not take part."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SUITES = sorted((Path(__file__).parent / "users").glob("with_*.py"))


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.stem)
def test_a_users_suite_passes(suite: Path) -> None:
    """A suite of the kind users write passes with their plugins and with warnings as errors."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:anyio", "-c", str(suite.parent / "pytest.ini")]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "pytest", *options, str(suite)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
