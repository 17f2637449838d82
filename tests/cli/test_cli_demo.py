"""`knouds demo` and `knouds emulator`: a service on this machine that anybody can try."""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from knouds_async import AsyncKnouds, CapabilityDeniedError
from knouds_async._cli.demo import DemoStats, count_duplicates, per_minute, quantile, read_prompts, run_all
from knouds_async.testing import Emulator, EmulatorTransport, faults, virtual_backend

on_asyncio = pytest.mark.parametrize("anyio_backend", [virtual_backend("asyncio")])  # as the command line runs


@pytest.mark.slow
def test_the_demo_shows_progress_and_a_summary(knouds: Callable[..., Any]) -> None:
    """Without a terminal the demo tells its progress in lines on stderr, and its figures on stdout, and ends in 0."""
    ended = knouds("demo", "--runs", "6")
    assert ended.code == 0
    assert "nothing is paid" in ended.err
    assert "6 finished" in ended.err.splitlines()[-1]
    figures = dict(line.split("  ", 1) for line in ended.out.splitlines() if re.match(r"\S.*  ", line))
    assert re.fullmatch(r" *6: \d completed, \d failed", figures["runs"])
    for name in ("run twice", "unknown outcomes", "refused (429)"):
        assert figures[name].strip() == "0", name
    for name in ("wall time", "speed", "requests", "finish detected after", "credits"):
        assert re.search(r"\d", figures[name]), name
    assert len(re.findall(r"^  .*: https://", ended.out, re.MULTILINE)) == 5


@pytest.mark.slow
def test_the_demo_is_drawn_at_a_terminal(in_terminal: Callable[..., Any], service: Any) -> None:
    """At a terminal the demo redraws its bars, and its key and service are its own."""
    ended = in_terminal("demo", "--runs", "3", "--seed", "5", env=service.env | {"KNOUDS_KEY": "canary"})
    assert ended.code == 0
    assert "submitted" in ended.out
    assert "3/3" in ended.out
    assert "\x1b[1A" in ended.out
    assert "canary" not in ended.out
    assert service.emulator.requests.count == 0


