"""The page about the emulator lists what there is: each fault, each short name, each route of the control API."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from knouds_async.testing import Emulator
from knouds_async.testing.faults import GRAMMAR, KINDS, PLACES

PAGE = (Path(__file__).parent.parent.parent / "docs" / "emulator.md").read_text(encoding="utf-8")


def test_every_fault_is_listed() -> None:
    """The table of faults names each kind, and no other; the grammar is the one that is read."""
    table = PAGE.partition("| What goes wrong |")[2].partition("\n\n")[0]
    assert {name.partition(" ")[0] for name in re.findall(r"`([^`]+)`", table)} == set(KINDS)
    assert f"    {GRAMMAR}\n" in PAGE
    assert all(f"`{name}`" in PAGE for name in PLACES)


def test_every_route_is_listed(ask: Any) -> None:
    """The table of the control API is the one that it gives itself."""
    listed = re.findall(r"^\| `([A-Z]+ /__emulator__/[^`]*)` \|", PAGE, re.MULTILINE)
    assert sorted(listed) == sorted(ask(Emulator()).json("GET /__emulator__/")["routes"])
