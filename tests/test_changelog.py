"""The changelog keeps its form, and speaks of what there is."""

import importlib
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import knouds_async

ROOT = Path(__file__).parent.parent
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
DOTTED = re.compile(r"`(knouds(?:_async)?(?:\.\w+)+)(?:\([^`]*\))?`")


def _sections() -> dict[str, str]:
    """Return the text of each release, by its heading."""
    _, *parts = re.split(r"^## (.+)$", CHANGELOG, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _entries() -> list[str]:
    """Return all entries, each as one line."""
    found = re.findall(r"^- (.*(?:\n  .*)*)$", CHANGELOG, re.MULTILINE)
    return [re.sub(r"\s+", " ", entry) for entry in found]


def test_releases_come_newest_first() -> None:
    """What is not released yet stands on top, and each release has a version and a date."""
    first, *released = _sections()
    assert first == "[Unreleased]"
    dated = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d", heading) for heading in released]
    assert all(dated)
    numbers = [tuple(map(int, match[1].split("."))) for match in dated if match]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[:1] == [tuple(map(int, version("knouds-async").split(".")))]


def test_the_documents_speak_of_the_same_release() -> None:
    """Where they say how to install it, they name the version that the changelog dates."""
    released = re.findall(r"^## \[(\d[\d.]+)\] - ", CHANGELOG, re.MULTILINE)
    for name in ("README.md", "docs/index.md", "docs/getting-started.md"):
        page = (ROOT / name).read_text(encoding="utf-8")
        assert re.findall(r"\b(\d+\.\d+\.\d+) is the first release; until it is on the\sindex", page) == [released[-1]]


def test_changes_stand_under_their_kinds() -> None:
    """Each release groups its entries by the kinds of Keep a Changelog, in their order."""
    for section in _sections().values():
        kinds = re.findall(r"^### (.+)$", section, re.MULTILINE)
        assert kinds == [kind for kind in KINDS if kind in kinds]
        assert not section.strip() or section.lstrip().startswith("### ")


def test_every_entry_is_a_sentence() -> None:
    """An entry ends as a sentence does, no two are alike, and no line is left between them."""
    entries = _entries()
    assert len(entries) >= 15
    assert [entry for entry in entries if not entry.endswith(".")] == []
    assert len(entries) == len(set(entries))
    prose = [line for line in CHANGELOG.partition("## ")[2].splitlines() if line and line[0] not in "#-["]
    assert [line for line in prose if not line.startswith("  ")] == []


def test_what_it_names_is_there() -> None:
    """Every dotted name of ours that an entry has can be reached."""
    named = {name for entry in _entries() for name in DOTTED.findall(entry)}
    assert "knouds.download" in named
    assert [name for name in named if not _is_there(name)] == []


def _is_there(dotted: str) -> bool:
    first, *rest = dotted.split(".")
    found: Any = knouds_async.AsyncKnouds("key") if first == "knouds" else knouds_async
    for name in rest:
        if not hasattr(found, name):
            try:
                importlib.import_module(f"{found.__name__}.{name}")
            except (ImportError, AttributeError):
                return False
        found = getattr(found, name)
    return True
