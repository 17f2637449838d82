"""Runs: how long they last, how they finish, what a cancel does to them, and their rows in the usage listing."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async.testing import EmulatedWorkflow, Emulator, Lognormal, Request, Response


def _runs(emulator: Emulator, ask: Any, number: int) -> None:
    for _ in range(number):
        ask(emulator).submit()


def test_durations_can_be_a_number_a_law_or_a_callable(ask: Any) -> None:
    """A run lasts as long as the setting says: exactly, by a distribution, or by a callable; per target if set."""
    emulator = Emulator(
        tier="enterprise", duration=7, durations={"jingle": lambda dice: dice.uniform(1, 2), "product-video": 90}
    )
    ask(emulator).submit("workflows/daily-picture")
    ask(emulator).submit("workflows/jingle")
    ask(emulator).submit("workflows/product-video", {"prompt": "x"})
    lasted = [run.ends - run.started for run in emulator.runs]
    assert (lasted[0], lasted[2]) == (7, 90)
    assert 1 < lasted[1] < 2


def test_the_default_durations_are_lognormal(ask: Any) -> None:
    """By default half the runs last longer than 45 s, spread as in the simulations."""
    emulator = Emulator(tier="enterprise")
    _runs(emulator, ask, 400)
    lasted = [run.ends - run.started for run in emulator.runs]
    assert 42 < statistics.median(lasted) < 48
    assert min(lasted) > 10
    assert Lognormal(45.0, 0.35) == emulator.duration


def test_a_law_that_gives_no_duration_is_an_error(ask: Any) -> None:
    """A callable that gives a negative number is the test author's mistake, said at once."""
    emulator = Emulator(duration=lambda _: -1.0)
    with pytest.raises(ValueError, match="must be a finite number of seconds"):
        ask(emulator).submit()


def test_the_same_seed_gives_the_same_world(ask: Any) -> None:
    """Equal settings and requests give equal answers, ids included; another seed gives others."""

    def answers(seed: int) -> list[bytes]:
        asker = ask(Emulator(seed=seed, failure_rate=0.5, tier="enterprise"))
        ids = [asker.submit(now=float(at)) for at in range(20)]
        return [asker(f"GET /api/executions/{one}", now=60.0).body for one in ids]

    assert answers(1) == answers(1)
    assert answers(1) != answers(2)


def test_some_runs_fail(ask: Any) -> None:
    """The failure rate is the share of runs that end as failed, with an error and no result; they are charged."""
    emulator = Emulator(tier="enterprise", failure_rate=0.3, duration=1)
    _runs(emulator, ask, 200)
    states = [ask(emulator).poll(run.execution_id, now=2.0) for run in emulator.runs]
    failed = [state for state in states if state["status"] == "failed"]
    assert 40 < len(failed) < 80
    assert failed[0]["error"]["code"] == "EXECUTION_FAILED"
    assert failed[0]["error"]["message"]
    assert failed[0]["result"] is None
    assert emulator.credits_spent == 200 * 12


def test_a_cancel_lands_after_its_delay(ask: Any) -> None:
    """Between the call and its landing the run is `cancel_requested`, then `cancelled` without a result; charged."""
    emulator = Emulator(duration=30, cancel_delay=2.0)
    asker = ask(emulator)
    execution_id = asker.submit()
    assert asker.json(f"POST /api/executions/{execution_id}/cancel", now=10.0)["status"] == "cancel_requested"
    assert asker.json(f"POST /api/executions/{execution_id}/cancel", now=11.0)["status"] == "cancel_requested"
    assert asker.poll(execution_id, now=11.9)["status"] == "cancel_requested"
    state = asker.poll(execution_id, now=12.0)
    assert (state["status"], state["result"], state["ms"]) == ("cancelled", None, 12000)
    assert emulator.credits_spent == 12