@pytest.mark.slow
def test_the_demo_ends_at_ctrl_c(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    """Ctrl-C ends the demo with 130, in one line."""
    process = start("demo", "--runs", "50")
    assert process.stderr is not None
    assert "nothing is paid" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "knouds: interrupted"
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_emulator_says_how_to_reach_it_and_ends_at_ctrl_c(
    start: Callable[..., "subprocess.Popen[str]"], knouds: Callable[..., Any]
) -> None:
    """The two lines on stdout are all that another shell needs, and Ctrl-C ends the emulator with 0."""
    process = start("emulator", "--port", "0", "--duration", "0.05", "--tier", "business")
    assert process.stdout is not None
    lines = [process.stdout.readline().split(maxsplit=1) for _ in range(2)]
    given = dict(text.strip().split("=", 1) for export, text in lines if export == "export")
    assert set(given) == {"KNOUDS_BASE_URL", "KNOUDS_KEY"}
    ended = knouds("run", "daily-picture", env=_without_knouds() | given)
    assert ended.code == 0
    assert ended.out.startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "and 1 run; 12 credits would have been paid" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_emulator_is_as_it_is_told(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    """Faults, limits, webhooks and other settings come from the command line; the page is where it says."""
    options = ["--fault", "closed after_run on submit nth=1", "--limit", "7", "--set", "generation=old"]
    process = start("emulator", "--port", "0", *options, "--webhook-url", "http://127.0.0.1:9/hook")
    assert process.stdout is not None
    given = dict(process.stdout.readline().strip().removeprefix("export ").split("=", 1) for _ in range(3))
    assert given["KNOUDS_WEBHOOK_SECRET"].startswith("whsec_")
    with httpx.Client(base_url=given["KNOUDS_BASE_URL"], headers={"x-api-key": given["KNOUDS_KEY"]}) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            http.post("/api/workflows/daily-picture/run?async=true", json={"inputs": {}})
        again = http.post("/api/workflows/daily-picture/run?async=true", json={"inputs": {}})
        assert again.headers["x-ratelimit-limit"] == "7"
        assert again.json()["webhookDelivery"]["configured"] is True
        assert http.get("/__emulator__/state").json()["runs"]["total"] == 2
        assert http.get("/__emulator__/settings").json()["generation"] == "old"
        assert "<h1>Knouds emulator</h1>" in http.get("/").text
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert "open it in a browser" in err
    assert process.returncode == 0


def test_the_emulator_explains_faults(knouds: Callable[..., Any]) -> None:
    """`--fault help` lists every kind with what it takes, and every short name of a route."""
    ended = knouds("emulator", "--fault", "help")
    assert ended.code == 0
    for told in ("stalled [seconds=...] [after_run]", "dripping seconds=...", "poll          GET /api/executions/:id"):
        assert told in ended.out


@on_asyncio
async def test_an_error_that_is_not_of_one_run_ends_the_demo() -> None:
    """A demo whose service refuses everything ends with that error, not with a group of them."""
    emulator = Emulator(tier="business", capabilities=())
    async with (
        httpx.AsyncClient(transport=EmulatorTransport(emulator)) as http,
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http) as knouds,
    ):
        with pytest.raises(CapabilityDeniedError):
            await run_all(knouds, read_prompts()[:3], DemoStats(read_prompts()[:3]))


@on_asyncio
async def test_a_submit_without_an_answer_is_counted_as_unknown() -> None:
    """A demo counts a submit whose answer was lost, and goes on with the others."""
    emulator = Emulator(tier="business", duration=1.0)
    emulator.faults.add(faults.closed(after_run=True), route="POST /api/workflows/:slug/run", nth=2)
    stats = DemoStats(read_prompts()[:3])
    async with (
        httpx.AsyncClient(transport=EmulatorTransport(emulator)) as http,
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http) as knouds,
    ):
        await run_all(knouds, stats.requested, stats)
    assert (stats.unknown, stats.completed, len(emulator.runs)) == (1, 2, 3)


def test_a_port_that_is_taken_is_one_line(knouds: Callable[..., Any]) -> None:
    """A port that somebody has is said so, in one line, with 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = knouds("emulator", "--port", str(taken.getsockname()[1]))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("knouds: cannot serve on 127.0.0.1 port")
    assert ended.err.count("\n") == 1


def test_there_are_two_hundred_different_prompts(checkout: Path) -> None:
    """The prompts of the demo are those of the examples: 200, no two alike."""
    prompts = read_prompts()
    lines = (checkout / "examples" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == prompts
    assert len({json.dumps(prompt, sort_keys=True) for prompt in prompts}) == len(prompts) == 200


async def test_every_prompt_fits_its_workflow() -> None:
    """The service takes each prompt as inputs of the workflow that the demo runs."""
    emulator = Emulator(tier="enterprise")
    async with (
        httpx.AsyncClient(transport=EmulatorTransport(emulator)) as http,
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http) as knouds,
    ):
        for prompt in read_prompts():
            await knouds.workflows.submit("my-thumbnail-pipeline", prompt)
    assert [run.inputs for run in emulator.runs] == read_prompts()


def test_a_run_too_many_is_counted() -> None:
    """A run that began more often than it was asked for is found, whatever the order of its inputs."""
    requested = [{"a": 1, "b": 2}, {"a": 2}, {"a": 2}]
    assert count_duplicates(requested, [{"b": 2, "a": 1}, {"a": 2}]) == 0
    assert count_duplicates(requested, [*requested, {"a": 2}, {"c": 3}]) == 2


@pytest.mark.parametrize(("share", "value"), [(0.5, 2.0), (0.95, 4.0), (0.0, 1.0), (1.0, 4.0)])
def test_quantiles_are_values_that_were_seen(share: float, value: float) -> None:
    """A quantile is one of the values."""
    assert quantile([3.0, 1.0, 4.0, 2.0], share) == value
    assert per_minute(10, 30.0) == 20.0
    assert per_minute(10, 0.0) == 0.0


def _without_knouds() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith("KNOUDS_")}
