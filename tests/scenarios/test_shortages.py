"""A process that runs short of something while it works: what is paid for is on record all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import anyio
import pytest

from knouds_async import SQLiteLedger
from knouds_async.testing import Emulator, serve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits"),
]
JOBS = 200


@pytest.fixture
def anyio_backend() -> str:
    """Run the service in real time, for the process has no other."""
    return "asyncio"


@pytest.mark.parametrize("descriptors", [24, 40, 60])
async def test_a_batch_that_may_open_few_files_loses_no_run(descriptors: int, tmp_path: Path) -> None:
    """Where connections could take every file descriptor, all jobs complete, and the ledger has the id of each run."""
    lines = (json.dumps({"key": f"j{n}", "inputs": {"product_name": f"j{n}"}}) for n in range(JOBS))
    await anyio.Path(tmp_path / "jobs.jsonl").write_text("\n".join(lines))
    emulator = Emulator(tier="enterprise", duration=1.0)
    async with serve(emulator) as url:
        command = f"ulimit -n {descriptors}; exec {sys.executable} -m knouds_async batch my-thumbnail-pipeline "
        done = await anyio.run_process(
            ["sh", "-c", f"{command} jobs.jsonl --out out.jsonl --expected 1"],
            cwd=tmp_path,
            env={**os.environ, "KNOUDS_KEY": emulator.api_key, "KNOUDS_BASE_URL": url},
            stdin=subprocess.DEVNULL,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    async with SQLiteLedger(tmp_path / "jobs.jsonl.ledger") as ledger:
        assert (await ledger.counts()).completed == JOBS
        for run in emulator.runs:
            entry = await ledger.find(str(run.inputs["product_name"]))
            assert entry is not None
            assert entry.execution_id == run.execution_id
    assert max(Counter(str(run.inputs["product_name"]) for run in emulator.runs).values()) == 1
