"""What follows an attempt: the table, the error for each status and code, and a run that another submit was given."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async import errors
from knouds_async._sansio import endpoints, responses, retry
from knouds_async._sansio.clock import Moment
from knouds_async._sansio.endpoints import Call
from knouds_async._sansio.responses import Answer
from knouds_async._sansio.retry import (
    Again,
    Decision,
    Done,
    Fail,
    Garbled,
    NotSent,
    Outcome,
    ReceivedIds,
    Requeue,
    SoFar,
    Unanswered,
    decide,
)
from knouds_async.config import Retries
from knouds_async.errors import APIError, KnoudsError, ServiceError, SubmissionUnknownError
from knouds_async.types import RunResult, Submitted, Target

ID = "550e8400-e29b-41d4-a716-446655440000"
WORKFLOW, MODEL = Target("workflows", "my-pipeline"), Target("models", "gpt-image-2")
SENT_AT = datetime(2026, 5, 8, 19, 29, 55, tzinfo=UTC)
READS: dict[str, Call[Any]] = {
    "look": endpoints.get_execution(ID),
    "list": endpoints.list_workflows(),
    "usage": endpoints.list_usage(),
    "whoami": endpoints.whoami(),
    "cancel": endpoints.cancel_execution(ID),
    "put": endpoints.update_workflow("a", {}),
    "move": endpoints.move_workflow("a", None),
    "delete": endpoints.delete_workflow("a"),
}
CREATE: dict[str, Call[Any]] = {"create": endpoints.create_workflow({})}
PAID: dict[str, Call[Any]] = {
    "submit": endpoints.submit(WORKFLOW, {}),
    "run": endpoints.run(WORKFLOW, {}),
    "submit model": endpoints.submit(MODEL, {}),
    "run model": endpoints.run(MODEL, {}),
}
ALL = READS | CREATE | PAID
GOOD = {
    "list": [],
    "usage": {"rows": []},
    "submit": {"executionId": ID},
    "submit model": {"executionId": ID},
    "run": {"result": 1},
    "run model": {"result": 1},
}
OWN = b'{"error": "it says", "code": "WHATEVER"}'
PAGE = b"<html>Bad Gateway</html>"


def after(
    name: str,
    outcome: Outcome,
    *,
    attempts: int = 1,
    spent: float = 1.0,
    retries: Retries | None = None,
    roll: float = 0.5,
    server_time: float | None = None,
    was_sent: bool = False,
) -> Decision:
    """Decide what follows an attempt of a call."""
    where = SoFar(attempts=attempts, spent=spent, sent_at=SENT_AT, server_time=server_time, was_sent=was_sent)
    return decide(ALL[name], outcome, where, retries or Retries(), roll=roll)


def error_after(name: str, outcome: Outcome, **more: Any) -> KnoudsError:
    """Return the error that an attempt ends in."""
    decision = after(name, outcome, **more)
    assert isinstance(decision, Fail), decision
    return decision.error


def good(name: str) -> Answer:
    """Return an answer that the call can read."""
    return Answer(200, {}, json.dumps(GOOD.get(name, {"status": "processing", "user": {}})).encode())


def cut(status: int) -> Garbled:
    """Return an answer whose body was cut short."""
    return Garbled(status, {}, "the answer was cut short", is_cut=True)


def unread(status: int) -> Garbled:
    """Return an answer whose body was refused."""
    return Garbled(status, {}, "the body of the answer is longer than 9 bytes", is_cut=False)


AGAIN, REQUEUED, DONE = "again", "requeued", "done"
NOT_SENT: list[Outcome] = [NotSent("ConnectError: refused")]
NO_ANSWER: list[Outcome] = [Unanswered("ReadTimeout"), cut(200), cut(202), cut(299)]
QUOTA = {"x-ratelimit-limit": "100", "x-ratelimit-remaining": "0"}
LIMITED: list[Outcome] = [
    Answer(429, {}, OWN),
    Garbled(429, QUOTA, "the answer was cut short", is_cut=True),
    Garbled(429, QUOTA | {"content-type": "application/json; charset=utf-8"}, "the answer was cut short", is_cut=True),
]
LIMITED_BY_OTHERS: list[Outcome] = [
    Answer(429, {}, PAGE),
    Answer(429, {"retry-after": "5"}, b""),
    Answer(429, {"x-ratelimit-limit": "many"}, b"[]"),
    *(Answer(429, QUOTA, body) for body in (PAGE, b"Too many requests", b'{"message": "Too many"}', b"[]", b"")),
    Garbled(429, QUOTA | {"content-type": "text/html"}, "the answer was cut short", is_cut=True),
    Garbled(429, QUOTA, "the body of the answer is longer than 9 bytes", is_cut=False),
    cut(429),
    unread(429),
]
UNREADABLE: list[Outcome] = [Answer(200, {}, PAGE), Answer(200, {}, b"5"), Answer(202, {}, b"[" * 9**5), unread(200)]
OWN_5XX: list[Outcome] = [Answer(status, {}, OWN) for status in (500, 501, 502, 503, 504, 599)]
OTHER_5XX: list[Outcome] = [
    *(Answer(status, {}, body) for status in (500, 502, 503, 504, 520) for body in (PAGE, b"", b'{"message": "x"}')),
    *(garbled(status) for status in (500, 502, 503, 504) for garbled in (cut, unread)),
]
DOCUMENTED: list[Outcome] = [Answer(status, {}, OWN) for status in (400, 401, 402, 403, 404)]
UNDOCUMENTED: list[Outcome] = [
    Answer(status, {}, OWN) for status in (300, 302, 303, 304, 307, 405, 408, 409, 418, 422, 425, 451, 460, 499)
]
FOREIGN: list[Outcome] = [
    *(
        Answer(status, {}, body)
        for status in (100, 300, 301, 303, 304, 308, 400, 401, 402, 403, 404, 407, 408, 409, 418, 425, 451, 460, 499)
        for body in (PAGE, b"", b'{"message": "Forbidden"}', b'{"error": {"message": "x"}}', b'"error"')
    ),
    *(garbled(status) for status in (302, 400, 403, 404, 408, 499) for garbled in (cut, unread)),
]
FAULTS = [*NOT_SENT, *NO_ANSWER, *UNREADABLE, *OWN_5XX, *OTHER_5XX, *DOCUMENTED, *UNDOCUMENTED, *FOREIGN]
Cell = str | type[KnoudsError]
TABLE: list[tuple[str, list[Outcome], Cell, Cell, Cell]] = [
    ("not sent", NOT_SENT, AGAIN, AGAIN, AGAIN),
    ("no answer", NO_ANSWER, AGAIN, errors.NoAnswerError, errors.SubmissionUnknownError),
    ("429, own", LIMITED, REQUEUED, REQUEUED, REQUEUED),
    ("429, other", LIMITED_BY_OTHERS, REQUEUED, REQUEUED, errors.SubmissionUnknownError),
    ("2xx, unreadable", UNREADABLE, AGAIN, errors.InvalidResponseError, errors.SubmissionUnknownError),
    ("5xx, own", OWN_5XX, AGAIN, errors.ServiceError, errors.ServiceError),
    ("5xx, other", OTHER_5XX, AGAIN, errors.ServiceError, errors.SubmissionUnknownError),
    ("400 to 404, own", DOCUMENTED, errors.APIError, errors.APIError, errors.APIError),
    ("3xx, other 4xx, own", UNDOCUMENTED, errors.APIError, errors.APIError, errors.SubmissionUnknownError),
    ("3xx, 4xx, other", FOREIGN, AGAIN, errors.APIError, errors.SubmissionUnknownError),
]


def column(name: str, reads: Cell, create: Cell, paid: Cell) -> Cell:
    """Return the cell of a call."""
    return reads if name in READS else create if name in CREATE else paid


@pytest.mark.parametrize(("row", "outcomes", "reads", "create", "paid"), TABLE, ids=[row[0] for row in TABLE])
def test_the_table_holds(row: str, outcomes: list[Outcome], reads: Cell, create: Cell, paid: Cell) -> None:
    """Every outcome of every row is followed by what the column of the call says."""
    for name in ALL:
        expected = column(name, reads, create, paid)
        for outcome in outcomes:
            is_page = isinstance(outcome, Answer) and outcome.body == PAGE
            if row == "2xx, unreadable" and name in ("move", "delete") and isinstance(outcome, Answer) and not is_page:
                assert after(name, outcome) == Done(None)  # they take any 2xx for done, but for a web page
            elif isinstance(expected, str):
                kinds = {AGAIN: Again, REQUEUED: Requeue, DONE: Done}
                assert isinstance(after(name, outcome), kinds[expected]), (name, outcome)
            else:
                error = error_after(name, outcome)
                assert isinstance(error, expected), (name, outcome)
                assert isinstance(error, errors.SubmissionUnknownError) is (expected is errors.SubmissionUnknownError)


@pytest.mark.parametrize("name", ALL)
def test_what_can_be_read_is_done(name: str) -> None:
    """A 2xx that can be read ends the call with its value."""
    decision = after(name, good(name))
    assert isinstance(decision, Done)
    assert decision.value == ALL[name].parse(good(name))


@pytest.mark.parametrize("name", PAID)
def test_each_error_of_a_paid_call_says_whether_it_may_have_run(name: str) -> None:
    """Not sent, and refused in the service's own words with a status of contract 7, is certainly not run; no other."""
    for outcome in FAULTS:
        error = error_after(name, outcome, attempts=99)
        is_certain = isinstance(outcome, NotSent) or outcome in DOCUMENTED
        assert error.may_have_run is not is_certain, outcome
        if error.may_have_run:
            assert "Try again" not in str(error)
            assert "Nothing was run" not in str(error)