def test_a_cancel_without_delay_lands_at_once(ask: Any) -> None:
    """With no delay the answer to the cancel shows the end."""
    asker = ask(Emulator(duration=30, cancel_delay=0))
    execution_id = asker.submit()
    assert asker.json(f"POST /api/executions/{execution_id}/cancel", now=1.0)["status"] == "cancelled"


@pytest.mark.parametrize("late", ["completed", "cancelled"])
def test_a_run_may_end_before_its_cancel_lands(ask: Any, late: Any) -> None:
    """Such a run ends when it would have ended, with its result, as completed or as cancelled."""
    asker = ask(Emulator(duration=30, cancel_delay=5.0, late_cancel=late))
    execution_id = asker.submit()
    asker.json(f"POST /api/executions/{execution_id}/cancel", now=29.0)
    assert asker.poll(execution_id, now=29.9)["status"] == "cancel_requested"
    state = asker.poll(execution_id, now=30.0)
    assert state["status"] == late
    assert state["result"]["images"]


def test_a_failing_run_cancelled_late_has_no_result(ask: Any) -> None:
    """A run that fails before its cancel lands has no result, whatever it is called."""
    asker = ask(Emulator(duration=30, cancel_delay=5.0, late_cancel="cancelled", failure_rate=1.0))
    execution_id = asker.submit()
    asker.json(f"POST /api/executions/{execution_id}/cancel", now=29.0)
    state = asker.poll(execution_id, now=30.0)
    assert (state["status"], state["result"], state["error"]) == ("cancelled", None, None)


def test_a_finished_run_cannot_be_cancelled(ask: Any) -> None:
    """A cancel of a run that has ended gets 409."""
    asker = ask(Emulator(duration=30))
    execution_id = asker.submit()
    answer = asker(f"POST /api/executions/{execution_id}/cancel", now=30.0)
    assert answer.status == 409
    assert "completed" in answer.json()["error"]


def test_a_fresh_id_may_not_be_found_yet(ask: Any) -> None:
    """For the set time after the submit, polls and cancels answer 404."""
    asker = ask(Emulator(not_found_after_submit=1.5))
    execution_id = asker.submit(now=10.0)
    assert asker(f"GET /api/executions/{execution_id}", now=11.4).status == 404
    assert asker(f"POST /api/executions/{execution_id}/cancel", now=11.4).status == 404
    assert asker(f"GET /api/executions/{execution_id}", now=11.5).status == 200


def test_a_run_tells_its_story(ask: Any) -> None:
    """A run's record has its times, polls, cost, and the first poll that showed its end."""
    emulator = Emulator(duration=20)
    asker = ask(emulator)
    execution_id = asker.submit("workflows/jingle", {"mood": "sad"}, now=100.0)
    for now in (110.0, 121.0, 130.0):
        asker.poll(execution_id, now=now)
    run = emulator.runs[0]
    assert (run.execution_id, run.kind, run.target) == (execution_id, "workflow", "jingle")
    assert (run.inputs, run.cost, run.polls) == ({"mood": "sad"}, 12, 3)
    assert (run.started, run.ends, run.seen_ended_at, run.status) == (100.0, 120.0, 121.0, "completed")
    assert (run.status_at(119.0), run.is_async) == ("processing", True)


def test_the_status_is_as_of_the_last_request(ask: Any) -> None:
    """A run's status follows the time that the emulator got, from a request or from `settle`."""
    emulator = Emulator(duration=20)
    ask(emulator).submit(now=0.0)
    assert emulator.runs[0].status == "processing"
    emulator.settle(20.0)
    assert emulator.runs[0].status == "completed"


def test_time_does_not_go_back(ask: Any) -> None:
    """A request with an earlier time than one before it changes nothing that has happened."""
    emulator = Emulator(duration=20)
    ask(emulator).submit(now=50.0)
    emulator.settle(70.0)
    ask(emulator)("GET /api/health", now=60.0)
    assert emulator.runs[0].status == "completed"


