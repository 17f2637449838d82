"""`knouds batch --status`, `--resolve` and `--rebind`: show a ledger, or record a decision in it.

No request is sent and no key is needed; a ledger that does not exist is not created.
"""

from __future__ import annotations

import asyncio
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs

from knouds_async._sansio.entries import Entry
from knouds_async.batch.ledger import LedgerCounts
from knouds_async.batch.sqlite import SQLiteLedger
from knouds_async.cli import output
from knouds_async.cli.exits import ExitCode, UsageError
from knouds_async.cli.words import one_line, plural

_RUN: Final = "run="
_CONSEQUENCES: Final = {"resend": "the next batch runs it again", "abandon": "it is never run"}


def print_ledger(path: Path, *, as_json: bool) -> int:
    """Print what a ledger holds; the exit code is 5 while a run is unknown."""
    counts, unknown = asyncio.run(_read_ledger(_existing("--status", path)))
    if as_json:
        record = {"ledger": str(path), **attrs.asdict(counts)}
        output.print_json(record | {"unknown_jobs": [_entry_record(entry) for entry in unknown]})
    else:
        names = [field.name for field in attrs.fields(LedgerCounts)]
        output.print_pairs(*((name.replace("_", " "), getattr(counts, name) or None) for name in names))
        _print_unknown(path, unknown)
    return ExitCode.MAY_HAVE_RUN if unknown else ExitCode.OK


def resolve_unknown(path: Path, key: str, decision: str) -> int:
    """Record what was decided about an unknown run, and print the consequence."""
    if decision not in _CONSEQUENCES and not decision.startswith(_RUN):
        raise UsageError(f"--resolve ... {one_line(decision)}: must be resend, abandon, or run= and an execution's id")
    remaining = asyncio.run(_apply_decision(_existing("--resolve", path), key, decision))
    consequence = _CONSEQUENCES.get(
        decision, f"it is execution {one_line(decision.removeprefix(_RUN))}; the next batch waits for it"
    )
    output.print_info(f"{one_line(key)}: {consequence}; {plural(remaining, 'run')} unknown")
    return ExitCode.OK


def rebind_ledger(path: Path) -> int:
    """Remove the account and service from a ledger, so that the next batch binds it to its own."""
    asyncio.run(_rebind(_existing("--rebind", path)))
    output.print_info(f"{one_line(str(path))}: the next batch binds it to its own account and service")
    return ExitCode.OK


def _existing(option: str, path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"{option} {one_line(str(path))}: no such ledger")
    return path


async def _read_ledger(path: Path) -> tuple[LedgerCounts, tuple[Entry, ...]]:
    async with SQLiteLedger(path) as ledger:
        return await ledger.counts(), await ledger.unknown()


async def _rebind(path: Path) -> None:
    async with SQLiteLedger(path) as ledger:
        await ledger.rebind()


async def _apply_decision(path: Path, key: str, decision: str) -> int:
    async with SQLiteLedger(path) as ledger:
        match decision:
            case "resend":
                await ledger.approve_resend(key)
            case "abandon":
                await ledger.abandon(key)
            case _:
                await ledger.resolve(key, decision.removeprefix(_RUN))
        return (await ledger.counts()).unknown


def _print_unknown(path: Path, unknown: tuple[Entry, ...]) -> None:
    """Print the unknown runs, and what can be done about them."""
    if not unknown:
        return
    output.print_result("")
    heads = ("unknown", "sent (UTC)", "target", "why")
    output.print_table(heads, [(entry.key, _sent_at(entry), entry.target, entry.note) for entry in unknown])
    output.flush_stdout()  # results before messages at a terminal
    output.print_info(
        "They may have run and been charged; `knouds usage` shows what did. The next batch looks for them there. "
        f"Decide with `knouds batch --resolve {shlex.quote(str(path))} KEY resend|abandon|run=ID`."
    )


def _entry_record(entry: Entry) -> dict[str, Any]:
    sent = _sent_at(entry)
    return {
        "key": entry.key,
        "target": entry.target,
        "sent_at": None if sent is None else sent.isoformat(),
        "execution_id": entry.execution_id,
        "why": entry.note,
    }


def _sent_at(entry: Entry) -> datetime | None:
    return None if entry.sent_at is None else datetime.fromtimestamp(entry.sent_at, UTC)
