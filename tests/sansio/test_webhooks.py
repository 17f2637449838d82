"""Webhook deliveries: their signature, whatever a forger sends, and how far they are relied on."""

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio import webhooks
from knouds_async._sansio.webhooks import (
    CONTRADICTORY,
    MAX_REMEMBERED,
    RecentDeliveries,
    Signature,
    check_delivery,
    is_complete,
    is_end,
    parse_header,
    secret_bytes,
    signature_header,
)
from knouds_async.errors import WebhookFault
from knouds_async.types import ExecutionState, Failure, Status

# ---- The signature

SECRET = b"whsec_0123456789abcdef"
OTHER = b"whsec_another_secret_0"
BODY = b'{"event":"execution.completed"}'
NOW = 1_780_000_000
ZEROS = "0" * 64


def stripe_like(body: bytes, secret: bytes, timestamp: str) -> str:
    """Sign as the scheme is written down, with nothing of the library's."""
    digest = hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={digest}"


GOOD = stripe_like(BODY, SECRET, str(NOW))
DIGEST = GOOD.partition("v1=")[2]


def fault_of(header: object, *, body: bytes = BODY, now: float = NOW, tolerance: float = 300) -> WebhookFault | None:
    """Judge a delivery by one secret."""
    return check_delivery(body, header, [SECRET], now=now, tolerance=tolerance)


@given(st.binary(max_size=300), st.binary(min_size=16, max_size=256), st.integers(0, 10**12 - 1))
def test_signs_as_the_scheme_says(body: bytes, secret: bytes, timestamp: int) -> None:
    """For any body, secret and time the header is the one of an independent implementation, and is accepted."""
    header = signature_header(body, secret, str(timestamp))
    assert header == stripe_like(body, secret, str(timestamp))
    assert check_delivery(body, header, [secret], now=timestamp, tolerance=0) is None


@given(st.binary(max_size=100), st.integers(0, 99), st.integers(1, 255))
def test_any_changed_byte_is_refused(body: bytes, place: int, flip: int) -> None:
    """A body that differs in one byte does not match."""
    header = signature_header(body, SECRET, str(NOW))
    changed = bytearray(body or b"x")
    changed[place % len(changed)] ^= flip
    if bytes(changed) != body:
        assert fault_of(header, body=bytes(changed)) is WebhookFault.SIGNATURE_WRONG


@pytest.mark.parametrize(
    "header",
    [
        GOOD,
        GOOD.encode(),
        f"t={NOW},v1={DIGEST.upper()}",
        f"v1={DIGEST},t={NOW}",
        f"t={NOW},v0=whatever,v1={DIGEST}",
        f"t={NOW},v1={DIGEST},v2=é",
        f"t={NOW}," + ",".join([f"v1={ZEROS}"] * 7 + [f"v1={DIGEST}"]),
    ],
)
def test_accepts_what_the_scheme_allows(header: str | bytes) -> None:
    """Order, case, other schemes and up to eight signatures do not matter as long as one matches."""
    assert fault_of(header) is None


@pytest.mark.parametrize("header", [None, "", b""])
def test_no_header_is_its_own_fault(header: object) -> None:
    """A delivery without a header is distinguished from one with a bad header."""
    assert fault_of(header) is WebhookFault.SIGNATURE_MISSING


@pytest.mark.parametrize(
    "header",
    [
        "nonsense",
        f"t={NOW}",
        f"v1={DIGEST}",
        f"t={NOW},t={NOW},v1={DIGEST}",
        f"t=,v1={DIGEST}",
        f"t=-1,v1={DIGEST}",
        f"t=+{NOW},v1={DIGEST}",
        f"t= {NOW} ,v1={DIGEST}",
        f"t={NOW}\n,v1={DIGEST}",
        f"t=1_000,v1={DIGEST}",
        f"t=١٢٣,v1={DIGEST}",
        f"t=1e9,v1={DIGEST}",
        f"t=nan,v1={DIGEST}",
        f"t=inf,v1={DIGEST}",
        f"t=1234567890123,v1={DIGEST}",
        f"t={NOW},v1={DIGEST}\n",
        f"t={NOW},v1=é{DIGEST[1:]}",
        f"t={NOW},v1={DIGEST[:-1]}",
        f"t={NOW},v1=",
        f"t={NOW}," + ",".join([f"v1={DIGEST}"] * 9),
        GOOD + "," + "x" * 1024,
        "\ud800",
        b"\xff\xfe",
        17,
        ["t"],
    ],
)
def test_refuses_malformed_headers(header: object) -> None:
    """Times that `int` or `float` would take, a second time, nine signatures or 1 KiB of header are malformed."""
    assert fault_of(header) is WebhookFault.SIGNATURE_MALFORMED


def test_signs_the_headers_own_text() -> None:
    """A time with leading zeros is another text, so a signature for the number does not hold for it."""
    assert fault_of(f"t=0{NOW},v1={DIGEST}") is WebhookFault.SIGNATURE_WRONG
    assert fault_of(stripe_like(BODY, SECRET, f"0{NOW}")) is None


@pytest.mark.parametrize("skew", [-300, 300, 0, 299.9])
def test_accepts_within_the_tolerance(skew: float) -> None:
    """Five minutes either way are accepted, the edges included."""
    assert fault_of(GOOD, now=NOW + skew) is None


@pytest.mark.parametrize("now", [NOW - 301, NOW + 301, float("nan"), float("inf"), -float("inf"), 0])
def test_refuses_out_of_time(now: float) -> None:
    """A signature of another time is refused, and so is everything where the clock is not a number."""
    assert fault_of(GOOD, now=now) is WebhookFault.OUT_OF_TIME