@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from(["poll", "cancel"])), max_size=25), st.floats(0, 40))
def test_a_status_never_goes_back(steps: list[tuple[float, str]], duration: float) -> None:
    """Whatever is asked and whenever, the status only moves forward and a final one stays."""
    emulator = Emulator(duration=duration, cancel_delay=lambda dice: dice.uniform(0, 10), tier="enterprise")
    headers = {"x-api-key": emulator.api_key}

    def send(method: str, path: str, now: float, query: str = "", body: bytes = b"") -> Response:
        answer = emulator.handle(Request(method, path, query, headers, body), now)
        assert isinstance(answer, Response)
        return answer

    submitted: Any = send("POST", "/api/workflows/jingle/run", 0.0, "async=true", b'{"inputs": {}}').json()
    path, now, seen = f"/api/executions/{submitted['executionId']}", 0.0, ["processing"]
    for gap, step in steps:
        now += gap
        if step == "cancel":
            send("POST", f"{path}/cancel", now)
        state: Any = send("GET", path, now).json()
        seen.append(state["status"])
        assert (state["completedAt"] is None) == (seen[-1] in ("processing", "cancel_requested"))
    order = {"processing": 0, "cancel_requested": 1, "completed": 2, "cancelled": 2}
    assert [order[one] for one in seen] == sorted(order[one] for one in seen)
    assert len({one for one in seen if order[one] == 2}) <= 1


ROW = {
    "id",
    "userId",
    "workflowSlug",
    "modelIds",
    "status",
    "source",
    "cost",
    "userCost",
    "creditsCost",
    "durationMs",
    "errorCode",
    "requestId",
    "createdAt",
}


def test_rows_are_as_documented(ask: Any) -> None:
    """A row has the documented fields; model runs have no workflow; the request id is the submit's."""
    emulator = Emulator(tier="business", duration=20, cost=255)
    asker = ask(emulator)
    asker.submit("workflows/jingle")
    asker.submit("models/gpt-image-2", now=10.0)
    page = asker.json("GET /api/usage", now=20.0)
    assert (page["page"], page["pageSize"], page["total"]) == (0, 50, 2)
    model, workflow = page["rows"]
    assert set(model) == ROW
    assert (model["source"], model["workflowSlug"], model["status"]) == ("api-slim", None, "processing")
    assert (workflow["source"], workflow["workflowSlug"]) == ("api-workflow", "jingle")
    assert (workflow["status"], workflow["durationMs"], workflow["errorCode"]) == ("completed", 20000, None)
    assert (workflow["creditsCost"], workflow["userCost"], workflow["cost"]) == (255, 0.255, 0.11985)
    assert model["id"] > workflow["id"]
    assert {row["requestId"] for row in page["rows"]} == {run.request_id for run in emulator.runs}
    assert asker.json("GET /api/usage/models", now=20.0) == ["gpt-image-2", "suno-v5"]


def test_failed_rows_have_their_code(ask: Any) -> None:
    """A failed run's row shows the error code."""
    asker = ask(Emulator(duration=0, failure_rate=1.0))
    asker.submit()
    row = asker.json("GET /api/usage?status=failed", now=1.0)["rows"][0]
    assert (row["status"], row["errorCode"]) == ("failed", "EXECUTION_FAILED")


def test_synchronous_runs_are_listed(ask: Any) -> None:
    """A synchronous run has a row like any other."""
    asker = ask(Emulator(duration=5))
    asker.json("POST /api/workflows/jingle/run", {"inputs": {}})
    assert asker.json("GET /api/usage", now=5.0)["rows"][0]["status"] == "completed"


def test_a_cancelled_runs_row_ends_with_it(ask: Any) -> None:
    """The row follows the end that the cancel moved."""
    asker = ask(Emulator(duration=50, cancel_delay=1))
    execution_id = asker.submit()
    asker.json("GET /api/usage?status=processing", now=0.5)
    asker.json(f"POST /api/executions/{execution_id}/cancel", now=1.0)
    assert asker.json("GET /api/usage", now=1.5)["rows"][0]["status"] == "processing"
    assert asker.json("GET /api/usage", now=2.0)["rows"][0]["status"] == "cancelled"
    assert asker.json("GET /api/usage?status=processing", now=99.0)["total"] == 0


