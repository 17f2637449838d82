"""A judge that trusts the service alone: it compares its runs and charges with the ledger's file and the outcomes.

Rule of the file: the ledger is read with SQLite alone, and nothing of the library's own arithmetic is used.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from knouds_async.testing import Emulator, Run
from tests.scenarios.service import STRANGER, key_of

_OPEN = ("sending", "unknown", "resend_approved", "abandoned")


class ViolationError(AssertionError):
    """Something that must never be has happened."""


@attrs.frozen
class Told:
    """The outcome of one job that a process received: its kind, and the id of its run where there is one."""

    key: str
    kind: str
    execution_id: str | None = None
    media: str = ""


@attrs.define
class Judge:
    """What must hold, checked again and again."""

    services: Sequence[Emulator]
    path: Path
    approved: Counter[str] = attrs.Factory(Counter)
    _finals: dict[tuple[str, int], Mapping[str, Any]] = attrs.Factory(dict)

    def runs(self) -> list[Run]:
        """Return every run that was started for a job, at every service and for every account."""
        return [run for service in self.services for run in service.runs if key_of(run) != STRANGER]

    def rows(self) -> list[dict[str, Any]]:
        """Return what is on record."""
        if not self.path.exists():
            return []
        connection = sqlite3.connect(self.path, timeout=60)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute("SELECT * FROM jobs ORDER BY key, attempt")]
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise
        finally:
            connection.close()

    def check(self) -> None:
        """Raise ViolationError unless charges and ledger agree; at any moment, also while processes work."""
        rows = self.rows()  # first: what is begun after this is not held against it
        self._at_most_once()
        self._ids_are_the_services(rows)
        self._finals_stay(rows)
        for row in rows:
            if row["stage"] == "final" and row["execution_id"]:
                self._is_true(row)

    def check_at_rest(self) -> None:
        """The same, and that no run is lost; while no process works and no request is on its way."""
        self.check()
        for key, runs in _by_key(self.runs()).items():
            mine = [row for row in self.rows() if row["key"] == key]
            known = {row["execution_id"] for row in mine}
            lost = [run for run in runs if run.execution_id not in known]
            open_rows = [row for row in mine if row["stage"] in _OPEN and not row["execution_id"]]
            if len(lost) > len(open_rows):
                stands = [(row["attempt"], row["stage"], row["execution_id"]) for row in mine]
                raise ViolationError(f"{key}: run {lost[0].execution_id} is lost; the ledger says {stands}")

    def check_told(self, told: Sequence[Told], keys: Iterable[str], *, is_whole: bool) -> None:
        """Raise ViolationError unless each job has one outcome, a true one; `is_whole`: the pass came to its end."""
        counted = Counter(one.key for one in told)
        if twice := [key for key, count in counted.items() if count > 1]:
            raise ViolationError(f"{twice[0]} has two outcomes in one pass")
        if is_whole and (silent := set(keys) - set(counted)):
            raise ViolationError(f"{min(silent)} has no outcome in a pass that came to its end")
        runs = {run.execution_id: run for run in self.runs()}
        for one in told:
            self._is_truly_told(one, runs)

    def check_charges(self, before: float, cap: float | None, allowed: float) -> None:
        """Raise ViolationError when a pass with a cap has spent more than it may: what was spent before counts."""
        if cap is not None and self.charged() > max(before, cap) + allowed:
            raise ViolationError(f"{self.charged():g} credits are charged, over a cap of {cap:g} (before: {before:g})")

    def charged(self) -> float:
        """Return the credits that the jobs' runs have cost."""
        ours = {run.execution_id for run in self.runs()}
        return sum(charge.amount for one in self.services for charge in one.charges if charge.execution_id in ours)

    def check_results(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Raise ViolationError unless a file of results says what the ledger says."""
        last = {row["key"]: row for row in self.rows()}
        counted = Counter(line["key"] for line in lines)
        if twice := [key for key, count in counted.items() if count > 1]:
            raise ViolationError(f"{twice[0]} has two lines in the file of results")
        for line in lines:
            row = last.get(line["key"])
            known = (row["status"], row["execution_id"]) if row is not None and row["stage"] == "final" else None
            is_over = line["status"] in ("completed", "failed", "cancelled")
            if (is_over or known is not None) and known != (line["status"], line["execution_id"]):
                raise ViolationError(f"the results say {line['status']} {line['execution_id']}, the ledger {known}")
        if missing := {row["key"] for row in last.values() if row["stage"] == "final"} - set(counted):
            raise ViolationError(f"{min(missing)} is final in the ledger and has no line in the file of results")

    # One rule each.

    def _at_most_once(self) -> None:
        for key, runs in _by_key(self.runs()).items():
            if len(runs) > 1 + self.approved[key]:
                ids = [f"{run.execution_id[:8]} for {run.user}" for run in runs]
                raise ViolationError(
                    f"{key} ran {len(runs)} times ({', '.join(ids)}), {self.approved[key]} were approved"
                )

    def _ids_are_the_services(self, rows: Sequence[Mapping[str, Any]]) -> None:
        keys = {run.execution_id: key_of(run) for run in self.runs()}
        for row in rows:
            found = row["execution_id"]
            if found is not None and keys.get(found) != row["key"]:
                raise ViolationError(f"{row['key']} has the id {found} on record, which is of {keys.get(found)}")

    def _finals_stay(self, rows: Sequence[Mapping[str, Any]]) -> None:
        now = {(row["key"], row["attempt"]): row for row in rows}
        for name, row in self._finals.items():
            if now.get(name) != row:
                raise ViolationError(f"the final row {name} has changed: {row} became {now.get(name)}")
        self._finals = {name: row for name, row in now.items() if row["stage"] == "final"}

    def _is_true(self, row: Mapping[str, Any]) -> None:
        run = next(run for run in self.runs() if run.execution_id == row["execution_id"])
        if row["status"] != run.end:
            raise ViolationError(f"{row['key']} is {row['status']} on record, and its run {run.end}")
        said = json.loads(row["reply"]) if row["reply"] else None
        if isinstance(said, dict) and said.get("executionId", run.execution_id) != run.execution_id:
            raise ViolationError(f"{row['key']} has the result of another run on record: {said.get('executionId')}")

    def _is_truly_told(self, one: Told, runs: Mapping[str, Run]) -> None:
        run = runs.get(one.execution_id or "")
        if one.execution_id and (run is None or key_of(run) != one.key):
            raise ViolationError(f"{one.key} was told the id {one.execution_id}, which is not its own")
        if one.kind in ("Completed", "Failed", "Cancelled") and (run is None or run.end != one.kind.lower()):
            raise ViolationError(f"{one.key} was told {one.kind} of {one.execution_id}: {run and run.end}")
        if one.kind == "Completed" and run is not None and run.execution_id.replace("-", "") not in one.media:
            raise ViolationError(f"{one.key} was given the result of another run: {one.media}")


def _by_key(runs: Iterable[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(key_of(run), []).append(run)
    return found