@pytest.mark.parametrize("name", [*READS, *CREATE])
def test_what_costs_nothing_never_may_have_run(name: str) -> None:
    """No error of a call that pays for nothing claims that a run may have begun."""
    for outcome in FAULTS:
        decision = after(name, outcome, attempts=99)
        assert isinstance(decision, Done) or (isinstance(decision, Fail) and not decision.error.may_have_run), outcome


@pytest.mark.parametrize(
    ("outcomes", "kind"),
    [
        (NOT_SENT, errors.ConnectionFailedError),
        (NO_ANSWER, errors.NoAnswerError),
        ([UNREADABLE[-1]], errors.InvalidResponseError),
        (OWN_5XX, errors.ServiceError),
        (OTHER_5XX, errors.ServiceError),
    ],
)
def test_again_ends_in_the_error_of_the_next_column(outcomes: list[Outcome], kind: type[KnoudsError]) -> None:
    """When the attempts are used up, the last fault is raised."""
    for name in (*READS, "create"):
        for outcome in outcomes:
            assert type(error_after(name, outcome, attempts=4)) is kind, (name, outcome)


@pytest.mark.parametrize("name", ALL)
def test_every_error_names_the_request_or_the_target(name: str) -> None:
    """Whatever ends a call, its error says which call, and the status where there was a whole answer."""
    for outcome in FAULTS:
        decision = after(name, outcome, attempts=99)
        if isinstance(decision, Done):
            continue
        assert isinstance(decision, Fail), outcome
        text = str(decision.error)
        assert ALL[name].request in text or str(ALL[name].pays_for) in text
        if isinstance(outcome, Answer) or (isinstance(outcome, Garbled) and not outcome.is_cut):
            assert str(outcome.status) in text


@pytest.mark.parametrize("fault", [SyntaxError("source code cannot contain null bytes"), RecursionError(), OSError()])
def test_any_fault_of_a_reader_keeps_the_id_of_a_paid_run(fault: Exception) -> None:
    """Whatever is raised while a paid 2xx is read, the run may be paid and its id is known; a read is unreadable."""

    def reads(answer: Answer) -> Any:
        raise fault

    answer, where = good("submit"), SoFar(attempts=1, spent=1.0, sent_at=SENT_AT)
    for name, kind in (("submit", errors.SubmissionUnknownError), ("look", errors.InvalidResponseError)):
        call = attrs.evolve(ALL[name], parse=reads)
        failed = decide(call, answer, where, Retries(attempts=1), roll=0.5)
        assert isinstance(failed, Fail)
        assert type(failed.error) is kind
        assert failed.error.may_have_run is (name == "submit")
        assert getattr(failed.error, "execution_id", None) == (ID if name == "submit" else None)
        assert type(fault).__name__ in str(failed.error)


def test_an_unreadable_answer_keeps_status_and_route() -> None:
    """InvalidResponseError can be asked where the answer came from."""
    error = error_after("look", Answer(203, {}, b"[]"), attempts=4)
    assert isinstance(error, errors.InvalidResponseError)
    assert (error.status, error.route) == (203, "GET /api/executions/:id")


def test_an_unknown_submit_can_be_searched_for() -> None:
    """The error holds what a search of the usage rows needs."""
    error = error_after("submit", Unanswered("ReadTimeout: 60 s"))
    assert isinstance(error, errors.SubmissionUnknownError)
    assert (error.target, error.sent_at, error.seen) == ("workflows/my-pipeline", SENT_AT, "ReadTimeout: 60 s")


RECEIPT = (
    b'{"_async": true, "note": "\xc3\xa9", "executionId" : "550e8400-e29b", "status": "processing", "n": {"a": [1]}}'
)


