"""Print the report at the end of a batch: a summary, the problems, and how to resume."""

from __future__ import annotations

import shlex

from knouds_async.cli import output
from knouds_async.cli.batch.account import summarize, to_record
from knouds_async.cli.batch.state import BatchRun
from knouds_async.cli.words import format_error


def print_report(run: BatchRun) -> int:
    """Print the report and return the exit code."""
    options, report = run.options, run.report
    now = report.excluding_stopped(run.progress)
    code = report.exit_code(now, run.failure)
    if options.as_json and options.out is not None:
        output.print_json(to_record(now, options.ledger, options.out, code))
        output.flush_stdout()  # results before messages at a terminal
    output.print_info(summarize(now))
    for problem in report.problems(shlex.quote(str(options.ledger))):
        output.print_error(problem)
    if run.failure is not None:
        output.print_error(f"stopped: {format_error(run.failure)}")
    if run.failure is not None or report.is_deferred or (report.is_interrupted and not report.is_complete(now)):
        output.print_error(f"Resume with: {options.resume_command}")
    return code
