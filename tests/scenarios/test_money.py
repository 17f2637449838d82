"""Money: under every fault no run is started twice, and every run on the server is known by id or reported unknown."""

from __future__ import annotations

import asyncio
import pickle
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import pytest

from knouds_async import (
    AsyncKnouds,
    Execution,
    InvalidResponseError,
    KnoudsError,
    Limiter,
    Retries,
    SubmissionUnknownError,
    Timeouts,
)
from knouds_async.errors import ConnectionFailedError, InvalidArgumentError
from knouds_async.testing import ApiKey, Emulator, Fault, Response, faults, serve
from knouds_async.types import Target
from tests.io.proxies import proxying
from tests.scripted_client import scripted

SLUG = "my-thumbnail-pipeline"
INPUTS = {"product_name": "x"}
RUN = "POST /api/workflows/:slug/run"
POLL = "GET /api/executions/:id"
PATIENCE = Timeouts(submit=2.0, total=2.0, run=2.0, connect=0.5)


def stranger(status: int, kind: str = "text/html", body: bytes = b"<html>no</html>", **headers: str) -> Fault:
    """Make somebody in between answer in the service's place, after the run has begun."""
    return Fault("stranger", "after", lambda _: Response(status, {"content-type": kind, **headers}, body))


ON_SUBMITS: dict[str, Fault] = {
    "firewall after the run": stranger(403),
    "see other after the run": stranger(303, body=b"", location="https://login.test/"),
    "cache after the run": stranger(304, body=b""),
    "load balancer after the run": stranger(460, body=b""),
    "cdn's limit after the run": stranger(429),
    "gateway after the run": stranger(404, "application/json", b'{"message": "Not Found"}'),
    "odd status after the run": stranger(451, "application/json", b'{"error": "no"}'),
    "login page after the run": faults.login_page(after_run=True),
    "failed run": stranger(500, "application/json", b'{"error": "no GPU", "code": "EXECUTION_FAILED"}'),
    "refused": faults.refused(),
    "unreachable": faults.unreachable(),
    "reset unread": faults.reset_unread(),
    "reset before the run": faults.reset(),
    "reset after the run": faults.reset(after_run=True),
    "closed before the run": faults.closed(),
    "closed after the run": faults.closed(after_run=True),
    "stalled before the run": faults.stalled(),
    "stalled after the run": faults.stalled(after_run=True),
    "late": faults.stalled(3.0),
    "html 502 before the run": faults.bad_gateway(),
    "html 502 after the run": faults.bad_gateway(after_run=True),
    "503 of the service after the run": faults.service_error(after_run=True),
    "429 without headers": faults.rate_limited(),
    "redirect": faults.redirect(),
    "truncated": faults.truncated(),
    "dripping": faults.dripping(0.5),
    "dropped keep-alive": faults.dropped_keep_alive(),
    "invalid json": faults.invalid_json(),
    "empty": faults.empty_body(),
    "huge": faults.huge_body(33 * 2**20),
    "bomb": faults.gzip_bomb(33 * 2**20),
    "bomb in a bomb": faults.gzip_bomb(layers=2),
    "wrong types": faults.wrong_types(),
    "half headers": faults.half_headers(),
    "unknown status": faults.unknown_status(),
}
LARGE = {"huge", "bomb"}  # which take a tenth of a second each


