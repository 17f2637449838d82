"""The errors: one tree of plain data that pickles, and each says what to do and whether money may have been spent."""

import ast
import copy
import inspect
import pickle
import pickletools
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import knouds_async
from knouds_async import errors
from knouds_async.errors import APIError, KnoudsError
from knouds_async.types import ExecutionState, Status

SENT_AT = datetime(2026, 5, 8, 19, 29, 55, tzinfo=UTC)
STATE = ExecutionState(execution_id="run-1", status=Status.FAILED, raw={"status": "failed"})
ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, KnoudsError)]
REFUSALS = [kind for kind in ALL if issubclass(kind, APIError)]
BUILTIN = {
    errors.ConfigurationError: ValueError,
    errors.InvalidArgumentError: ValueError,
    errors.InvalidInputsError: ValueError,
    errors.InvalidSlugError: ValueError,
    errors.ClientClosedError: RuntimeError,
    errors.WrongEventLoopError: RuntimeError,
    errors.WaitTimeoutError: TimeoutError,
}


def made(kind: type[KnoudsError], **more: Any) -> Any:
    """Make an error with everything it can hold."""
    fields: dict[type[KnoudsError], dict[str, Any]] = {
        errors.SubmissionUnknownError: {"target": "workflows/a", "sent_at": SENT_AT, "seen": "ReadTimeout"},
        errors.ExecutionCancelledError: {"execution_id": "run-1", "state": STATE},
        errors.WebhookVerificationError: {"message": "the words", "reason": errors.WebhookFault.OUT_OF_TIME},
        errors.DownloadError: {"message": "the words", "reason": errors.DownloadFault.EXISTS, "host": "x"},
        errors.WaitTimeoutError: {"execution": "a handle", "execution_id": "run-1", "timeout": 1.5},
    }
    if kind in fields:
        return kind(**fields[kind], **more)
    if kind is errors.ExecutionFailedError:
        more = {"code": "UPSTREAM", "execution_id": "run-1", "state": STATE, **more}
    elif kind is errors.InvalidResponseError:
        more = {"status": 502, "route": "GET /x", **more}
    elif issubclass(kind, errors.RateLimitError):
        more = {"retry_after": 12.0, "limit": 100, "status": 429, "code": "RATE_LIMIT_EXCEEDED", **more}
    if issubclass(kind, APIError):
        more = {"status": 418, "code": "CODE", "body": {"error": "x", "n": [1]}, "route": "GET /x", **more}
    return kind("the words", **more)


def same(one: KnoudsError, other: KnoudsError) -> None:
    """Check that two errors are alike in all that they say."""
    assert type(one) is type(other)
    assert (str(one), one.args, vars(one)) == (str(other), other.args, vars(other))


def test_an_error_survives_pickling_and_copying() -> None:
    """Class, message and every field come back, by every protocol, and a chain of copies adds nothing."""
    for kind in ALL:
        error = made(kind)
        error.execution_id = "run-9"
        error.add_note("seen at noon")
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            same(pickle.loads(pickle.dumps(error, protocol)), error)  # noqa: S301  (our own)
        same(copy.copy(error), error)
        same(copy.deepcopy(error), error)
        same(copy.copy(pickle.loads(pickle.dumps(copy.copy(error)))), error)  # noqa: S301


# As the library wrote it when the errors were one file.
OLD = b"""cknouds_async.errors\n_revive\n(cknouds_async.errors\nDownloadError\n(Vthe words\nt(dVreason
cknouds_async.errors\nDownloadFault\n(Vexists\ntRsVhost\nVx\nstR."""

GLOBALS = {f"knouds_async.errors {name}" for name in ("_revive", "DownloadError", "DownloadFault")}


