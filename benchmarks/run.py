"""All benchmarks of the client: one server process, one client process, ratios, results.json and a plot.

Run it with `python benchmarks/run.py [--quick] [per_call fan_out waiting start decode]`. `--quick` shows in about a
minute that everything runs; only a full run writes `results.json` and `results.svg` next to this file.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import decode
import fan_out
import per_call
import start
import waiting
from measure import Options, Ratio
from plot import plot
from server import serving

HERE = Path(__file__).parent
PARTS = {"start": start, "decode": decode, "per_call": per_call, "fan_out": fan_out, "waiting": waiting}
PACKAGES = ("knouds-async", "httpx", "aiohttp", "replicate", "fal-client", "openai", "anyio", "trio")


def _plain(value: object) -> object:
    """Convert values that JSON does not know."""
    if isinstance(value, Ratio):
        return {name: round(figure, 4) for name, figure in attrs.asdict(value).items()}
    raise TypeError(type(value))


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all when none is named")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    results: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    for name in given.parts or PARTS:
        with serving() as url:
            results[name] = PARTS[name].run(url, Options(quick=given.quick))
    if not given.quick:
        file = HERE / "results.json"
        before = json.loads(file.read_text()) if given.parts and file.exists() else {}
        shown = json.loads(
            json.dumps({**before, **results}, default=_plain), parse_float=lambda text: round(float(text), 4)
        )
        file.write_text(json.dumps(shown, indent=1) + "\n")
        (HERE / "results.svg").write_text(plot(shown))


if __name__ == "__main__":
    main()