def test_the_id_in_the_part_that_came_is_told() -> None:
    """A submit whose answer holds the id and is cut, late, refused or no JSON is unknown, but its id is known."""
    part = RECEIPT[:70]
    for outcome in (
        Unanswered("no complete answer within 60 s", part),
        Garbled(200, {}, "the answer was cut short", is_cut=True, part=part),
        Garbled(200, {}, "the body of the answer is a gzip stream that is cut off", is_cut=False, part=part),
        Answer(200, {}, part),
        Answer(504, {}, part),
        Garbled(502, {}, "the answer was cut short", is_cut=True, part=part),
        Answer(500, {}, b'{"error": "it says", "executionId": "550e8400-e29b"}'),
        Answer(408, {}, b'{"error": "it says", "executionId": "550e8400-e29b"}'),
    ):
        error = error_after("submit", outcome)
        assert isinstance(error, errors.SubmissionUnknownError)
        assert error.execution_id == "550e8400-e29b"
        assert "knouds.executions.attach('550e8400-e29b')" in str(error)
        assert ("it says" in error.seen) is (b"it says" in getattr(outcome, "body", b""))


def test_an_id_in_the_part_of_a_synchronous_run_is_not_its_own() -> None:
    """A synchronous run has no id (contract 3): a field of that name belongs to its result."""
    for status in (200, 504):
        error = error_after("run", Answer(status, {}, RECEIPT[:70]))
        assert isinstance(error, errors.SubmissionUnknownError)
        assert error.execution_id is None
    assert isinstance(error_after("run", Answer(500, {}, OWN[:-1] + b', "executionId": "a"}')), errors.ServiceError)


@given(st.integers(0, len(RECEIPT)), st.sampled_from([b"", b"\xff", b"\x00", b'"', b"}", b"\\", b'\\u00"']))
def test_an_id_is_reported_whole_or_not_at_all(end: int, rubbish: bytes) -> None:
    """Wherever a receipt is cut, and whatever is stuck to it, the id is never a part of one."""
    found = responses.salvage_execution_id(RECEIPT[:end] + rubbish)
    is_there = RECEIPT.index(b'b"') + 2
    if end >= is_there:
        assert found == "550e8400-e29b"
    elif rubbish not in (b'"', b'\\u00"'):
        assert found is None


@pytest.mark.parametrize(
    "part",
    [
        b'[{"executionId": "a1"',
        b'{"result": {"executionId": "a1"}, "x',
        b'{"result": {"executionId": "a1", "x',
        b'{"executionId": "../a", ',
        b'{"executionId": "a\\u0000b", ',
        b'{"executionId": ["a1"], ',
        b'{"executionId": 17, ',
        b'{"executionId": "a1", "status": "failed", "error": {"co',
        b'{"executionId": "a1", "ms": 8420, "res',
        b'{"executionId" "a1", ',
        b'{[1]: 2, "executionId": "a1"',
        b'{"ms": null, "executionId": "a1", "ms": 8420, ',
        b'{"x": "a" "executionId": "a1", ',
        b'"executionId": "a1"',
        b"[" * 100_000,
        b'{"x": ' + b"[" * 100_000,
        b'{"x": ' + b"9" * 9999 + b', "executionId": "a1"',
        b"<html>",
    ],
    ids=lambda part: repr(part[:30]),
)
def test_only_a_receipts_own_id_is_reported(part: bytes) -> None:
    """What is not the id of the receipt itself, by the contract's pattern, is none."""
    assert responses.salvage_execution_id(part) is None


FAILED_RUN = b'{"error": "no GPU", "code": "EXECUTION_FAILED"}'


@pytest.mark.parametrize("name", ["run", "run model"])
@pytest.mark.parametrize("status", [400, 500, 502])
def test_a_failed_run_is_reported_as_one(name: str, status: int) -> None:
    """EXECUTION_FAILED of a synchronous run is the run's end, and may have cost money."""
    error = error_after(name, Answer(status, {}, FAILED_RUN))
    assert isinstance(error, errors.ExecutionFailedError)
    assert (error.message, error.may_have_run) == ("no GPU", True)


@pytest.mark.parametrize("name", ["submit", "submit model"])
@pytest.mark.parametrize("status", [400, 418, 500, 502])
def test_a_failed_run_in_answer_to_a_submit_is_unknown(name: str, status: int) -> None:
    """The answer to a submit cannot be the end of its run: the run may continue, and its id is not known."""
    error = error_after(name, Answer(status, {}, FAILED_RUN))
    assert type(error) is errors.SubmissionUnknownError
    assert "no GPU" in error.seen


def test_a_failed_run_with_a_status_that_is_not_documented_is_unknown() -> None:
    """Such a status proves nothing of a paid run, whatever the body says."""
    assert type(error_after("run", Answer(418, {}, FAILED_RUN))) is errors.SubmissionUnknownError


def test_a_failed_run_in_answer_to_a_poll_is_a_fault_of_the_service() -> None:
    """The answer to a poll cannot end a run in this way: the poll is repeated, and the run is not finished."""
    assert isinstance(after("look", Answer(500, {}, FAILED_RUN)), Again)
    assert type(error_after("look", Answer(500, {}, FAILED_RUN), attempts=4)) is errors.ServiceError


@pytest.mark.parametrize("name", PAID)
def test_who_answered_a_paid_call_in_the_service_s_place_is_reported(name: str) -> None:
    """The error names the status, the type and what the sender calls itself, in words of bounded length."""
    told = {"content-type": "text/html; charset=utf-8", "server": "squid/6" + "x" * 999, "via": "1.1 cache.example"}
    strangers: list[Any] = [*FOREIGN, *UNDOCUMENTED, *UNREADABLE[:3], *LIMITED_BY_OTHERS]
    for outcome in strangers:
        if isinstance(outcome, Garbled):
            continue
        error = error_after(name, attrs.evolve(outcome, headers=told))
        assert isinstance(error, errors.SubmissionUnknownError), outcome
        assert error.status == outcome.status
        assert error.intermediary is not None, outcome
        for word in (str(outcome.status), "text/html", "squid/6", "1.1 cache.example"):
            assert word in error.intermediary, outcome
        assert len(error.intermediary) < 400


@pytest.mark.parametrize("name", READS)
def test_of_what_costs_nothing_it_is_never_said_that_nothing_was_run(name: str) -> None:
    """That advice belongs to paid calls; of a page it is said that somebody else answered."""
    for outcome in [*FOREIGN, *DOCUMENTED, *LIMITED]:
        decision = after(name, outcome, attempts=99)
        if isinstance(decision, Fail):
            assert "nothing was run" not in str(decision.error).lower(), outcome
            assert isinstance(decision.error, errors.APIError), outcome
            assert decision.error.from_service is (outcome in DOCUMENTED), outcome