class Reports:
    """What the callers of many submits know in the end."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.unknown: set[str] = set()
        self.refused: set[str] = set()

    async def submit(self, knouds: AsyncKnouds, job: str) -> None:
        try:
            self.known.add((await knouds.workflows.submit(SLUG, {"product_name": job})).id)
        except KnoudsError as error:
            (self.unknown if error.may_have_run else self.refused).add(job)

    def check(self, emulator: Emulator) -> None:
        """Fail unless every run is known or reported, and no job ran twice or after it was called not run."""
        emulator.assert_charged_once()
        for run in emulator.runs:
            job = run.inputs["product_name"]
            assert run.execution_id in self.known or job in self.unknown
            assert job not in self.refused


async def _all(knouds: AsyncKnouds, jobs: int) -> Reports:
    reports = Reports()
    async with anyio.create_task_group() as tasks:
        for number in range(jobs):
            tasks.start_soon(reports.submit, knouds, f"job {number}")
    return reports


@pytest.mark.parametrize("fault", ON_SUBMITS)
async def test_no_fault_makes_a_submit_run_twice(fault: str, make_client: Any) -> None:
    """In process: half of the submits meet the fault; the reports agree with the charges."""
    jobs = 10 if fault in LARGE else 40
    emulator = Emulator(tier="enterprise", duration=5.0)
    emulator.faults.add(ON_SUBMITS[fault], route=RUN, probability=0.5)
    knouds = make_client(emulator, timeouts=PATIENCE)
    reports = await _all(knouds, jobs)
    await anyio.sleep(60)
    emulator.settle(anyio.current_time())
    reports.check(emulator)
    assert len(reports.known | reports.unknown) >= jobs / 4


@pytest.mark.slow
@pytest.mark.parametrize("fault", [name for name in ON_SUBMITS if name != "429 without headers"])
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_no_fault_of_a_real_connection_makes_a_submit_run_twice(fault: str, anyio_backend: str) -> None:
    """Over sockets: a third of 30 submits meet the fault; the reports agree with the charges."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    emulator.faults.add(ON_SUBMITS[fault], route=RUN, probability=0.34)
    patience = Timeouts(submit=0.5, total=0.5, connect=0.3)
    async with serve(emulator) as url:
        async with AsyncKnouds(emulator.api_key, base_url=url, timeouts=patience) as knouds:
            reports = await _all(knouds, 30)
        await anyio.sleep(0.05)
        reports.check(emulator)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [name for name in ON_SUBMITS if name != "429 without headers"])
