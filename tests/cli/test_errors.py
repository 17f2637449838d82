"""The exit codes of `knouds`, and what is said of an error."""

import pickle
import re
import signal
import socket
import subprocess
import time
import unicodedata
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async import errors
from knouds_async._cli.errors import MEANINGS, ExitCode, KeyMissingError, UsageError, exit_code_for, format_error
from knouds_async.testing import faults

SLUG = "my-thumbnail-pipeline"
POLL = "GET /api/executions/:id"
SUBMIT = "POST /api/workflows/:slug/run?async=true"
RUN = ("run", SLUG, "-i", "product_name=Lamp")
TEXTS = st.text(max_size=200)
STEERING = {chr(code) for code in range(0xA0) if unicodedata.category(chr(code)) == "Cc"} | {"\u202e", "\u2066"}


def assert_one_line(ended: Any, code: int, words: str) -> None:
    """Check that a command failed with one clear line on stderr and nothing on stdout."""
    assert (ended.code, ended.out) == (code, ""), ended
    assert re.fullmatch(r"knouds: [^\n]+\n", ended.err), ended.err
    assert words in ended.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["rum"], 'Did you mean "run"?'),
        (["run"], "SLUG"),
        (["run", SLUG, "--jsn"], "--jsn"),
        (["run"], "`knouds run --help`"),
        (["batch", SLUG, "no.jsonl", "--max-in-flight", "x"], "`knouds batch --help`"),
        (["usage", "--limit", "many"], "many"),
        (["usage", "--limit", "2.5"], "--limit: must be an integer, not 2.5"),
        (["batch", SLUG, "no.jsonl", "--max-in-flight", "2.5"], "--max-in-flight: must be an integer, not 2.5"),
        (["emulator", "--seed", "1.5"], "--seed: must be an integer"),
        (["emulator", "--port", "8e3"], "--port: must be an integer"),
        (["emulator", "--limit", "0x10"], "--limit: must be an integer"),
        (["demo", "--runs", "1_0"], "--runs: must be an integer"),
        (["usage", "--limit", "900"], "--limit 900: must be an integer from 1 to 500"),
        (["usage", "--limit", "5", "--all"], "exclude each other"),
        (["run", "Bad_Slug"], "`knouds workflows`"),
        (["run", SLUG, "-i", "product_name"], "write key=value"),
        (["run", SLUG, "-i", "=x"], "write key=value"),
        (["run", SLUG, "-i", "a=1", "-i", "a=2"], "given twice"),
        (["wait"], "EXECUTION_ID"),
        (["wait", "x", "--timeout", "0"], "--timeout 0"),
        (["run", SLUG, "--input-file", "/no/such.json"], "/no/such.json"),
        (["run", SLUG, "--timeout", "0"], "--timeout 0"),
        (["run", SLUG, "--timeout", "nan"], "--timeout nan"),
        (["run", SLUG, "--expected", "0"], "--expected 0"),
        (["run", SLUG, "--expected", "nan"], "--expected nan"),
        (["status", "../../whoami"], "not an execution id"),
        (["whoami", "--base-url", "nowhere"], "nowhere"),
        (["whoami", "--base-url", "http://example.com"], "in the clear"),
        (["demo", "--runs", "0"], "1 to 1000"),
        (["emulator", "--port", "70000"], "0 to 65535"),
        (["emulator", "--host", "192.0.2.1"], "--allow-remote"),
        (["emulator", "--host", "*"], "--allow-remote"),
        (["emulator", "--host", "[::]"], "--allow-remote"),
        (["whoami", "--base-url", "nowhere"], ": --base-url 'nowhere' must"),
        (["workflows", "--base-url", "ftp://x"], ": --base-url 'ftp://x' must"),
        (["emulator", "--failure-rate", "3"], ": --failure-rate must be between 0 and 1, not 3.0"),
        (["emulator", "--duration", "-1"], ": --duration must be finite seconds, zero or more, not -1.0"),
        (["emulator", "--others", "7"], ": --others must be"),
        (["emulator", "--limit", "-1"], ": --limit must be at least 1, not -1"),
        (["emulator", "--webhook-url", "nowhere"], ": --webhook-url must be http://"),
        (["emulator", "--tier", ""], ": --tier must be"),
        (["emulator", "--set", "failure_rate=9"], ": --set failure_rate must be between 0 and 1, not 9"),
        (["emulator", "--set", "tier=9"], ": --set tier must be a string that is not empty, not 9"),
        (["emulator", "--set", "durations=3"], ": --set durations must be an object"),
        (["emulator", "--set", "generation=new"], ": --set generation must be one of"),
        (["emulator", "--set", "polls_limited=1"], ": --set polls_limited must be true or false, not 1"),
        (["emulator", "--set", 'costs={"moon": 1}'], ": --set costs names unknown targets"),
        (["emulator", "--set", "seed=x"], ": --set seed must be"),
        (["emulator", "--set", "scope=x"], ": --set scope must be one of"),
        (["emulator", "--set", "webhook_secret=x"], ": --set webhook_secret must be"),
        (["emulator", "--set", 'deliveries={"dropped": 3}'], ": --set deliveries: dropped must be between 0 and 1"),
        (["emulator", "--duration", "inf"], ": --duration must be finite"),
        (["emulator", "--fault", "reset nth=0"], "nth counts from 1"),
        (["emulator", "--fault", "rest"], "did you mean reset?"),
        (["emulator", "--fault", "reset on GET /moon"], "no route is called 'GET /moon'"),
        (["emulator", "--set", "clock_skew"], "write NAME=VALUE"),
        (["emulator", "--set", "clock_skew=3", "--set", "clock_skew=4"], "--set clock_skew=... is given twice"),
        (["emulator", "--set", 'deliveries={"lost": 1, "lost": 0}'], "comes twice"),
        (["emulator", "--set", "clock_sqew=3"], "did you mean 'clock_skew'?"),
        (["emulator", "--set", "moon=3"], "there are: cancel_delay, "),
        (["emulator", "--set", 'deliveries={"dropt": 1}'], "deliveries have no 'dropt'"),
        (["emulator", "--tier", "enterprise", "--limit", "3"], ": --limit has no effect"),
        (["emulator", "--webhook-secret", "short"], ": --webhook-secret must be"),
    ],
)
def test_wrong_usage_is_one_line_and_2(service: Any, here: Callable[..., Any], args: list[str], words: str) -> None:
    """What is wrong with a command line is said in one line, and no run begins."""
    assert_one_line(here(service, *args), 2, words)
    assert not service.emulator.runs


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (["run", "nowhere"], {}),
        (["run", "Bad_Slug"], {}),
        (["run", "--model", "nowhere"], {}),
        ([*RUN, "product_nam=5"], {}),
        ([*RUN], {"KNOUDS_KEY": "knouds_live_other"}),
        ([*RUN], {"KNOUDS_KEY": ""}),
        ([*RUN, "--base-url", "http://127.0.0.1:9"], {}),
        ([*RUN, "--base-url", "nowhere"], {}),
        ([*RUN, "--profile", "nobody"], {}),
    ],
)
def test_a_run_that_cannot_begin_is_said_to_be_none(
    service: Any, tmp_path: Path, args: list[str], env: dict[str, str]
) -> None:
    """What is refused before the submit is one line that says once that nothing was run, and makes no folder."""
    done = service.knouds(*args, "--save", str(tmp_path / "files"), **env)
    assert (done.out, done.err.count("\n")) == ("", 1), done
    assert len(re.findall("nothing was (?:run|sent)", done.err.lower())) == 1
    assert not list(tmp_path.iterdir())
    assert not service.emulator.runs