@pytest.mark.parametrize("name", ["submit", "submit model"])
@pytest.mark.parametrize(
    "body",
    [
        {"executionId": ID, "status": "completed", "result": {"images": []}},
        {"executionId": ID, "status": "failed", "error": {"code": "X"}},
        {"executionId": ID, "status": "cancelled"},
        {"executionId": ID, "result": "a text"},
        {"status": "completed", "executionId": ID, "completedAt": "2026-05-08T19:30:42Z"},
        {"status": "completed", "executionId": ID, "cost": 0, "_async": False},
    ],
    ids=str,
)
def test_the_end_of_a_run_is_no_receipt(name: str, body: dict[str, Any]) -> None:
    """The answer to another request's poll is not this submit's, and its id is not this run's, whole or cut."""
    whole = json.dumps(body).encode()
    for outcome in (Answer(200, {}, whole), Unanswered("cut", whole), Answer(502, {}, whole)):
        error = error_after(name, outcome)
        assert isinstance(error, errors.SubmissionUnknownError)
        assert error.execution_id is None


@pytest.mark.parametrize("name", ["run", "run model"])
def test_a_polled_state_is_no_result_of_a_synchronous_run(name: str) -> None:
    """A result that answers another request's poll is another run's; a service may still add an id to its own."""
    body = {"executionId": ID, "status": "completed", "result": {"images": []}}
    error = error_after(name, Answer(200, {}, json.dumps(body).encode()))
    assert type(error) is errors.SubmissionUnknownError
    assert error.intermediary is not None
    assert isinstance(after(name, Answer(200, {}, json.dumps({"success": True, **body}).encode())), Done)


@pytest.mark.parametrize("name", ["look", "cancel"])
def test_the_body_of_another_run_is_no_answer(name: str) -> None:
    """A poll or a cancel that is answered with another run is repeated, and then counts as a connection fault."""
    other = Answer(200, {}, b'{"executionId": "other", "status": "completed", "result": 1}')
    assert isinstance(after(name, other), Again)
    error = error_after(name, other, attempts=4)
    assert type(error) is errors.InvalidResponseError
    assert "'other'" in str(error)
    for same in (ID, ID.upper(), 5, None):
        same_body = json.dumps({"executionId": same, "status": "completed"}).encode()
        assert isinstance(after(name, Answer(200, {}, same_body)), Done)


def test_a_refusal_that_names_a_run_proves_nothing() -> None:
    """An answer with an id has started a run, whatever the status says."""
    error = error_after("submit", Answer(400, {}, b'{"error": "it says", "executionId": "550e8400-e29b"}'))
    assert isinstance(error, errors.SubmissionUnknownError)
    assert error.execution_id == "550e8400-e29b"


def test_a_delete_that_finds_nothing_the_second_time_is_done() -> None:
    """The first attempt's answer may have been lost; then what it asked for is so."""
    outcome = Answer(404, {}, OWN)
    assert after("delete", outcome, attempts=2, was_sent=True) == Done(None)
    assert type(error_after("delete", outcome, attempts=1)) is errors.NotFoundError
    for name in ("look", "put", "move", "cancel", "submit"):
        assert type(error_after(name, outcome, attempts=2, was_sent=True)) is errors.NotFoundError


@pytest.mark.parametrize("outcome", [Answer(404, {}, PAGE), Answer(404, {}, b""), cut(404), unread(404)])
def test_a_404_page_deletes_nothing(outcome: Outcome) -> None:
    """Only the service knows that a workflow is gone: somebody else's 404 is repeated, and then an error."""
    assert isinstance(after("delete", outcome, attempts=2, was_sent=True), Again)
    assert type(error_after("delete", outcome, attempts=4, was_sent=True)) is errors.NotFoundError


def test_a_delete_that_was_never_sent_before_has_deleted_nothing() -> None:
    """After attempts that certainly did not arrive, a 404 is a wrong name."""
    assert type(error_after("delete", Answer(404, {}, OWN), attempts=3, was_sent=False)) is errors.NotFoundError


@pytest.mark.parametrize("name", ALL)
def test_a_request_that_found_no_connection_says_what_to_do(name: str) -> None:
    """It says what to check, and of a paid one that nothing was run."""
    text = str(error_after(name, NotSent("ConnectError"), attempts=4))
    assert text.endswith("heck the network and the base URL, then try again")
    assert ("Nothing was run" in text) is (name in PAID)
    lasting = str(error_after(name, NotSent("TLS: not trusted", "trust it")))
    assert lasting.lower().endswith("trust it")
    assert ("Nothing was run" in lasting) is (name in PAID)


@pytest.mark.parametrize("name", ALL)
def test_what_was_sent_before_is_not_said_to_be_unsent(name: str) -> None:
    """When the last attempt finds no connection, an earlier one may still have arrived; a paid one was refused then."""
    error = error_after(name, NotSent("ConnectError"), attempts=4, was_sent=True)
    assert type(error) is (errors.ConnectionFailedError if name in PAID else errors.NoAnswerError)
    assert type(error_after(name, NotSent("ConnectError"), attempts=4)) is errors.ConnectionFailedError
    assert not error.may_have_run


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_the_jitter_is_full_and_bounded(attempts: int, roll: float) -> None:
    """A pause lies between nothing and an exponential bound of at most eight seconds, as the roll says."""
    retries = Retries(attempts=10**7)
    decision = after("look", NotSent("x"), attempts=attempts, roll=roll, retries=retries)
    bound = min(8.0, 0.5 * 2.0 ** min(attempts - 1, 20))
    assert isinstance(decision, Again)
    assert decision.after == pytest.approx(roll * bound)
    assert 0 <= decision.after < 8.0


@pytest.mark.parametrize(
    ("headers", "server_time", "seconds"),
    [
        ({"retry-after": "7"}, None, 7.0),
        ({"retry-after": "Fri, 08 May 2026 19:30:25 GMT", "date": "Fri, 08 May 2026 19:29:55 GMT"}, None, 30.0),
        ({"retry-after": "Fri, 08 May 2026 19:30:25 GMT"}, 1778268600.0, 25.0),
        ({"retry-after": "0"}, None, 0.25),
        ({"retry-after": "soon"}, None, 0.25),
        ({}, None, 0.25),
    ],
)
@pytest.mark.parametrize("status", [500, 503])
def test_a_wait_asked_for_is_kept(
    status: int, headers: dict[str, str], server_time: float | None, seconds: float
) -> None:
    """`Retry-After` in seconds or as a date is the least pause before a read is repeated."""
    assert after("look", Answer(status, headers, OWN), server_time=server_time) == Again(seconds)