@pytest.mark.parametrize(("kind", "anyio_backend"), [("http", "asyncio"), ("socks5", "trio")])
async def test_no_fault_behind_a_proxy_makes_a_submit_run_twice(
    fault: str, kind: str, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where a proxy of the environment stands in between, and refuses every other connection besides."""
    pytest.importorskip("socksio")
    emulator = Emulator(tier="enterprise", duration=5.0)
    emulator.faults.add(ON_SUBMITS[fault], route=RUN, probability=0.34)
    patience = Timeouts(submit=0.5, total=0.5, connect=0.3)
    async with serve(emulator) as url, proxying(kind, urlsplit(url).port or 0, refuses_every=2) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with AsyncKnouds(
            emulator.api_key, base_url="http://knouds.test", allow_insecure_http=True, timeouts=patience
        ) as knouds:
            reports = await _all(knouds, 30)
        await anyio.sleep(0.05)
        reports.check(emulator)
    assert proxy.asked
    if kind == "socks5" and "stalled" not in fault:  # refused tunnels were certainly not sent, and so tried again
        assert reports.known


@pytest.mark.parametrize(
    "fault", ["reset after the run", "html 502 after the run", "stalled after the run", "truncated"]
)
async def test_a_synchronous_run_follows_the_same_rule(fault: str, make_client: Any) -> None:
    """A synchronous run whose answer is lost is unknown and is not run again."""
    emulator = Emulator(tier="enterprise", duration=1.0)
    emulator.faults.add(ON_SUBMITS[fault], route=RUN)
    knouds = make_client(emulator, timeouts=PATIENCE)
    with pytest.raises(SubmissionUnknownError):
        await knouds.workflows.run(SLUG, {"product_name": "x"})
    assert len(emulator.runs) == 1


HELD: dict[str, Fault] = {"cut": faults.truncated(), "out of time": faults.dripping(0.015)}


@pytest.mark.parametrize("fault", HELD)
async def test_the_id_in_half_an_answer_is_reported(fault: str, make_client: Any) -> None:
    """A submit whose answer breaks off after the id is unknown, and its run can be attached."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    emulator.faults.add(HELD[fault], route=RUN)
    knouds = make_client(emulator, timeouts=PATIENCE)
    with pytest.raises(SubmissionUnknownError) as caught:
        await knouds.workflows.submit(SLUG, {"product_name": "x"})
    assert caught.value.execution_id == emulator.runs[0].execution_id
    assert (await knouds.executions.attach(caught.value.execution_id)).images


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_the_id_in_half_an_answer_is_reported_over_sockets(anyio_backend: str) -> None:
    """The same where a real connection is closed in the middle of the answer."""
    emulator = Emulator(tier="enterprise", duration=0.0)
    emulator.faults.add(faults.truncated(), route=RUN)
    async with serve(emulator) as url, AsyncKnouds(emulator.api_key, base_url=url) as knouds:
        with pytest.raises(SubmissionUnknownError) as caught:
            await knouds.workflows.submit(SLUG, {"product_name": "x"})
        assert caught.value.execution_id == emulator.runs[0].execution_id


SUBMIT = """
import sys, anyio
from knouds_async import AsyncKnouds, Timeouts

async def main():
    async with AsyncKnouds(sys.argv[2], base_url=sys.argv[1], timeouts=Timeouts(submit=1.5)) as knouds:
        print((await knouds.workflows.submit("my-thumbnail-pipeline", {"product_name": "x"})).id)

anyio.run(main)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no process can be stopped here")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_process_that_was_stopped_reads_the_answer_that_came_meanwhile(anyio_backend: str) -> None:
    """It is stopped when its submit has left, and until the time for it is up; then it prints the id of the run."""
    emulator = Emulator(tier="enterprise", duration=0.0)
    emulator.faults.add(faults.stalled(1.0, after_run=True), route=RUN)
    async with (
        serve(emulator) as url,
        await anyio.open_process([sys.executable, "-c", SUBMIT, url, emulator.api_key]) as process,
    ):
        while not emulator.runs:  # noqa: ASYNC110  (another process makes it)
            await anyio.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        await anyio.sleep(3.0)
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        assert (await process.stdout.receive()).decode().strip() == emulator.runs[0].execution_id
        assert await process.wait() == 0


async def test_an_unknown_submit_is_found_in_the_usage_rows(make_client: Any) -> None:
    """After a lost answer the search gives the run; after a reset before the run it is certain that there is none."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    knouds = make_client(emulator)
    emulator.faults.add(faults.reset(after_run=True), route=RUN, nth=3)
    emulator.faults.add(faults.reset(), route=RUN, nth=2)
    known = await knouds.workflows.submit(SLUG, {"product_name": "x"})  # a run that must stand in the rows
    for is_there in (False, True):
        with pytest.raises(SubmissionUnknownError) as caught:
            await knouds.workflows.submit(SLUG, {"product_name": "x"})
        unknown = caught.value
        for search in ((unknown,), (unknown.target, unknown.sent_at)):
            early = await knouds.usage.find_submission(*search, tolerance=20)
            assert not early.is_certainly_none
            assert "may still come" in early.reasons[0]
        await anyio.sleep(60)
        for search in ((unknown,), (unknown.target, unknown.sent_at)):
            late = await knouds.usage.find_submission(*search, tolerance=20)
            assert late.is_certainly_none is not is_there, late
            ids = [run.request_id for run in emulator.runs if is_there and run.execution_id != known.id]
            assert [row.request_id for row in late.candidates] == ids


async def test_a_submit_is_dated_by_answers_after_it(make_client: Any) -> None:
    """The very first submit of a client is lost, and later answers date it: the search is conclusive."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    knouds = make_client(emulator)
    emulator.faults.add(faults.reset(), route=RUN, nth=1)
    with pytest.raises(SubmissionUnknownError) as caught:
        await knouds.workflows.submit(SLUG, {"product_name": "x"})
    assert caught.value.sent_after is None
    await knouds.workflows.submit(SLUG, {"product_name": "y"})
    await anyio.sleep(130)
    assert (await knouds.usage.find_submission(caught.value)).is_certainly_none
    assert (await knouds.usage.find_submission(caught.value.target, caught.value.sent_at)).is_certainly_none
    stranger = make_client(emulator)
    assert not (await stranger.usage.find_submission(caught.value)).is_certainly_none


@pytest.mark.parametrize("search", [lambda error: (error,), lambda error: (error.target, error.sent_at)])
async def test_a_synchronous_run_is_not_proven_within_its_time(make_client: Any, search: Any) -> None:
    """Its row may come with its end, which may take as long as its time-out says."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    knouds = make_client(emulator, timeouts=Timeouts(run=600.0))
    await knouds.workflows.submit(SLUG, {"product_name": "y"})
    emulator.faults.add(faults.reset(), route="POST /api/workflows/:slug/run", nth=1)
    with pytest.raises(SubmissionUnknownError) as caught:
        await knouds.workflows.run(SLUG, {"product_name": "x"})
    await anyio.sleep(590)
    assert "may still come" in (await knouds.usage.find_submission(*search(caught.value))).reasons[0]
    await anyio.sleep(140)
    assert (await knouds.usage.find_submission(*search(caught.value))).is_certainly_none


async def test_the_listing_of_another_account_proves_nothing(make_client: Any) -> None:
    """Another account's client knows runs of its own, and its listing shows them: of this submit that says nothing."""
    other = ApiKey("knouds_live_other_0123456789", user="u_other")
    emulator = Emulator(tier="enterprise", duration=5.0, keys=[other])
    knouds, stranger = make_client(emulator), make_client(emulator, api_key=other.text)
    template, inputs = "portrait-starter", {"photo": "https://pictures.example/a.png"}
    known, foreign = await knouds.workflows.submit(template, inputs), await stranger.workflows.submit(template, inputs)
    emulator.faults.add(faults.reset(after_run=True), route=RUN, nth=1)
    with pytest.raises(SubmissionUnknownError) as caught:
        await knouds.workflows.submit(template, inputs)
    await anyio.sleep(200)
    lost = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    for search in ((lost,), (lost.target, lost.sent_at)):
        assert (await knouds.usage.find_submission(*search)).candidates
        assert not (await stranger.usage.find_submission(*search)).is_certainly_none
    assert foreign.id != known.id


async def test_another_client_of_the_account_proves_it_by_the_error_and_a_run_that_is_named(make_client: Any) -> None:
    """After a new start the pickled error says when it left; its bare time may be of a clock that was set since."""
    emulator = Emulator(tier="enterprise", duration=5.0)
    knouds, later = make_client(emulator), make_client(emulator)
    known = await knouds.workflows.submit(SLUG, {"product_name": "x"})
    emulator.faults.add(faults.reset(), route=RUN, nth=1)
    with pytest.raises(SubmissionUnknownError) as caught:
        await knouds.workflows.submit(SLUG, {"product_name": "x"})
    await anyio.sleep(200)
    lost, named = pickle.loads(pickle.dumps(caught.value)), [known.state.request_id]  # noqa: S301
    assert (await later.usage.find_submission(lost, exclude=named)).is_certainly_none
    bare = await later.usage.find_submission(lost.target, lost.sent_at, exclude=named)
    assert not bare.is_certainly_none
    assert "give the error itself" in bare.reasons[0]


WRONG_SEARCHES: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "no time": (("workflows/a",), {}, "sent_at is missing"),
    "no time to a target": ((Target("workflows", "a"),), {}, "sent_at is missing"),
    "another error": ((ConnectionFailedError("x"),), {}, "must be a SubmissionUnknownError"),
    "one id": (("workflows/a", 1.0), {"exclude": "kie_1"}, "must be a collection of request ids"),
    "no ids": (("workflows/a", 1.0), {"exclude": [1]}, "must be a collection of request ids"),
    "a time without a zone": (("workflows/a", datetime(2026, 5, 8)), {}, "time zone"),  # noqa: DTZ001
    "a tolerance below nothing": (("workflows/a", 1.0), {"tolerance": -1}, "tolerance=-1"),
}


