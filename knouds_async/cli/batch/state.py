"""The state of a batch, shared by the parts of the command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from knouds_async.batch.progress import Progress
from knouds_async.cli.batch.account import BatchReport
from knouds_async.cli.batch.order import BatchOptions
from knouds_async.cli.batch.results import ResultsFile
from knouds_async.cli.batch.sinks import StdoutResults
from knouds_async.cli.batch.source import JobSource


@attrs.define
class BatchRun:
    """The state of a batch."""

    options: BatchOptions
    source: JobSource
    total: int | None
    sink: ResultsFile | StdoutResults
    failed_before: dict[str, Mapping[str, Any]] = attrs.Factory(dict)
    report: BatchReport = attrs.Factory(BatchReport)
    progress: Progress = attrs.Factory(Progress)
    failure: Exception | None = None