def test_a_wrong_signature_is_wrong_whatever_its_time() -> None:
    """A forger does not learn whether the time is right: the age is checked only when the signature is valid."""
    assert fault_of(f"t={NOW},v1={ZEROS}", now=0) is WebhookFault.SIGNATURE_WRONG


def test_every_secret_is_tried() -> None:
    """While secrets are rotated, the old and the new one are both accepted, in any order, and no third."""
    for secrets in ([SECRET, OTHER], [OTHER, SECRET]):
        assert check_delivery(BODY, GOOD, secrets, now=NOW, tolerance=300) is None
    assert check_delivery(BODY, GOOD, [OTHER], now=NOW, tolerance=300) is WebhookFault.SIGNATURE_WRONG
    assert check_delivery(BODY, GOOD, [], now=NOW, tolerance=300) is WebhookFault.SIGNATURE_WRONG


def test_the_prefix_is_part_of_the_secret() -> None:
    """A secret without its `whsec_` is another secret."""
    assert (
        check_delivery(BODY, GOOD, [SECRET.removeprefix(b"whsec_")], now=NOW, tolerance=300)
        is WebhookFault.SIGNATURE_WRONG
    )


def test_the_body_is_capped_before_it_is_signed() -> None:
    """One byte more than 1 MiB is refused even when its signature is right; 1 MiB is taken."""
    most = b"x" * webhooks.MAX_BODY
    assert fault_of(stripe_like(most, SECRET, str(NOW)), body=most) is None
    assert fault_of(stripe_like(most + b"x", SECRET, str(NOW)), body=most + b"x") is WebhookFault.BODY_TOO_LARGE


@pytest.mark.parametrize("header", [None, "nonsense", f"t={NOW},v1={ZEROS}", GOOD, f"{GOOD},v1={ZEROS}"])
def test_work_does_not_depend_on_the_header(header: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the header: each secret signs once, and eight comparisons are made for it."""
    counted: Counter[str] = Counter()
    new, compare = hmac.new, hmac.compare_digest

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted_call(*args: Any) -> Any:
            counted[name] += 1
            return function(*args)

        return counted_call

    monkeypatch.setattr(hmac, "new", counting("signed", new))
    monkeypatch.setattr(hmac, "compare_digest", counting("compared", compare))
    check_delivery(BODY, header, [SECRET, OTHER], now=NOW, tolerance=300)
    assert counted == {"signed": 2, "compared": 16}


@given(st.one_of(st.text(), st.binary(), st.none(), st.integers(), st.floats()), st.binary())
def test_whatever_comes_is_judged(header: object, body: bytes) -> None:
    """No header and no body makes it raise, and none that was not signed is accepted."""
    assert fault_of(header, body=body) is not None


@given(st.text(alphabet="tv01=,9af ", max_size=200))
def test_what_parses_can_be_signed(header: str) -> None:
    """A header that is read has an ASCII time and 64 hex digits in each signature."""
    match parse_header(header):
        case Signature(timestamp, digests):
            assert timestamp.isascii()
            assert timestamp.isdigit()
            assert all(len(digest) == 64 for digest in digests)
        case fault:
            assert fault in (WebhookFault.SIGNATURE_MALFORMED, WebhookFault.SIGNATURE_MISSING)


@pytest.mark.parametrize("text", ["", "x" * 15, "x" * 4097, b"x" * 20, None, 17, "\ud800" * 20])
def test_short_secrets_are_none(text: object) -> None:
    """Fewer than sixteen characters, or what is no string, cannot be a secret."""
    assert secret_bytes(text) is None


def test_secrets_are_their_text() -> None:
    """A secret's bytes are its UTF-8."""
    assert secret_bytes("whsec_ü0123456789") == "whsec_ü0123456789".encode()


# ---- What deliveries say


def state(status: str, execution_id: str = "a", result: object = None, error: Failure | None = None) -> ExecutionState:
    """Return a state as a delivery has it."""
    known = Status(status) if status in set(Status) else status
    return ExecutionState(execution_id=execution_id, status=known, result=result, error=error)


@pytest.mark.parametrize(
    ("one", "complete", "end"),
    [
        (state("completed", result={"text": "x"}), True, True),
        (state("completed"), False, True),
        (state("failed", error=Failure("X")), True, True),
        (state("failed"), False, True),
        (state("cancelled"), True, True),
        (state(CONTRADICTORY), False, True),
        (state("processing"), False, False),
        (state("odd", result=1), False, False),
    ],
)
def test_which_deliveries_need_no_poll(one: ExecutionState, complete: bool, end: bool) -> None:
    """A result, an error or a cancellation says all; an end without them has to be polled; the rest is no end."""
    assert (is_complete(one), is_end(one)) == (complete, end)


def test_recent_deliveries_are_remembered_and_never_go_back() -> None:
    """The first end of a run is kept against later ones, except that a whole one replaces one that says less."""
    recent = RecentDeliveries()
    assert recent.get("a") is None
    assert recent.add(state("completed"))
    assert not recent.add(state("failed"))
    complete = state("completed", result=1)
    assert not recent.add(complete)  # it tells more, but not of another end
    assert recent.get("a") == complete
    assert not recent.add(state("failed", error=Failure("X")))
    assert recent.get("a") == complete


def test_recent_memory_is_bounded() -> None:
    """The run that was delivered longest ago is forgotten first."""
    recent = RecentDeliveries()
    for number in range(MAX_REMEMBERED):
        recent.add(state("completed", f"run-{number}"))
    recent.add(state("completed", "run-0", result=1))
    recent.add(state("completed", "new"))
    assert len(recent) == MAX_REMEMBERED
    assert [name for name in ("run-0", "run-1", "run-2", "new") if name not in recent] == ["run-1"]