@pytest.mark.parametrize(("asked", "is_waited"), [("120", True), ("121", False), ("999999999999999", False)])
def test_a_wait_that_is_too_long_is_raised(asked: str, is_waited: bool) -> None:
    """No call sleeps silently for longer than `longest`: on a 5xx as on a 429."""
    patient = Retries(longest=120.0, budget=float("inf"))
    decision = after("look", Answer(503, {"retry-after": asked}, OWN), retries=patient)
    assert isinstance(decision, Again if is_waited else Fail)
    for name in ALL:
        limited = after(name, Answer(429, {"retry-after": asked}, OWN), retries=patient)
        if is_waited:
            assert limited == Requeue()
        else:
            assert isinstance(limited, Fail)
            assert isinstance(limited.error, errors.RateLimitError)
            assert (limited.error.retry_after, limited.error.may_have_run) == (float(asked), False)
            assert "longest" in str(limited.error)


def test_a_limit_until_a_date_is_told_by_the_server_s_time() -> None:
    """The error of a long wait until a date says how long it is, also where the answer has no `Date`."""
    told = Answer(429, {"retry-after": "Fri, 08 May 2026 20:29:55 GMT"}, OWN)
    error = error_after("submit", told, server_time=1778268595.0)
    assert isinstance(error, errors.RateLimitError)
    assert (error.retry_after, error.status, error.route) == (3600.0, 429, "POST /api/workflows/:slug/run")


def test_a_limit_s_wait_may_stand_in_the_body() -> None:
    """The body's `retryAfter` counts where there is no header."""
    told = Answer(429, {}, b'{"error": "x", "code": "RATE_LIMIT_EXCEEDED", "retryAfter": 600, "limit": 100}')
    error = error_after("submit", told)
    assert isinstance(error, errors.RateLimitError)
    assert (error.retry_after, error.limit) == (600.0, 100)


def test_longer_waits_can_be_allowed() -> None:
    """`Retries.longest` says what is too long."""
    told = Answer(429, {"retry-after": "3600"}, OWN)
    assert after("submit", told, retries=Retries(longest=3600)) == Requeue()
    assert isinstance(after("submit", told, retries=Retries(longest=3599)), Fail)


@pytest.mark.parametrize("name", ALL)
def test_attempts_are_counted(name: str) -> None:
    """`attempts` is the number of attempts in all."""
    for attempts in (1, 2, 3, 4, 5):
        decision = after(name, NotSent("x"), attempts=attempts, retries=Retries(attempts=4))
        assert isinstance(decision, Again if attempts < 4 else Fail), attempts
        assert isinstance(after(name, NotSent("x"), attempts=attempts, retries=Retries(attempts=1)), Fail)


@pytest.mark.parametrize("name", ALL)
def test_a_429_is_never_an_attempt(name: str) -> None:
    """However many attempts were made and seconds spent, a 429 is requeued."""
    bounds = Retries(attempts=1, budget=0.0)
    assert after(name, Answer(429, {}, OWN), attempts=10**6, spent=10**6, retries=bounds) == Requeue()


@given(
    spent=st.floats(0, 200),
    budget=st.floats(0, 200),
    roll=st.floats(0, 1, exclude_max=True),
    asked=st.none() | st.integers(0, 200),
)
def test_the_budget_is_checked_before_the_pause(spent: float, budget: float, roll: float, asked: int | None) -> None:
    """No pause is begun that would end after the budget."""
    headers = {} if asked is None else {"retry-after": str(asked)}
    retries = Retries(budget=budget, longest=1000.0)
    decision = after("look", Answer(503, headers, OWN), spent=spent, roll=roll, retries=retries)
    pause = max(roll * 0.5, asked or 0.0)
    if spent + pause <= budget:
        assert decision == Again(pause)
    else:
        assert isinstance(decision, Fail)


STATUSES = st.integers(100, 999)
BODIES = st.sampled_from([OWN, PAGE, b"", b"{}", b"[]", b"5", json.dumps({"executionId": ID}).encode(), b"\xff"]) | (
    st.binary(max_size=20)
)
CODED = st.sampled_from(["EXECUTION_FAILED", "RATE_LIMIT_EXCEEDED", "INVALID_INPUTS", "grant_exhausted"]).map(
    lambda code: json.dumps({"error": "x", "code": code, "retryAfter": 5}).encode()
)
HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "date", "location", "content-type"]),
    st.sampled_from(["5", "500", "Fri, 08 May 2026 19:29:55 GMT", "http://[::1", "text/html"]) | st.text(max_size=10),
)
OUTCOMES: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(NotSent, st.text()),
    st.builds(Unanswered, st.text()),
    st.builds(Garbled, STATUSES, HEADERS, st.text(), is_cut=st.booleans()),
    st.builds(Answer, STATUSES, HEADERS, BODIES | CODED),
)
WHERE = st.builds(
    SoFar,
    attempts=st.integers(1, 6),
    spent=st.floats(0, 300),
    sent_at=st.just(SENT_AT),
    server_time=st.none() | st.floats(0, 2e9),
    was_sent=st.booleans(),
)
BOUNDS = st.builds(Retries, attempts=st.integers(1, 5), longest=st.floats(0, 1000), budget=st.floats(0, 1000))
ROLL = st.floats(0, 1, exclude_max=True)


@given(st.sampled_from(sorted(PAID)), OUTCOMES, WHERE, BOUNDS, ROLL)
def test_a_paid_run_is_sent_again_only_when_it_certainly_did_not_run(
    name: str, outcome: Outcome, where: SoFar, bounds: Retries, roll: float
) -> None:
    """The first promise: nothing but "not sent" and 429 is ever followed by another sending of a paid run."""
    decision = decide(PAID[name], outcome, where, bounds, roll=roll)
    status = outcome.status if isinstance(outcome, Answer | Garbled) else None
    if isinstance(decision, Again):
        assert isinstance(outcome, NotSent)
    elif isinstance(decision, Requeue):
        assert status == 429
    elif isinstance(decision, Fail) and not decision.error.may_have_run:
        is_own = isinstance(outcome, Answer) and "error" in str(outcome.body)
        assert isinstance(outcome, NotSent) or (is_own and status in (400, 401, 402, 403, 404, 429))
    if isinstance(decision, Fail) and isinstance(outcome, NotSent):
        assert type(decision.error) is errors.ConnectionFailedError
    if isinstance(outcome, Unanswered):
        assert isinstance(decision, Fail)
        assert isinstance(decision.error, errors.SubmissionUnknownError)


@given(st.sampled_from(sorted(ALL)), OUTCOMES, WHERE, BOUNDS, ROLL)
def test_there_is_always_a_decision_within_bounds(
    name: str, outcome: Outcome, where: SoFar, bounds: Retries, roll: float
) -> None:
    """Whatever comes: a decision, and no pause beyond what `Retries` allows."""
    decision = decide(ALL[name], outcome, where, bounds, roll=roll)
    assert isinstance(decision, (Done, Again, Requeue, Fail))
    if isinstance(decision, Again):
        assert where.attempts < bounds.attempts
        assert 0 <= decision.after <= bounds.longest
        assert where.spent + decision.after <= bounds.budget
    if isinstance(decision, Done) and name != "delete":
        assert isinstance(outcome, Answer)
        assert 200 <= outcome.status < 300


