"""What the frames of this library hold while they call others: no password may be among their locals."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

_OURS = ("/knouds_async/", "/cyclopts/")
_HIDING = {"hide_url", "without_urls", "is_database_url", "Secret.__init__", "Secret.of"}
"""They take a URL as it was given, and fail for none."""


@contextmanager
def frames_that_show(secret: str) -> Iterator[set[str]]:
    """Collect the locals that show a secret, of every frame of ours that calls a function; each place counts once."""
    found, seen = set[str](), set[tuple[CodeType, int]]()

    def examine(frame: FrameType, event: str, _: Any) -> None:
        caller = frame.f_back
        if event != "call" or caller is None or (place := (caller.f_code, caller.f_lasti)) in seen:
            return
        name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
        if name not in _HIDING:
            seen.add(place)
            if _is_ours(caller.f_code.co_filename):
                shown = [name for name, value in list(caller.f_locals.items()) if secret in _shown(value)]
                found.update(f"{caller.f_code.co_filename}:{caller.f_code.co_name}: {name}" for name in shown)

    before = sys.getprofile()
    sys.setprofile(examine)
    threading.setprofile(examine)
    try:
        yield found
    finally:
        sys.setprofile(before)
        threading.setprofile(None)


def _is_ours(file: str) -> bool:
    return any(part in file for part in _OURS) and "/tests/" not in file


def _shown(value: object) -> str:
    """Return what a report would show of a local."""
    try:
        return repr(value)
    except Exception:  # noqa: BLE001  (half made)
        return ""
