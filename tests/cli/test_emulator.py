"""`knouds emulator`: how it is reached, how it ends, and its options."""

import io
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import httpx
import pytest


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


@pytest.fixture
def at_emulator(
    knouds: Callable[..., Any], when: Callable[..., None], send_signal: Callable[[str], Callable[[], None]]
) -> Callable[..., Any]:
    """Return what runs `knouds emulator`, calls `check` with what it printed for another shell, and presses Ctrl-C."""

    def run(check: Callable[[dict[str, str]], None], *options: str, lines: int = 2) -> Any:
        out, failed = io.StringIO(), list[BaseException]()

        def check_and_end() -> None:
            try:
                check(dict(line.removeprefix("export ").split("=", 1) for line in out.getvalue().splitlines()))
            except BaseException as error:  # noqa: BLE001  (raised in the test's own thread)
                failed.append(error)
            send_signal("SIGINT")()

        when(lambda: out.getvalue().count("\n") >= lines, check_and_end)
        ended = knouds("emulator", "--port", "0", *options, stdout=out)
        if failed:
            raise failed[0]
        return ended

    return run


def test_the_emulator_is_as_it_is_told(at_emulator: Callable[..., Any]) -> None:
    """Faults, limits, webhooks and other settings come from the command line; the page is where it says."""

    def check(given: dict[str, str]) -> None:
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

    options = ["--fault", "closed after_run on submit nth=1", "--limit", "7", "--set", "generation=old"]
    ended = at_emulator(check, *options, "--webhook-url", "http://127.0.0.1:9/hook", lines=3)
    assert "open it in a browser" in ended.err
    assert ended.code == 0


def test_the_emulator_explains_faults(knouds: Callable[..., Any]) -> None:
    """`--fault help` lists every kind with what it takes, and every short name of a route."""
    ended = knouds("emulator", "--fault", "help")
    assert ended.code == 0
    for told in ("stalled [seconds=...] [after_run]", "dripping seconds=...", "poll          GET /api/executions/:id"):
        assert told in ended.out


def test_a_port_that_is_taken_is_one_line(knouds: Callable[..., Any]) -> None:
    """A port that somebody has is said so, in one line, with 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = knouds("emulator", "--port", str(taken.getsockname()[1]))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("knouds: cannot serve on 127.0.0.1 port")
    assert ended.err.count("\n") == 1


def _without_knouds() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith("KNOUDS_")}


def test_two_starts_of_the_emulator_give_no_id_twice(at_emulator: Callable[..., Any]) -> None:
    """A ledger of an earlier start would take an id that it knows for somebody else's run."""
    ids = set()

    def submit(given: dict[str, str]) -> None:
        with httpx.Client(base_url=given["KNOUDS_BASE_URL"], headers={"x-api-key": given["KNOUDS_KEY"]}) as http:
            submitted = http.post("/api/workflows/daily-picture/run?async=true", json={"inputs": {}})
            ids.add(submitted.json()["executionId"])

    for _ in range(2):
        at_emulator(submit)
    assert len(ids) == 2


@pytest.fixture(params=["Ctrl-C does its work", "Ctrl-C is ignored"])
def ctrl_c(request: pytest.FixtureRequest, heeds_signals: None) -> None:
    """Start children as from a terminal, or as a script's background job, which ignores Ctrl-C."""
    if request.param == "Ctrl-C is ignored":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # heeds_signals puts back what was there


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_the_emulator_ends_when_it_is_asked_to(
    name: str, ctrl_c: None, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    """A signal to end is handled, for as process 1 of a container it would else do nothing; the exit code is 0."""
    process = start("emulator", "--port", "0")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("export KNOUDS_BASE_URL=")
    assert process.stdout.readline().startswith("export KNOUDS_KEY=")
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "stopped after 0 requests" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_every_command_ends_when_it_is_asked_to(ctrl_c: None, start: Callable[..., "subprocess.Popen[str]"]) -> None:
    """SIGTERM ends a command that waits for the service as Ctrl-C does, with 130 and without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = start(
            "whoami", env=os.environ | {"KNOUDS_BASE_URL": url, "KNOUDS_KEY": "knouds_live_0123456789abcdef"}
        )
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "knouds: interrupted\n"