def test_outcomes_are_plain_values() -> None:
    """Outcomes and decisions compare by value and cannot be changed, and no body shows in a log of them."""
    assert {kind.__name__ for kind in get_args(Outcome)} == {"Answer", "NotSent", "Unanswered", "Garbled"}
    assert Again(1.0) == Again(1.0) != Again(2.0)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Again(1.0).after = 2.0  # type: ignore[misc]
    part = b"canary"
    held: list[Outcome] = [Unanswered("x", part), Garbled(200, {}, "x", is_cut=True, part=part), Answer(200, {}, part)]
    assert "canary" not in repr(held)
    assert retry.FIRST_PAUSE < retry.LONGEST_PAUSE


ROUTE = "POST /api/workflows/:slug/run"
REQUEST = "POST /api/workflows/my-slug/run"
SUBMIT = endpoints.submit(Target("workflows", "my-slug"), {})
# contract 7: HTTP status, code, class, a word of the advice
ERRORS: list[tuple[int, str | None, type[APIError], str]] = [
    (400, "INVALID_INPUTS", errors.InvalidInputsError, "schema"),
    (400, "INVALID_SLUG", errors.InvalidSlugError, "lowercase"),
    (400, "INVALID_BODY", errors.InvalidBodyError, "Nothing was run"),
    (400, "INVALID_CAPABILITY", errors.InvalidCapabilityError, "Nothing was run"),
    (400, "INVALID_SCOPE", errors.InvalidScopeError, "Nothing was run"),
    (400, "ASYNC_NOT_SUPPORTED", errors.AsyncNotSupportedError, ".run("),
    (401, None, errors.AuthenticationError, "$KNOUDS_KEY"),
    (401, "LEGACY_KEY_RETIRED", errors.LegacyKeyRetiredError, "make a new one"),
    (402, "INSUFFICIENT_CREDITS", errors.InsufficientCreditsError, "top up"),
    (402, "grant_exhausted", errors.GrantExhaustedError, "upgrade"),
    (403, "CAPABILITY_DENIED", errors.CapabilityDeniedError, "capability"),
    (403, "SCOPE_DENIED", errors.ScopeDeniedError, "scope"),
    (403, "MODEL_TIER_REQUIRED", errors.ModelTierRequiredError, "tier"),
    (403, "CAPABILITY_ABOVE_CEILING", errors.CapabilityAboveCeilingError, "Nothing was run"),
    (403, "API_KEY_ACCESS_DENIED", errors.APIKeyAccessDeniedError, "dashboard"),
    (404, "MODEL_NOT_FOUND", errors.ModelNotFoundError, "internal name"),
    (404, "EXECUTION_NOT_FOUND", errors.ExecutionNotFoundError, "heck the id"),
    (404, None, errors.NotFoundError, "heck the name"),
    (409, None, errors.ConflictError, "state"),
    (429, "RATE_LIMIT_EXCEEDED", errors.RateLimitError, "wait"),
]
PLAIN_BY_STATUS: dict[int, type[APIError]] = {
    302: errors.UnexpectedRedirectError,
    304: errors.UnexpectedRedirectError,
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    402: errors.PaymentRequiredError,
    403: errors.PermissionDeniedError,
    404: errors.NotFoundError,
    408: APIError,
    409: errors.ConflictError,
    418: APIError,
    429: errors.RateLimitError,
    500: errors.ServiceError,
    502: errors.ServiceError,
    599: errors.ServiceError,
    999: errors.ServiceError,
}


