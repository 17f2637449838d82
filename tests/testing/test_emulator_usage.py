"""The usage listing: rows, filters, pages, and the lag behind the truth."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async.testing import Emulator, Request, Response, Workflow

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


def test_rows_come_late_when_told(ask: Any) -> None:
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
    workflows = [Workflow("one", models=["gpt-image-2"]), Workflow("two", models=["suno-v5", "gpt-image-2"])]
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