def test_inputs_that_the_service_refuses_are_2(service: Any) -> None:
    """Inputs that do not fit the workflow are wrong usage, with the command that shows what fits."""
    ended = service.knouds(*RUN, "-i", "count=9")
    assert_one_line(ended, 2, "'count' must be at most 4")
    assert "`knouds schema" in ended.err


@pytest.mark.parametrize("args", [("run", "nowhere"), ("schema", "nowhere"), ("run", "--model", "nowhere")])
def test_a_name_that_nothing_has_is_2_and_is_named(service: Any, here: Callable[..., Any], args: list[str]) -> None:
    """A slug or a model that is not there is wrong usage; the line says which it is, and that no run began."""
    ended = here(service, *args)
    assert_one_line(ended, 2, "nowhere")
    assert ("othing was run" in ended.err) == (args[0] == "run")


@pytest.mark.parametrize("key", [None, "", "with spaces", "x" * 600])
def test_no_usable_key_is_3_without_a_request(service: Any, knouds: Callable[..., Any], key: str | None) -> None:
    """Without a key in the environment one line says how to set it, and shows nothing of a malformed one."""
    env = {name: text for name, text in service.env.items() if name != "KNOUDS_KEY"}
    ended = knouds("whoami", env=env if key is None else env | {"KNOUDS_KEY": key})
    assert_one_line(ended, 3, "$KNOUDS_KEY")
    assert service.emulator.requests.count == 0
    assert not key or key not in ended.err


