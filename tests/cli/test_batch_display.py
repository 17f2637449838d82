"""What is said of a batch at its end: its report."""

from knouds_async import Job, KnoudsError, NotRun, NotRunReason, Progress, Unknown
from knouds_async._batch.progress import Display
from knouds_async._cli.batch_display import BatchReport, summarize

JOB = Job("a", {"x": 1})


def test_what_can_be_run_later_says_how_to_continue() -> None:
    """A batch that was ended by a pause, or by somebody in between, is not over."""
    for reason in NotRunReason:
        report = BatchReport()
        report.record(NotRun(job=JOB, reason=reason, error=KnoudsError("no")))
        assert report.is_deferred is (reason in ("unreachable", "intercepted", "rate_limited"))


def test_jobs_that_wait_for_the_next_run_are_not_done() -> None:
    """After Ctrl-C the jobs that were read and not submitted count as left, in the progress and at the end."""
    report = BatchReport()
    for reason in (NotRunReason.STOPPED, NotRunReason.STOPPED, NotRunReason.INVALID):
        report.record(NotRun(job=JOB, reason=reason, error=KnoudsError("no")))
    now = report.excluding_stopped(Progress(elapsed=9.0, total=10, completed=4, not_run=3))
    assert summarize(now) == "5 of 10 jobs done: 4 completed, 1 not run; 0 credits spent; 0:09"
    assert Display(lambda: now).lines()[0] == "5 of 10 done, 0 in flight"
    assert [line.split(":")[0] for line in report.problems("l")] == ["1 job not run (invalid)"]


def test_jobs_of_another_batch_are_not_unknown() -> None:
    """After Ctrl-C the jobs that another batch has in flight are left, not unknown; one that is unknown still is."""
    report, error = BatchReport(is_interrupted=True), KnoudsError("another batch has it")
    report.record(Unknown(job=JOB, error=error, is_elsewhere=True))
    now = Progress(elapsed=9.0, total=2, completed=1, elsewhere=1)
    assert summarize(now) == "1 of 2 jobs done: 1 completed, 1 in flight elsewhere; 0 credits spent; 0:09"
    assert Display(lambda: now).lines()[0] == "1 of 2 done, 0 in flight"
    assert not list(report.problems("l"))
    assert (report.exit_code(now), report.is_complete(now)) == (130, False)
    report.record(Unknown(job=JOB, error=error))
    assert [line.split(":")[0] for line in report.problems("l")] == ["1 run unknown"]
    assert report.exit_code(now) == 5