@pytest.mark.parametrize("wrong", WRONG_SEARCHES.values(), ids=WRONG_SEARCHES)
async def test_a_search_that_asks_for_nothing_is_refused(make_client: Any, wrong: Any) -> None:
    """An argument that is missing or wrong is named, and is not taken for a submit of 1970 that has no rows."""
    given, options, words = wrong
    with pytest.raises(InvalidArgumentError, match=words):
        await make_client(Emulator()).usage.find_submission(*given, **options)


LOSSES: dict[str, Callable[[], Fault]] = {
    "resets": faults.reset,
    "html": faults.bad_gateway,
    "rubbish": faults.invalid_json,
    "empty": faults.empty_body,
    "wrong types": faults.wrong_types,
    "truncated": faults.truncated,
    "errors": faults.service_error,
    "stalls": faults.stalled,
    "unreachable": faults.unreachable,
    "429": faults.rate_limited,
    "bombs": lambda: faults.gzip_bomb(33 * 2**20),
}


@pytest.mark.parametrize("loss", LOSSES)
async def test_waits_survive_a_third_of_the_polls_failing(loss: str, make_client: Any) -> None:
    """With 30 % of the polls failing in any way, every wait ends, and ends right."""
    emulator = Emulator(tier="enterprise", duration=30.0, failure_rate=0.2)
    emulator.faults.add(LOSSES[loss](), route=POLL, probability=0.3)
    knouds = make_client(emulator, timeouts=PATIENCE)
    ends: list[tuple[str, str]] = []

    async def one(number: int) -> None:
        execution: Execution = await knouds.workflows.submit(SLUG, {"product_name": f"job {number}"})
        ends.append((execution.id, (await execution.wait()).status))

    async with anyio.create_task_group() as tasks:
        for number in range(4 if loss == "bombs" else 20):
            tasks.start_soon(one, number)
    assert dict(ends) == {run.execution_id: run.status for run in emulator.runs}