def test_an_error_loads_that_was_pickled_when_the_errors_were_one_file() -> None:
    """What stands in a queue or a cache outlives how the files are cut, and what is written now names no file."""
    same(pickle.loads(OLD), made(errors.DownloadError))  # noqa: S301  (our own)
    written = [name for _, name, _ in pickletools.genops(pickle.dumps(made(errors.DownloadError), 0)) if name]
    assert {str(name) for name in written if "knouds" in str(name)} == GLOBALS


def test_an_error_goes_by_its_public_name() -> None:
    """Tracebacks and pickles name the module that users import it from, not a file behind it."""
    public: list[type] = [*ALL, errors.WebhookFault, errors.DownloadFault]
    for kind in public:
        assert f"{kind.__module__}.{kind.__qualname__}" == f"knouds_async.errors.{kind.__name__}"


def test_a_copy_is_an_error_of_its_own() -> None:
    """What is noted on a copy does not show on the original, and the copy can be raised and caught."""
    for kind in ALL:
        error = made(kind)
        twin = copy.copy(error)
        twin.execution_id = "run-2"
        assert error.execution_id != "run-2"
        with pytest.raises(kind) as caught:
            raise twin
        assert error.__traceback__ is None
        assert caught.value is twin


MAY_HAVE_RUN = {
    errors.SubmissionUnknownError,
    errors.ExecutionFailedError,
    errors.ExecutionCancelledError,
    errors.WaitTimeoutError,
}


def test_each_error_says_whether_a_run_may_have_begun() -> None:
    """Errors that can come after a run has started say that it may have run; a refusal says what it was made with."""
    for kind in ALL:
        assert made(kind).may_have_run is (kind in MAY_HAVE_RUN), kind
        if issubclass(kind, APIError | errors.InvalidResponseError):
            assert made(kind, may_have_run=True).may_have_run


def test_a_refusal_says_what_and_why_and_what_next() -> None:
    """Route, status, code, words and advice stand in the message, once each."""
    for kind in REFUSALS:
        error = made(kind, status=499)
        assert str(error).startswith("GET /x answered 499 ")
        for part in (error.code, "the words", *([kind.advice] if kind.advice else [])):
            assert str(error).count(part) == 1, kind
        assert ".." not in str(error).replace("...", "")
        assert (error.status, error.route, error.message, error.body["n"]) == (499, "GET /x", "the words", [1])


def test_every_refusal_has_advice() -> None:
    """Each class but the root says what to do next."""
    assert [kind for kind in REFUSALS if not kind.advice] == [APIError]


def test_no_refusal_advises_to_repeat_what_may_have_run() -> None:
    """When a run may have started, the advice is to search for it, not that nothing was run or to try again."""
    for kind in REFUSALS:
        text = str(made(kind, may_have_run=True))
        assert "may have run and been charged" in text
        assert "knouds.usage" in text
        assert "Nothing was run" not in text
        assert "Try again" not in text


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"status": None, "code": None, "route": None}, "the words"),
        ({"status": None, "code": "INVALID_SLUG", "route": None}, "INVALID_SLUG: the words"),
        ({"status": 418, "code": None}, "GET /x answered 418: the words"),
        ({"status": 418}, "GET /x answered 418 CODE: the words"),
        ({"status": 418, "route": None}, "answered 418 CODE: the words"),
    ],
)
def test_a_refusal_s_message_holds_what_is_known(more: dict[str, Any], text: str) -> None:
    """What is not known leaves no hole."""
    assert str(made(APIError, **more)) == text


@pytest.mark.parametrize("said", ["no.", "no...", "no . ", "no"])
def test_a_message_s_full_stops_do_not_add_up(said: str) -> None:
    """The service's own full stop is not doubled."""
    assert str(errors.NotFoundError(said, status=404)).startswith("answered 404: no. Check")
    assert errors.NotFoundError(said, status=404).message == said


