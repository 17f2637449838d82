"""`knouds demo`: its progress, its summary, its prompts."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from knouds_async import AsyncKnouds, CapabilityDeniedError
from knouds_async._cli.demo import count_duplicates, quantile, read_prompts, run_prompts
from knouds_async.testing import Emulator, EmulatorTransport, faults, virtual_backend

on_asyncio = pytest.mark.parametrize("anyio_backend", [virtual_backend("asyncio")])  # as the command line runs


@pytest.mark.slow
def test_the_demo_shows_progress_and_a_summary(knouds: Callable[..., Any]) -> None:
    """Without a terminal the demo prints its progress on stderr and its figures on stdout, and exits with 0."""
    ended = knouds("demo", "--runs", "6")
    assert ended.code == 0
    assert "nothing is paid" in ended.err
    assert ended.err.splitlines()[-1].startswith("6 jobs done: ")
    figures = dict(line.split("  ", 1) for line in ended.out.splitlines() if re.match(r"\S.*  ", line))
    assert re.fullmatch(r" *6: \d completed, \d failed", figures["runs"])
    for name in ("run twice", "unknown outcomes", "refused (429)"):
        assert figures[name].strip() == "0", name
    for name in ("wall time", "requests", "finish detected after", "credits"):
        assert re.search(r"\d", figures[name]), name
    assert len(re.findall(r"^  .*: https://", ended.out, re.MULTILINE)) == 5


@pytest.mark.slow
def test_the_demo_is_drawn_at_a_terminal(in_terminal: Callable[..., Any], service: Any) -> None:
    """At a terminal the demo redraws its bars, and its key and service are its own."""
    ended = in_terminal("demo", "--runs", "3", "--seed", "5", env=service.env | {"KNOUDS_KEY": "canary"})
    assert ended.code == 0
    assert "of 3 done, " in ended.out
    assert "\x1b[1A" in ended.out
    assert "canary" not in ended.out
    assert service.emulator.requests.count == 0


def test_the_demo_ends_at_ctrl_c(
    knouds: Callable[..., Any], when: Callable[..., None], send_signal: Callable[[str], Callable[[], None]]
) -> None:
    """Ctrl-C ends the demo with 130, in one line."""
    err = io.StringIO()
    when(lambda: "nothing is paid" in err.getvalue(), send_signal("SIGINT"))
    ended = knouds("demo", "--runs", "50", stderr=err)
    assert (ended.code, ended.out) == (130, "")
    assert err.getvalue().splitlines()[-1] == "knouds: interrupted"
    assert "Traceback" not in err.getvalue()


@on_asyncio
async def test_an_error_that_is_not_of_one_run_ends_the_demo() -> None:
    """A demo whose service refuses everything ends with that error, not with a group of them."""
    emulator = Emulator(tier="business", capabilities=())
    async with (
        httpx.AsyncClient(transport=EmulatorTransport(emulator)) as http,
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http) as knouds,
    ):
        with pytest.raises(CapabilityDeniedError):
            await run_prompts(knouds, read_prompts()[:3], emulator)


@on_asyncio
async def test_a_submit_without_an_answer_is_counted_as_unknown() -> None:
    """A demo counts a submit whose answer was lost, and continues with the others."""
    emulator = Emulator(tier="business", duration=1.0)
    emulator.faults.add(faults.closed(after_run=True), route="POST /api/workflows/:slug/run", nth=2)
    async with (
        httpx.AsyncClient(transport=EmulatorTransport(emulator)) as http,
        AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http) as knouds,
    ):
        results = await run_prompts(knouds, read_prompts()[:3], emulator)
    assert (results.progress.unknown, len(results.completed), len(emulator.runs)) == (1, 2, 3)


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