async def test_a_429_is_never_an_attempt(make_client: Any) -> None:
    """A submit that is refused a dozen times in a row still runs, once, however few attempts are allowed."""
    emulator = Emulator(tier="pro", duration=1.0)
    emulator.faults.add(route=RUN, script=[faults.rate_limited()] * 12 + [None])
    knouds = make_client(emulator, retries=Retries(attempts=1))
    await knouds.workflows.submit(SLUG, {"product_name": "x"})
    assert len(emulator.runs) == 1


async def test_a_create_is_not_repeated_and_a_delete_is(make_client: Any) -> None:
    """A lost create could make a second workflow, so it is an error; a lost delete is repeated, and 404 is done."""
    emulator = Emulator(tier="enterprise")
    knouds = make_client(emulator)
    emulator.faults.add(faults.reset(after_run=True), route="POST /api/workflows", nth=1)
    with pytest.raises(KnoudsError, match="no answer"):
        await knouds.workflows.create("Poster")
    assert [row.slug for row in await knouds.workflows.list()].count("poster") == 1
    emulator.faults.add(faults.reset(after_run=True), route="DELETE /api/workflows/:slug", nth=1)
    await knouds.workflows.delete("poster")
    assert "poster" not in [row.slug for row in await knouds.workflows.list()]


class BrokenLimiter(Limiter):
    """A limiter that cannot record an answer."""

    def on_response(self, route: str, permit: object, reply: object, date: float | None) -> None:
        """Fail as a full disk would make it."""
        raise OSError("disk full")


async def test_a_limiter_that_fails_costs_no_id(make_client: Any, emulator: Emulator) -> None:
    """The id of a run is returned though the limiter cannot record the answer."""
    knouds = make_client(emulator, limiter=BrokenLimiter("enterprise"))
    execution = await knouds.workflows.submit(SLUG, INPUTS)
    assert execution.id == emulator.runs[0].execution_id


async def test_a_cancelled_scope_pays_for_nothing_more(make_client: Any, emulator: Emulator) -> None:
    """A loop of submits in a scope ends with the submit that was under way when the scope was cancelled."""
    knouds = make_client(emulator, latency=0.3)
    with anyio.move_on_after(1):
        for _ in range(50):
            await knouds.workflows.submit(SLUG, INPUTS)
    assert len(emulator.runs) <= 2
    with anyio.CancelScope() as scope:
        scope.cancel()
        await knouds.workflows.submit(SLUG, INPUTS)
    assert scope.cancelled_caught
    assert len(emulator.runs) <= 2


@pytest.mark.parametrize(
    "body", [{}, {"rows": None, "total": 3}, {"rows": 7}, {"data": []}, {"error": "maintenance"}], ids=str
)
async def test_an_unreadable_usage_answer_is_not_certainty(body: Any) -> None:
    """What cannot be read never says that a run did not begin."""
    knouds = scripted(lambda request: httpx.Response(200, json=body), retries=Retries(attempts=1))
    with pytest.raises(InvalidResponseError):
        await knouds.usage.find_submission("workflows/a", datetime(2020, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("body", [{"rows": [7], "total": 1}, {"rows": [], "total": 3}], ids=str)
async def test_unread_rows_are_not_certainty(body: Any) -> None:
    """Rows that cannot be read, or that are promised and do not come, leave it open."""
    knouds = scripted(lambda request: httpx.Response(200, json=body))
    found = await knouds.usage.find_submission("workflows/a", datetime(2020, 1, 1, tzinfo=UTC))
    assert not found.is_certainly_none


@pytest.mark.parametrize("skew", [-180.0, 180.0])
async def test_a_wrong_local_clock_hides_no_run(make_client: Any, skew: float) -> None:
    """The very first submit is lost, the local clock is minutes off: the run is found all the same."""
    emulator = Emulator(tier="enterprise", duration=5.0, epoch=datetime.now(UTC).timestamp() + skew)
    emulator.faults.add(faults.reset(after_run=True), route=RUN, nth=1)
    knouds = make_client(emulator)
    with pytest.raises(SubmissionUnknownError) as caught:
        await knouds.workflows.submit(SLUG, INPUTS)
    found = await knouds.usage.find_submission(caught.value.target, caught.value.sent_at, tolerance=20)
    assert [row.request_id for row in found.candidates] == [run.request_id for run in emulator.runs]


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_submit_cancelled_from_elsewhere_is_unknown() -> None:
    """A transport that raises CancelledError of its own does not make a paid submit vanish in a task group."""

    def answer(request: httpx.Request) -> httpx.Response:
        raise asyncio.CancelledError

    with pytest.raises(SubmissionUnknownError):
        await scripted(answer).workflows.submit("a", {})