def test_words_of_the_body_are_texts_or_none() -> None:
    """`required`, `actual` and `attempted` are read from the body, whatever it is."""
    denied = errors.ScopeDeniedError("x", body={"required": "admin", "actual": 5})
    assert (denied.required, denied.actual) == ("admin", None)
    assert errors.CapabilityDeniedError("x", body={"required": "workflow:run"}).required == "workflow:run"
    assert "x (required: admin). Nothing was run" in str(denied)
    assert "x (attempted: *)" in str(errors.CapabilityAboveCeilingError("x", body={"attempted": "*"}))
    assert errors.CapabilityAboveCeilingError("x", body=None).attempted is None
    assert errors.CapabilityAboveCeilingError("x", body=["attempted"]).attempted is None


def test_the_errors_of_a_run_name_it_and_say_what_to_do() -> None:
    """Each names the run or its target, and the way on."""
    unknown = made(errors.SubmissionUnknownError)
    for words in ("workflows/a", "2026-05-08T19:29:55+00:00", "ReadTimeout", "was not sent again", "find_submission"):
        assert words in str(unknown)
    waited = made(errors.WaitTimeoutError)
    for words in ("run-1", "1.5 s", "it continues", "error.execution", "knouds.executions.attach('run-1')"):
        assert words in str(waited)
    assert (waited.execution, waited.timeout, waited.execution_id) == ("a handle", 1.5, "run-1")
    assert "charged all the same" in str(made(errors.ExecutionCancelledError))
    failed = made(errors.ExecutionFailedError)
    assert str(failed) == "execution run-1 failed with UPSTREAM: the words. It may have been charged"
    assert (failed.code, failed.message, failed.execution_id, failed.state) == ("UPSTREAM", "the words", "run-1", STATE)
    assert str(errors.ExecutionFailedError("x.")) == "the run failed: x. It may have been charged"
    limited = made(errors.RateLimitError)
    assert (limited.retry_after, limited.limit, limited.status) == (12.0, 100, 429)


def test_an_error_is_also_the_builtin_one_that_users_expect() -> None:
    """`except ValueError`, `RuntimeError` and `TimeoutError` catch what they should, and nothing more."""
    for kind in ALL:
        expected = next((builtin for ours, builtin in BUILTIN.items() if issubclass(kind, ours)), None)
        caught_as = {
            builtin for builtin in (ValueError, RuntimeError, TimeoutError, OSError) if issubclass(kind, builtin)
        }
        assert caught_as == ({TimeoutError, OSError} if expected is TimeoutError else {expected} - {None}), kind


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Every class is drawn, below its parent, and every class drawn exists and is public."""
    drawn: dict[str, str] = {}
    parents: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if not re.match(r"    (KnoudsError|[│ ]*[├└]── )", line):
            continue
        depth = (len(re.match(r"[│├└─ ]*", line).group()) - 4) // 4  # type: ignore[union-attr]
        for name in re.findall(r"\b(?:[A-Z]\w*Error)\b", re.split(r"\s{2,}|\(", line[4 + 4 * depth :])[0]):
            parents[depth:] = [name]
            if depth:
                drawn[name] = parents[depth - 1]
    ours = {kind.__name__: kind.__mro__[1].__name__ for kind in ALL if kind is not KnoudsError}
    assert drawn == ours
    assert {kind.__name__ for kind in ALL} <= set(knouds_async.__all__)


def test_the_errors_are_a_leaf() -> None:
    """They import the standard library only, so that anything may import them."""
    nodes = list(ast.walk(ast.parse(Path(inspect.getfile(errors)).read_text())))
    imported = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "typing", "datetime", "enum", "pathlib"}
    assert {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names} == {"re"}


def test_a_value_in_a_message_is_cut() -> None:
    """Eighty characters of it are enough to find it by; what has no repr is named by its type."""
    assert errors.safe_repr("x" * 100) == "'" + "x" * 79
    assert errors.safe_repr(10**5000) == "a value of type int"


def test_a_key_in_the_place_of_a_value_is_not_shown() -> None:
    """What was meant as the key may have got into any argument."""
    assert errors.safe_repr(["knouds_live_CANARY", 1]) == "['knouds_live_***', 1]"