def error_for(status: int, body: Any, headers: dict[str, str] | None = None, **more: Any) -> KnoudsError:
    """Return the error of an answer with this JSON, or these bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return retry.api_error(Answer(status, headers or {}, content), SUBMIT, **more)


@pytest.mark.parametrize(("status", "code", "kind", "advice"), ERRORS)
def test_a_documented_code_has_its_class(status: int, code: str | None, kind: type[APIError], advice: str) -> None:
    """Each row of contract 7 becomes its class, says what the service said, and what to do next."""
    body = {"error": "The words.", "extra": 1} | ({"code": code} if code else {})
    error = error_for(status, body)
    assert type(error) is kind
    assert isinstance(error, APIError)
    assert (error.status, error.code, error.message, error.body) == (status, code, "The words.", body)
    assert (error.route, error.request, error.may_have_run) == (ROUTE, REQUEST, False)
    for words in (REQUEST, str(status), "The words", advice, *([code] if code else [])):
        assert words in str(error)


def test_every_code_that_is_known_is_in_the_table() -> None:
    """No class of a code goes untested."""
    assert set(retry.BY_CODE) == {code for _, code, _, _ in ERRORS if code}
    assert all(kind.advice for kind in retry.BY_CODE.values())


@pytest.mark.parametrize(("status", "kind"), PLAIN_BY_STATUS.items())
def test_an_unknown_code_falls_to_its_status(status: int, kind: type[APIError]) -> None:
    """New codes may come at any time: the status decides, and a code that is a text is kept."""
    for code in (None, "BRAND_NEW", "", 5, ["INVALID_SLUG"], "invalid_slug", "GRANT_EXHAUSTED"):
        error = error_for(status, {"error": "x", "code": code})
        assert type(error) is kind, code
        assert isinstance(error, APIError)
        assert error.code == (code if isinstance(code, str) else None)


@pytest.mark.parametrize("status", [302, 500, 503])
def test_a_code_counts_only_in_a_refusal(status: int) -> None:
    """A 5xx or a redirect never claims that nothing was run, whatever code stands in it."""
    for code in retry.BY_CODE:
        error = error_for(status, {"error": "x", "code": code}, may_have_run=status >= 500)
        assert type(error) is PLAIN_BY_STATUS.get(status, errors.ServiceError), code
        assert error.may_have_run is (status >= 500), code
        assert ("Nothing was run" in str(error)) is False


@pytest.mark.parametrize("code", [*retry.BY_CODE, "EXECUTION_FAILED"])
def test_a_429_is_a_rate_limit_whatever_its_code(code: str) -> None:
    """What was refused for its rate was not run (contract 6)."""
    error = error_for(429, {"error": "x", "code": code}, {"retry-after": "3"})
    assert isinstance(error, errors.RateLimitError)
    assert error.retry_after == 3.0


@pytest.mark.parametrize("status", [500, 502, 400])
def test_a_failed_run_is_named_so(status: int) -> None:
    """EXECUTION_FAILED is the end of a synchronous run, not a fault of the service, and may have cost money."""
    error = error_for(status, {"error": "no GPU", "code": "EXECUTION_FAILED"}, may_have_run=status >= 500)
    assert isinstance(error, errors.ExecutionFailedError)
    assert (error.code, error.message, error.may_have_run) == ("EXECUTION_FAILED", "no GPU", True)
    stranger = error_for(status, {"message": "no GPU", "code": "EXECUTION_FAILED"}, may_have_run=status >= 500)
    assert not isinstance(stranger, errors.ExecutionFailedError)


@pytest.mark.parametrize(
    ("code", "extra", "seen"),
    [
        ("CAPABILITY_DENIED", {"required": "workflow:run"}, {"required": "workflow:run"}),
        ("CAPABILITY_DENIED", {"required": 5}, {"required": None}),
        ("CAPABILITY_DENIED", {}, {"required": None}),
        ("SCOPE_DENIED", {"required": "admin", "actual": "free"}, {"required": "admin", "actual": "free"}),
        ("CAPABILITY_ABOVE_CEILING", {"attempted": "*"}, {"attempted": "*"}),
    ],
)
def test_what_a_refusal_names_can_be_read(code: str, extra: dict[str, Any], seen: dict[str, Any]) -> None:
    """The extra fields of a code are attributes of its error."""
    error = error_for(403, {"error": "x", "code": code, **extra})
    assert {name: getattr(error, name) for name in seen} == seen


@pytest.mark.parametrize(
    ("headers", "extra", "retry_after", "limit"),
    [
        ({"retry-after": "12"}, {"limit": 100, "retryAfter": 9}, 12.0, 100),
        ({}, {"limit": 100, "retryAfter": 9}, 9.0, 100),
        ({"retry-after": "Fri, 08 May 2026 19:30:25 GMT"}, {}, 30.0, None),
        ({}, {"limit": "100"}, None, None),
        ({}, {"limit": True}, None, None),
        ({}, {}, None, None),
    ],
)
def test_a_rate_limit_tells_the_wait(
    headers: dict[str, str], extra: dict[str, Any], retry_after: float | None, limit: int | None
) -> None:
    """The wait and the limit are read from header and body, a date against the server's time."""
    error = error_for(429, {"error": "x", **extra}, headers, server_time=1778268595.0)
    assert isinstance(error, errors.RateLimitError)
    assert (error.retry_after, error.limit) == (retry_after, limit)


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b"<html>Bad Gateway</html>", {"content-type": "text/html; charset=utf-8"}, "text/html"),
        (b"", {"content-type": "text/html"}, "an empty body"),
        (b" \n", {}, "an empty body"),
        (b"what?", {}, "a body of no named type"),
        (b"[" * 100_000, {"content-type": "application/json"}, "application/json"),
        (b"9" * 5000, {}, "a body of no named type"),
        (b'{"error": NaN}', {}, "a body of no named type"),
        ([1], {"content-type": "application/json"}, "application/json"),
        ({"error": {"message": "deep"}}, {"content-type": "application/json"}, "application/json"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_a_body_that_is_not_the_service_s_names_status_and_route(
    body: Any, headers: dict[str, str], words: str
) -> None:
    """A proxy's page, or nothing at all, becomes an error that says where it came from and what came."""
    for status in (400, 404, 500, 502):
        error = error_for(status, body, headers)
        assert isinstance(error, APIError)
        assert type(error) is PLAIN_BY_STATUS[status]
        for part in (REQUEST, str(status), words):
            assert part in str(error)


def test_a_message_alone_is_reported() -> None:
    """A refusal that has a `message` in the place of `error` is reported in these words (contract 1)."""
    error = error_for(404, {"message": "Workflow not found"})
    assert isinstance(error, errors.NotFoundError)
    assert (error.message, error.body) == ("Workflow not found", {"message": "Workflow not found"})


@pytest.mark.parametrize(
    ("call", "advice"),
    [
        (endpoints.submit(Target("models", "a"), {}), "Nothing was run"),
        (endpoints.create_workflow({"name": "a"}), ""),
    ],
)
def test_only_the_run_of_a_workflow_is_compared_with_a_schema(call: Call[Any], advice: str) -> None:
    """A model has none, nor has a workflow that is being written: there the advice would lead nowhere."""
    answer = Answer(400, {}, b'{"error": "x", "code": "INVALID_INPUTS"}')
    assert getattr(retry.api_error(answer, call), "advice", None) == advice


def test_a_refusal_without_words_is_still_reported() -> None:
    """An empty `error` leaves status, route and advice."""
    assert str(error_for(402, {"error": "", "code": "INSUFFICIENT_CREDITS"})) == (
        f"{REQUEST} answered 402 INSUFFICIENT_CREDITS. Nothing was run; top up the account's credits"
    )


@pytest.mark.parametrize(("status", "code", "kind", "_"), ERRORS)
def test_a_paid_call_that_is_refused_says_that_nothing_was_run(
    status: int, code: str | None, kind: type[APIError], _: str
) -> None:
    """Whatever the refusal, its advice says so once, beside what to do next, and a copy says the same."""
    error = error_for(status, {"error": "x", "code": code})
    assert isinstance(error, kind)
    assert str(error).lower().count("nothing was run") == 1
    assert error.advice.lower().endswith(kind.advice[1:].lower())
    assert pickle.loads(pickle.dumps(error)).advice == error.advice  # noqa: S301  (our own)


@pytest.mark.parametrize("status", [300, 399, 500, 599])
def test_of_what_is_no_refusal_it_is_never_said_that_nothing_was_run(status: int) -> None:
    """A redirect or a fault of the service says nothing of the run."""
    assert "nothing was run" not in str(error_for(status, {"error": "x"})).lower()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (endpoints.workflow_schema("my-slug"), "GET /api/workflows/my-slug/schema answered 404: x. Check the name"),
        (endpoints.get_execution("run-1"), "GET /api/executions/run-1 answered 404: x. Check the name"),
        (endpoints.list_usage_statuses(limit=5, offset=0), "GET /api/usage answered 404: x. Check the name"),
        (SUBMIT, f"{REQUEST} answered 404: x. Nothing was run; check the name"),
    ],
)
def test_a_refusal_names_what_was_asked_for(call: endpoints.Call[Any], words: str) -> None:
    """The message names the slug or the id, not the query, and the error of a poll never says that nothing was run."""
    assert str(retry.api_error(Answer(404, {}, b'{"error": "x"}'), call)).startswith(words)


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("https://elsewhere.example/login?token=canary", "elsewhere.example"),
        ("https://canary:canary@elsewhere.example/", "elsewhere.example"),
        ("/login?token=canary", "somewhere unnamed"),
        ("http://[::1", "somewhere unnamed"),
        ("http://[canary]/", "somewhere unnamed"),
        ("", "somewhere unnamed"),
        (None, "somewhere unnamed"),
    ],
)
def test_a_redirect_names_the_host_only(location: str | None, host: str) -> None:
    """A redirect says where it leads by host, whatever the header holds, and shows nothing else of it."""
    for status in (300, 301, 302, 303, 307, 308):
        error = error_for(status, b"", {} if location is None else {"location": location})
        assert type(error) is errors.UnexpectedRedirectError, status
        assert host in str(error)
        assert "check base_url" in str(error)
        assert "canary" not in str(error)


