"""The options of a batch, and the command that resumes it."""

from __future__ import annotations

import shlex
from pathlib import Path

import attrs

from knouds_async import Target


@attrs.frozen(kw_only=True)
class BatchOptions:
    """The options of a batch; `out` is None for stdout."""

    target: Target
    jobs: Path
    ledger: Path
    out: Path | None = None
    max_in_flight: int | None = None
    max_credits: float | None = None
    retry_failed: bool = False
    expected: float | None = None
    save: Path | None = None
    as_json: bool = False
    base_url: str | None = None

    @property
    def resume_command(self) -> str:
        """The command that resumes the batch, for a shell.

        Without --retry-failed: the ledger has recorded it, and runs that failed since then would be paid for again.
        """
        options: dict[str, object] = {
            "--model": self.target.kind == "models",
            "--ledger": self.ledger,
            "--out": self.out,
            "--max-in-flight": self.max_in_flight,
            "--max-credits": None if self.max_credits is None else f"{self.max_credits:.15g}",
            "--expected": None if self.expected is None else f"{self.expected:.15g}",
            "--save": self.save,
            "--json": self.as_json,
            "--base-url": self.base_url,
        }
        words = ["knouds", "batch", self.target.name, str(self.jobs)]
        for option, value in options.items():
            if value is not None and value is not False:
                words += [option] if value is True else [option, str(value)]
        return shlex.join(words)