def test_a_key_that_is_refused_is_3_and_not_shown(service: Any) -> None:
    """A key that the service does not know ends in 3, and is nowhere in what is said."""
    ended = service.knouds("whoami", KNOUDS_KEY="knouds_live_canary")
    assert_one_line(ended, 3, "401")
    assert "canary" not in ended.err


def test_a_missing_capability_is_3(put_up: Callable[..., Any]) -> None:
    """A key that may not run workflows ends in 3, and names what it lacks."""
    service = put_up(capabilities=("workflow:read",))
    assert_one_line(service.knouds(*RUN), 3, "workflow:run")


@pytest.mark.parametrize("account", [{"credits": 0}, {"grant": 0}])
def test_an_account_that_cannot_pay_is_4(put_up: Callable[..., Any], account: dict[str, int]) -> None:
    """No credits, or a trial grant that is used up, ends in 4 and no run begins."""
    service = put_up(**account)
    assert_one_line(service.knouds(*RUN), 4, "402")
    assert not service.emulator.runs


def test_a_submit_without_an_answer_is_5_and_sent_once(service: Any) -> None:
    """A run whose submit was never answered may have started: 5, the command to check with, and no second submit."""
    service.emulator.faults.add(faults.closed(after_run=True), route=SUBMIT)
    ended = service.knouds(*RUN)
    assert_one_line(ended, 5, f"`knouds usage --workflow {SLUG}`")
    assert len(service.emulator.runs) == 1


def test_a_wait_that_fails_after_the_submit_is_5_with_the_id(service: Any) -> None:
    """A key that may submit but not poll leaves a paid run in flight: that is not a plain refusal."""
    service.emulator.faults.add(faults.unknown_error(403, "CAPABILITY_DENIED"), route="GET /api/executions/:id")
    ended = service.knouds(*RUN)
    assert ended.code == 5
    assert f"`knouds status {service.emulator.runs[0].execution_id}`" in ended.err
    assert "othing was run" not in ended.err


def test_a_timeout_is_6_and_the_run_continues(put_up: Callable[..., Any]) -> None:
    """When --timeout passes, the message has the id and the command to poll it, and the run is not cancelled."""
    service = put_up(duration=60.0)
    ended = service.knouds(*RUN, "--timeout", "0.3", "--base-url", service.base_url, "--json")
    run = service.emulator.runs[0]
    assert ended.code == 6
    assert f"`knouds status {run.execution_id} --base-url {service.base_url}`" in ended.err
    assert f'"execution_id": "{run.execution_id}"' in ended.out
    assert run.cancel_requested_at is None


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Return a port where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_other_errors_are_1(service: Any) -> None:
    """An execution that is not there ends in 1."""
    assert_one_line(service.knouds("status", "nope"), 1, "404")


def test_a_service_that_is_not_there_is_1(service: Any, closed_port: int) -> None:
    """No connection ends in 1, and says that nothing was sent."""
    ended = service.knouds("whoami", "--base-url", f"http://127.0.0.1:{closed_port}")
    assert_one_line(ended, 1, "not sent")


def test_a_run_that_fails_is_1_with_its_reason(put_up: Callable[..., Any]) -> None:
    """A failed run ends in 1 with its reason on stderr, and with --json its state on stdout."""
    ended = put_up(failure_rate=1.0).knouds(*RUN, "--json")
    assert ended.code == 1
    assert '"status": "failed"' in ended.out
    assert "knouds: execution" in ended.err
    assert "EXECUTION_FAILED" in ended.err


def test_a_run_that_is_cancelled_meanwhile_is_1(service: Any, when: Callable[..., None]) -> None:
    """A run that somebody cancels ends the wait with 1, and says that it is charged."""
    service.emulator.duration, service.emulator.cancel_delay = 60.0, 0.0

    def cancel() -> None:
        url = f"{service.base_url}/api/executions/{service.emulator.runs[0].execution_id}/cancel"
        httpx.post(url, headers={"x-api-key": service.emulator.api_key})

    when(lambda: service.emulator.requests.by_route[POLL], cancel)
    ended = service.knouds(*RUN)
    assert ended.code == 1
    assert "was cancelled; it is charged all the same" in ended.err