def test_rows_come_late_when_set(ask: Any) -> None:
    """With a lag the listing shows the runs as they were so many seconds ago, even after very long uptimes."""
    asker = ask(Emulator(duration=10, usage_lag=3.0))
    asker.submit(now=1e9)
    totals = [asker.json("GET /api/usage", now=1e9 + at)["total"] for at in (0.0, 2.9, 3.0)]
    assert totals == [0, 0, 1]
    shown = [asker.json("GET /api/usage", now=1e9 + at)["rows"][0]["status"] for at in (12.9, 13.0)]
    assert shown == ["processing", "completed"]


def test_pages_are_cut_by_limit_and_offset(ask: Any) -> None:
    """Pages go from the newest row on; more than 500 rows are never given at once."""
    asker = ask(Emulator(tier="enterprise"))
    for _ in range(7):
        asker.submit()
    ids = [row["id"] for row in asker.json("GET /api/usage")["rows"]]
    assert ids == [7, 6, 5, 4, 3, 2, 1]
    page = asker.json("GET /api/usage?limit=3&offset=3")
    assert [row["id"] for row in page["rows"]] == [4, 3, 2]
    assert (page["page"], page["pageSize"], page["total"]) == (1, 3, 7)
    assert asker.json("GET /api/usage?offset=6")["rows"][0]["id"] == 1
    assert asker.json("GET /api/usage?offset=7")["rows"] == []
    assert asker.json("GET /api/usage?limit=9999")["pageSize"] == 500


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=-1", "offset=-1", "limit=99999999999", "limit=٣"])
def test_a_page_that_cannot_be_is_refused(ask: Any, query: str) -> None:
    """A limit or offset that is no integer gets 400."""
    assert ask(Emulator())(f"GET /api/usage?{query}").status == 400


@given(st.data())
def test_every_filter_gives_what_a_plain_search_gives(data: st.DataObject) -> None:
    """Filters, pages and totals agree with a plain search through all runs, asked at any time and in any order."""
    workflows = [
        EmulatedWorkflow("one", models=["gpt-image-2"]),
        EmulatedWorkflow("two", models=["suno-v5", "gpt-image-2"]),
    ]
    emulator = Emulator(tier="enterprise", workflows=workflows, failure_rate=0.3, duration=lambda d: d.uniform(0, 9))
    headers, now = {"x-api-key": emulator.api_key}, 0.0
    for _ in range(data.draw(st.integers(0, 25))):
        now += data.draw(st.floats(0, 3))
        if data.draw(st.booleans()):
            target = data.draw(st.sampled_from(["workflows/one", "workflows/two", "models/suno-v5"]))
            emulator.handle(Request("POST", f"/api/{target}/run", "async=true", headers, b'{"inputs": {}}'), now)
            continue
        status = data.draw(st.sampled_from(["", "processing", "completed", "failed", "odd"]))
        slug = data.draw(st.sampled_from(["", "one", "two"]))
        model = data.draw(st.sampled_from(["", "suno-v5", "gpt-image-2"]))
        query = f"status={status}&workflowSlug={slug}&modelId={model}&limit=4"
        answer = emulator.handle(Request("GET", "/api/usage", query, headers), now)
        assert isinstance(answer, Response)
        page = json.loads(answer.body)
        fitting = [
            run.request_id
            for run in reversed(emulator.runs)
            if (status in ("", run.status_at(now)))
            and (not slug or (run.kind, run.target) == ("workflow", slug))
            and (not model or model in run.model_ids)
        ]
        assert page["total"] == len(fitting)
        assert [row["requestId"] for row in page["rows"]] == fitting[:4]
