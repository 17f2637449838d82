"""A process that works through jobs on ledgers, and is stopped or killed at a step of a claim or of a submit.

Not a test: it is started by those that stop and kill it, with one JSON object as its argument; its outcomes go to
stdout, a line each.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import pkgutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs

from tests.scenarios.clocks import install
from tests.scenarios.driver import wake_often
from tests.scenarios.service import SLUG
from tests.scenarios.shared_clocks import SharedClocks

_WIRE: Final = "httpcore._async.http11:AsyncHTTP11Connection"
_HOOKS: Final = "knouds_async._batch.worker:Submit"
_TRACE: Final = "knouds_async._io.exchange:SentTrace"


@attrs.frozen
class Step:
    """A step: before or after a call of a function, where `counts` says that the call is one of a claim or a submit."""

    function: str
    is_after: bool
    counts: Callable[..., bool] = lambda *_, **__: True


def _is_run(_: object, *words: Any, **named: Any) -> bool:
    """Return whether what is sent, or about to be, is a submit: httpcore passes its request in one way or another."""
    details = next((each for each in words if isinstance(each, dict)), named)
    request = details.get("request")
    return request is not None and request.method == b"POST" and b"/run" in request.url.target


def _is_head(_: object, event: str, details: dict[str, Any]) -> bool:
    return event == "http11.send_request_headers.started" and _is_run(_, details)


def _is_receipt(_: object, __: str, ___: int, event: object) -> bool:
    return type(event).__name__ == "Accepted"


def steps(ledger: str) -> dict[str, Step]:
    """Return the steps of a claim and a submit, in their order, by their names."""
    is_file = "://" not in ledger
    transaction = "_batch.sqlite:LedgerDatabase" if is_file else "_batch.postgres:LedgerTransaction"
    return {
        "before the claim is committed": Step(f"knouds_async.{transaction}.claim", is_after=True),
        "claimed": Step(f"{_HOOKS}.before_send", is_after=True),
        "about to leave": Step(f"{_TRACE}.__call__", is_after=False, counts=_is_head),
        "checked, and about to leave": Step(f"{_WIRE}._send_request_headers", is_after=False, counts=_is_run),
        "half of it has left": Step(f"{_WIRE}._send_request_body", is_after=False, counts=_is_run),
        "left": Step(f"{_WIRE}._receive_response_headers", is_after=False, counts=_is_run),
        "answered": Step(f"{_HOOKS}.after_attempt", is_after=False),
        "before the id is committed": Step(f"knouds_async.{transaction}.record", is_after=True, counts=_is_receipt),
        "recorded": Step(f"{_HOOKS}.after_attempt", is_after=True),
    }


def fail_at(step: Step, number: signal.Signals, nth: int) -> None:
    """Make this process send itself a signal when it comes to a step for the nth time."""
    owner, _, name = step.function.rpartition(".")
    holder = pkgutil.resolve_name(owner)
    original = getattr(holder, name)
    left = [nth]

    def met(*words: Any, **named: Any) -> None:
        if step.counts(*words, **named):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)

    async def asynchronous(*words: Any, **named: Any) -> Any:
        if not step.is_after:
            met(*words, **named)
        value = await original(*words, **named)
        if step.is_after:
            met(*words, **named)
        return value

    def synchronous(*words: Any, **named: Any) -> Any:
        value = original(*words, **named)
        met(*words, **named)
        return value

    setattr(holder, name, asynchronous if inspect.iscoroutinefunction(original) else synchronous)


async def _work(order: dict[str, Any], api_key: str, place: str, keys: list[str]) -> None:
    """Work through the jobs of one ledger."""
    from knouds_async import AsyncKnouds, Completed, Job, Polling, SQLiteLedger
    from knouds_async.postgres import Postgres

    url, _, name = place.partition("#")
    ledger = Postgres(url, name=name) if name else SQLiteLedger(place)
    jobs = [Job(key, {"product_name": key}) for key in keys]
    async with (
        AsyncKnouds(api_key, base_url=order["url"], polling=Polling.every(0.1)) as knouds,
        ledger,
        knouds.workflows.map(SLUG, jobs, ledger=ledger, max_in_flight=1) as outcomes,
    ):
        async for outcome in outcomes:
            kind = "Completed" if isinstance(outcome, Completed) else repr(outcome)
            os.write(1, json.dumps([outcome.job.key, kind]).encode() + b"\n")


async def _work_on_all(order: dict[str, Any]) -> None:
    await asyncio.gather(*(_work(order, *each) for each in order["work"]))


def main() -> None:
    """Work on all ledgers, and fail where that was asked for."""
    order = json.loads(sys.argv[1])
    install(SharedClocks(Path(order["clocks"])))
    wake_often()
    if order["step"] is not None:
        ((_, place, _),) = order["work"]
        fail_at(steps(place)[order["step"]], signal.Signals(order["signal"]), nth=3)
    asyncio.run(_work_on_all(order))


if __name__ == "__main__":
    main()
