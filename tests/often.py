"""A client that polls often, for programs whose first run is short: another waits seconds before it polls at all.

Not a test: `python often.py PROGRAM ...` runs a program with it.
"""

import runpy
import sys
from typing import Any

import knouds_async


class Often(knouds_async.AsyncKnouds):
    """Polls five times a second."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **{"polling": knouds_async.Polling.every(0.2), **options})


if __name__ == "__main__":
    knouds_async.AsyncKnouds = Often  # type: ignore[misc]
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