def test_a_proxy_s_429_says_how_long_to_wait() -> None:
    """A read is limited by anything that refuses it, so the advice is that of a limit."""
    page = Answer(429, {"retry-after": "600", "content-type": "text/html"}, PAGE)
    assert "Wait 600 s" in str(retry.api_error(page, endpoints.get_execution("run-1")))


def test_a_long_host_or_type_is_cut() -> None:
    """No header makes a message of unbounded length."""
    assert len(str(error_for(302, b"", {"location": f"https://{'x' * 10_000}/"}))) < 600
    assert len(str(error_for(502, b"x", {"content-type": "x" * 10_000}))) < 600


@pytest.mark.parametrize("status", [400, 401, 403, 404, 425])
@pytest.mark.parametrize("call", [SUBMIT, endpoints.get_execution("run-1")])
def test_a_page_in_the_place_of_a_refusal_is_somebody_else_s(status: int, call: endpoints.Call[Any]) -> None:
    """It says who answered and to check what is in between, and never that nothing was run or that the key is wrong."""
    told = {"content-type": "text/html", "server": "squid", "via": "1.1 office"}
    error = retry.api_error(Answer(status, told, b"<html>no</html>"), call)
    assert isinstance(error, APIError)
    assert not error.from_service
    for words in ("text/html (server: squid, via: 1.1 office)", "a proxy, a firewall, a login page"):
        assert words in str(error)
    for words in ("run", "KNOUDS_KEY"):
        assert words not in str(error).replace(call.request, "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
KEYS = st.sampled_from(["error", "code", "message", "limit", "retryAfter", "required", "tier"])


@given(
    st.integers(100, 999).filter(lambda status: not 200 <= status < 300),
    st.dictionaries(KEYS, JSON | st.sampled_from([*retry.BY_CODE, "EXECUTION_FAILED"])) | JSON,
    st.dictionaries(st.sampled_from(["location", "content-type", "retry-after", "date"]), st.text()),
)
def test_any_refusal_is_a_plain_error(status: int, body: Any, headers: dict[str, str]) -> None:
    """Whatever is answered outside 2xx becomes an error of this library that names it and pickles."""
    error = error_for(status, body, headers)
    assert isinstance(error, APIError | errors.ExecutionFailedError)
    assert isinstance(error, errors.ExecutionFailedError) or f"{REQUEST} answered {status}" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  (our own)


@given(st.integers(100, 999).filter(lambda status: not 200 <= status < 300), st.binary())
def test_any_bytes_are_a_plain_error(status: int, body: bytes) -> None:
    """Whatever the bytes, the error names status and request."""
    assert f"{REQUEST} answered {status}" in str(error_for(status, body))


SUBMIT_A = endpoints.submit(Target("workflows", "a"), {})
SO_FAR = SoFar(attempts=1, spent=1.0, sent_at=datetime(2026, 5, 8, tzinfo=UTC))


def unknown(found: str | None) -> Fail:
    """Return the end of a submit of whose receipt only a part came."""
    return Fail(SubmissionUnknownError(target="workflows/a", sent_at=SO_FAR.sent_at, seen="cut", execution_id=found))


@pytest.mark.parametrize("first", [Done(Submitted(execution_id="run-1")), unknown("run-1")])
@pytest.mark.parametrize("second", [Done(Submitted(execution_id="run-1")), unknown("run-1")])
def test_an_id_is_given_once(first: Any, second: Any) -> None:
    """Whole receipts and parts of them alike: the second is unknown, has no id, and names the first."""
    given = ReceivedIds()
    assert given.checked(SUBMIT_A, first, SO_FAR, "job 'a'") is first
    decided = given.checked(SUBMIT_A, second, SO_FAR, "job 'b'")
    assert isinstance(decided, Fail)
    assert isinstance(decided.error, SubmissionUnknownError)
    assert decided.error.execution_id is None
    assert "'run-1'" in decided.error.seen
    assert "job 'a'" in decided.error.seen
    assert decided.error.intermediary is not None


@pytest.mark.parametrize(
    "decision", [Again(1.0), Requeue(), Fail(ServiceError("x", status=500)), Done(RunResult(1)), unknown(None)], ids=str
)
def test_what_has_no_id_passes(decision: Any) -> None:
    """Nothing else is checked, however often it comes."""
    given = ReceivedIds()
    for _ in range(3):
        assert given.checked(SUBMIT_A, decision, SO_FAR, None) is decision


def test_memory_is_bounded() -> None:
    """Only the latest ids are remembered."""
    given = ReceivedIds(most=3)
    for number in range(10):
        receipt = Done(Submitted(execution_id=f"run-{number}"))
        assert given.checked(SUBMIT_A, receipt, SO_FAR, f"job {number}") is receipt
    assert len(given._jobs) == 3
    assert isinstance(given.checked(SUBMIT_A, Done(Submitted(execution_id="run-9")), SO_FAR, "job x"), Fail)


def test_submits_outside_of_batches_pass() -> None:
    """A service in tests that gives every submit the same receipt is accepted."""
    given, receipt = ReceivedIds(), Done(Submitted(execution_id="run-1"))
    for _ in range(3):
        assert given.checked(SUBMIT_A, receipt, SO_FAR, None) is receipt


UNKNOWN_MOMENT = Moment(wall=0.0)
KNOWN_MOMENT = Moment(wall=0.0, earliest=SENT_AT.timestamp() - 2, latest=SENT_AT.timestamp() + 2, known="heard")


@pytest.mark.parametrize(
    ("since", "until", "is_dated"),
    [(KNOWN_MOMENT, KNOWN_MOMENT, True), (KNOWN_MOMENT, UNKNOWN_MOMENT, False), (UNKNOWN_MOMENT, KNOWN_MOMENT, False)],
    ids=["both", "no end", "no beginning"],
)
def test_an_unknown_submit_is_dated_only_between_two_known_moments(
    since: Moment, until: Moment, is_dated: bool
) -> None:
    """With one bound alone the search of usage rows would prove too much."""
    so_far = SoFar(attempts=1, spent=1.0, sent_at=SENT_AT, since=since, until=until)
    error = retry.unknown(endpoints.submit(WORKFLOW, {}), "the answer was lost", so_far)
    dates = (SENT_AT - timedelta(seconds=2), SENT_AT + timedelta(seconds=2)) if is_dated else (None, None)
    assert (error.sent_after, error.sent_before) == dates
    assert error.sent_at == SENT_AT