def test_ctrl_c_while_waiting_is_130_and_the_run_continues(
    put_up: Callable[..., Any], when: Callable[..., None], send_signal: Callable[[str], Callable[[], None]]
) -> None:
    """Ctrl-C ends the wait at once with 130 and says how to poll the run, which is not cancelled."""
    service = put_up(duration=60.0)
    when(lambda: service.emulator.requests.by_route[POLL], send_signal("SIGINT"))
    ended = service.knouds(*RUN)
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.splitlines()[-1].startswith("knouds: interrupted; the run continues")
    assert f"`knouds status {service.emulator.runs[0].execution_id}`" in ended.err
    assert "Traceback" not in ended.err
    assert service.emulator.runs[0].cancel_requested_at is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_ctrl_c_in_the_middle_of_a_submit_still_says_the_id(
    name: str, service: Any, when: Callable[..., None], send_signal: Callable[[str], Callable[[], None]]
) -> None:
    """A submit that is under way when the command is to end is finished first: the id of a paid run is not lost."""
    service.emulator.faults.add(faults.stalled(2.0, after_run=True), route=SUBMIT)
    when(lambda: service.emulator.runs, send_signal(name))
    ended = service.knouds(*RUN)
    assert ended.code == 130
    assert service.emulator.runs[0].execution_id in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_a_process_that_is_asked_to_end_in_the_middle_of_a_submit_says_the_id(
    service: Any, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    """SIGTERM does not end the process between a submit and its id, and then it ends with 130."""
    service.emulator.faults.add(faults.stalled(2.0, after_run=True), route=SUBMIT)
    process = start(*RUN, env=service.env)
    until = time.monotonic() + 30
    while not service.emulator.runs and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert service.emulator.runs[0].execution_id in err
    assert "Traceback" not in err


def every_error() -> list[type[errors.KnoudsError]]:
    """Return every class of the library's tree of errors."""
    found = [errors.KnoudsError]
    for kind in found:
        found += kind.__subclasses__()
    return found


def test_an_error_that_leaves_a_run_open_never_seems_harmless() -> None:
    """Any error of a submit that may have started a run is 5, unless it reports the end of the run or of the wait."""
    for kind in every_error():
        error = kind.__new__(kind)
        error.may_have_run = True
        of_the_run = (errors.ExecutionFailedError, errors.ExecutionCancelledError, errors.WaitTimeoutError)
        refused = (
            errors.BadRequestError,
            errors.AuthenticationError,
            errors.PaymentRequiredError,
            errors.PermissionDeniedError,
            errors.ConfigurationError,
            errors.InvalidArgumentError,
            errors.BudgetExceededError,
        )
        assert (exit_code_for(error) == ExitCode.MAY_HAVE_RUN) == (not issubclass(kind, (*of_the_run, *refused))), kind


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError(), 2),
        (KeyMissingError(), 3),
        (KeyboardInterrupt(), 130),
        (OSError(), 1),
        (errors.InvalidInputsError("no"), 2),
        (errors.AsyncNotSupportedError("no"), 2),
        (errors.ScopeDeniedError("no"), 3),
        (errors.LegacyKeyRetiredError("no"), 3),
        (errors.GrantExhaustedError("no"), 4),
        (errors.BudgetExceededError("no"), 4),
        (errors.SubmissionUnknownError(target="models/x", sent_at=datetime.now(UTC), seen="nothing"), 5),
        (errors.ServiceError("no", may_have_run=True), 5),
        (errors.ServiceError("no"), 1),
        (errors.WaitTimeoutError(execution=None, execution_id="x", timeout=1), 6),
        (errors.ExecutionFailedError("no"), 1),
        (errors.ModelNotFoundError("no"), 2),
        (errors.NotFoundError("no"), 2),
        (errors.ExecutionNotFoundError("no"), 1),
        (errors.RateLimitError("no"), 1),
    ],
)
def test_the_table_gives_the_code(error: BaseException, code: int) -> None:
    """Each error has the exit code that the help promises."""
    assert exit_code_for(error) == code


def test_every_code_is_documented(knouds: Callable[..., Any]) -> None:
    """`knouds --help` shows every exit code with its meaning."""
    ended = knouds("--help")
    assert ended.code == 0
    for code in ExitCode:
        assert f"{code.value:>5}  {MEANINGS[code]}" in ended.out


