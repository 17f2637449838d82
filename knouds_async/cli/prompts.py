"""The demo's prompts: one JSON object per line, from the package or, in a checkout, from `examples/`."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from knouds_async.cli.exits import ServingError

_PROMPTS_FILE = "prompts.jsonl"


def read_prompts() -> list[dict[str, Any]]:
    """Return the inputs on each line; raises ServingError when the file is missing."""
    packed = files("knouds_async.cli").joinpath(_PROMPTS_FILE)
    checkout = Path(__file__).parents[2] / "examples" / _PROMPTS_FILE
    found = next((place for place in (packed, checkout) if place.is_file()), None)
    if found is None:
        raise ServingError(f"{_PROMPTS_FILE} is missing from this installation: reinstall knouds-async[cli]")
    return [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines() if line.strip()]
