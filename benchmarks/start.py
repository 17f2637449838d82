"""How long it takes to start: the import of the package and `knouds --help`, as CPU time of fresh interpreters.

Rule of the file: as after `pip install knouds-async`: there is byte code, and httpx does not find the libraries of its
own command line, which it would import.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs
from measure import OURS, Options, in_turns, ratio, show

__all__ = ["run"]

BELOW = "httpx, anyio, attrs, cattrs"
FIRST = f"{OURS}, and a client"
HTTPX = "httpx, and a client"
HELP = "knouds --help"
_PLAIN = "import sys; sys.modules.update(dict.fromkeys(('click', 'rich', 'pygments'))); "
PROGRAMS: dict[str, Sequence[str]] = {
    OURS: ("-c", f"{_PLAIN}import knouds_async"),
    BELOW: ("-c", f"{_PLAIN}import httpx, anyio, attrs, cattrs"),
    FIRST: ("-c", f"{_PLAIN}from knouds_async import AsyncKnouds; AsyncKnouds('knouds_live_none')"),
    HTTPX: ("-c", f"{_PLAIN}import httpx; httpx.AsyncClient()"),
    "openai": ("-c", "import openai"),
    "replicate": ("-c", "import replicate"),
    "fal-client": ("-c", "import fal_client"),
    HELP: ("-c", "import sys; sys.argv = ['knouds', '--help']; from knouds_async._cli import main; sys.exit(main())"),
}
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


@attrs.frozen
class Turn:
    """Seconds of CPU and wall."""

    cpu: float
    wall: float


def _start(arguments: Sequence[str]) -> Turn:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=_ENVIRONMENT)  # noqa: S603
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    return Turn(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)


def run(url: str, options: Options) -> dict[str, Any]:  # noqa: ARG001  (nothing is sent)
    """Start everything in turns, print the table, and return the figures."""
    for program in PROGRAMS.values():
        _start(program)  # the first writes the byte code
    measured = in_turns({name: partial(_start, program) for name, program in PROGRAMS.items()}, options.pick(15, 2))
    below = [turn.cpu for turn in measured[BELOW]]
    found, rows = dict[str, Any](), list[Any]()
    for name, turns in measured.items():
        cpu, wall = ratio([turn.cpu for turn in turns], [1e-3] * len(turns)), min(turn.wall for turn in turns)
        times = ratio([turn.cpu for turn in turns], below)
        found[name] = {"cpu_ms": cpu, "wall_s": wall, "times_what_is_below": times}
        rows.append((name, cpu, wall, times))
    show("starting", ("", "CPU ms", "wall s, best", f"CPU / {BELOW}"), rows)
    return found