def test_a_full_disk_is_1(service: Any) -> None:
    """A result that cannot be written is an error, in one line."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        ended = service.knouds("whoami", stdout=full)
    assert_one_line(ended, 1, "No space left")


@given(TEXTS)
def test_no_error_takes_two_lines_or_steers_a_terminal(text: str) -> None:
    """Whatever a service says, it is shown in one line of printable characters."""
    for error in (
        errors.ServiceError(text, status=500, code=text),
        errors.ExecutionFailedError(text, code=text, execution_id="x"),
        errors.InvalidInputsError(text, status=400),
        OSError(5, text),
    ):
        assert STEERING.isdisjoint(format_error(error))


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (errors.AuthenticationError("no", status=401), "Check $KNOUDS_KEY, "),
        (errors.InvalidInputsError("no", status=400), "Nothing was run or charged; `knouds schema SLUG` "),
        (errors.RateLimitError("no", status=429, retry_after=12.0), "Nothing was run; wait 12 s, then try again: "),
        (
            errors.ConnectionFailedError("GET /x: not sent: no. such. Check the network"),
            "Check the network: GET /x: not",
        ),
        (
            errors.ServiceError("no", status=502, may_have_run=True),
            "Check with `knouds usage` before you run it again: ",
        ),
        (
            errors.SubmissionUnknownError(target="models/x", sent_at=datetime(2026, 5, 1, tzinfo=UTC), seen="-"),
            "Check with `knouds usage --model x` before you run it again: ",
        ),
    ],
)
def test_a_line_begins_with_what_to_do(error: BaseException, start: str) -> None:
    """What happened comes after it, and nothing is said twice."""
    line = format_error(error)
    assert line.startswith(start)
    assert line.count("may have run") <= 1


def test_a_refusal_without_advice_gets_none() -> None:
    """What was refused before it was sent, or of a model, has no schema to be compared with."""
    unsent = errors.InvalidInputsError("inputs['a'] is nan: nothing was sent", code="INVALID_INPUTS", advice="")
    assert format_error(unsent) == "INVALID_INPUTS: inputs['a'] is nan: nothing was sent"
    of_a_model = errors.InvalidInputsError("no", status=400, advice="Nothing was run")
    assert "schema" not in format_error(of_a_model)


@pytest.mark.parametrize(
    ("error", "has", "lacks"),
    [
        (errors.InvalidInputsError("no", status=400), "`knouds schema SLUG`", "await"),
        (errors.InvalidSlugError("no"), "`knouds workflows`", "await"),
        (errors.RateLimitError("no", status=429), "wait", "Retries"),
        (errors.UnexpectedRedirectError("no", status=307), "--base-url", "base_url"),
        (errors.ServiceError("no", status=500, may_have_run=True), "`knouds usage`", "Try again later"),
        (
            errors.DownloadError(
                "there already; pass overwrite=True to replace it", reason=errors.DownloadFault.EXISTS
            ),
            "another folder",
            "overwrite",
        ),
        (
            errors.BudgetExceededError("another run could pass max_credits=30: 24"),
            "--max-credits 30: 24",
            "max_credits",
        ),
        (errors.ConfigurationError("$X: no; correct it, unset it, or pass ssl_context="), "unset it", "ssl_context"),
        (
            errors.LedgerError("allow it with `await ledger.trust()` or `knouds ledger trust URL`"),
            "with `knouds",
            "await",
        ),
        (errors.LedgerError("all the same: `await ledger.rebind()`, or `knouds batch"), "same: `knouds", "await"),
        (
            errors.SubmissionUnknownError(target="models/suno-v5", sent_at=datetime(2026, 5, 1, tzinfo=UTC), seen="-"),
            "`knouds usage --model suno-v5`",
            "find_submission",
        ),
        (
            errors.SubmissionUnknownError(
                target="models/suno-v5", sent_at=datetime(2026, 5, 1, tzinfo=UTC), seen="-", execution_id="a1"
            ),
            "`knouds status a1`",
            "attach",
        ),
        (
            errors.InvalidArgumentError("max_credits=-3.0: must be credits, zero or more, or None"),
            "--max-credits -3.0: must be credits, zero or more",
            "None",
        ),
        (errors.InvalidArgumentError("limit=900: must be less"), "--limit 900: must be less", "limit="),
        (errors.InvalidArgumentError("jobs='a': must be jobs"), "jobs='a': must be jobs", "--"),
        (KeyboardInterrupt(), "interrupted", "Keyboard"),
    ],
)
def test_advice_is_a_command_and_not_python(error: BaseException, has: str, lacks: str) -> None:
    """Where the library advises a call, the command line advises a command."""
    assert has in format_error(error)
    assert lacks not in format_error(error)
    assert pickle.loads(pickle.dumps(error)).args == error.args  # noqa: S301
