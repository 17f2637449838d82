"""Print executions: a result as addresses and text, a state as pairs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from knouds_async import ExecutionState, RunResult
from knouds_async.cli import output
from knouds_async.cli.words import one_line


def print_state(state: ExecutionState) -> None:
    """Print the state of an execution, and its result if there is one."""
    error = state.error
    output.print_pairs(
        ("execution", state.execution_id),
        ("status", state.status),
        ("runs", state.workflow_slug or state.model_ids),
        ("error", " ".join(word for word in (error.code, error.message) if word) if error else None),
        ("credits", state.cost),
        ("seconds", None if state.ms is None else round(state.ms / 1000, 1)),
        ("started", state.created_at),
        ("ended", state.completed_at),
    )
    if state.result is not None:
        print_run_result(state.result)


def print_run_result(result: Any, *, files: Iterable[Path] | None = None) -> None:
    """Print a result: its text, then the address of each file on its own line; any other JSON as it is.

    `files`: where they were saved, printed instead of their addresses.
    """
    run = RunResult(result)
    files_of_run = (*run.images, *run.videos, *run.audios)
    if run.text is None and not files_of_run:
        output.print_json(result)
        return
    if run.text is not None:
        output.print_result(run.text)
    for location in files if files is not None else (file.url for file in files_of_run):
        output.print_result(one_line(str(location)))


def summarize_state(state: ExecutionState) -> str:
    """Return the status of a finished run, its duration and its cost."""
    duration = f" in {state.ms / 1000:.1f} s" if state.ms is not None else ""
    cost = f", {output.format_cell(state.cost)} credits" if state.cost is not None else ""
    return f"{state.status}{duration}{cost}"
