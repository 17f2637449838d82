"""What a batch was asked to do, and the command that asks the same again."""

from __future__ import annotations

import shlex
from pathlib import Path

import attrs

from knouds_async import Target


@attrs.frozen(kw_only=True)
class BatchOptions:
    """A batch as the command line says it; `out` is None for stdout."""

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
        """The command that goes on with it, for a shell.

        Not with --retry-failed: the ledger has it by now, and what has failed since then would be paid for once more.
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
