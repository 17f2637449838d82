"""What the README and the docs say in commands and tables is true; `test_documents` runs their Python."""

import os
import re
from pathlib import Path

import attrs

import knouds_async
from knouds_async import KnoudsError, Polling, Retries, Timeouts
from knouds_async._cli.errors import MEANINGS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND_LINE = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
ERRORS = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")

INSTALL_COMMAND = "python -m pip install knouds-async"
DEMO_COMMAND = "python -m pip install '.[cli]' && knouds demo"
TEST_COMMAND = (
    "python -m pip install --upgrade pip && python -m pip install -e '.[cli,testing]' --group tests "
    "&& python -m pytest -q"
)


def test_the_commands_are_these() -> None:
    """The README's shell blocks are the installation, the demo and the tests, and nothing else."""
    commands = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert [command.strip() for command in commands] == [INSTALL_COMMAND, DEMO_COMMAND, TEST_COMMAND]


def test_the_readme_fits_three_screens() -> None:
    """The README is short enough to be read; tables of detail have pages of their own."""
    assert len(README.splitlines()) <= 150


def test_every_link_is_absolute() -> None:
    """The README is the page of the package on the index, too, where a relative link leads nowhere."""
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 20
    assert [link for link in links if not link.startswith("https://")] == []


def test_ci_runs_the_test_command() -> None:
    """`.ci/run` can be run, and ends with the README's test command as it stands and then the slow tests."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[-2:] == [TEST_COMMAND, "python -m pytest -q -m slow"]


def test_exit_codes_are_those_of_the_command_line() -> None:
    """The table of exit codes is the same as in `knouds --help`."""
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", COMMAND_LINE, re.MULTILINE))
    assert {code: text.replace("`", "") for code, text in rows.items()} == {
        str(code.value): meaning for code, meaning in MEANINGS.items()
    }


def _rows_of_the_error_table() -> dict[str, str]:
    table = ERRORS.partition("| Error | Money |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    return {name: money.strip() for names, money in rows for name in re.findall(r"\w+Error\b", names)}


def test_error_table_agrees_with_may_have_run() -> None:
    """An error that the docs call harmless says that nothing ran, and one that may cost says that it may."""
    rows = _rows_of_the_error_table()
    assert len(rows) > 20
    assert rows.pop("ServiceError").startswith("`may_have_run` says")  # the one error of which only the instance knows
    kinds = {name: getattr(knouds_async, name) for name in rows}
    assert [name for name, kind in kinds.items() if not issubclass(kind, KnoudsError)] == []
    assert [name for name, kind in kinds.items() if kind.may_have_run is rows[name].startswith("none")] == []


def test_the_options_have_the_defaults_that_the_docs_give() -> None:
    """Each number in the page of options is the default of the field that it stands with, and none is left out."""
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    given = re.findall(r"`(\w+)` \(([\d.]+)\)", page)
    for names, default in re.findall(r"^\| (`.+?`) \| .+ \| (\d+) \|$", page, re.MULTILINE):
        given += [(name, default) for name in re.findall(r"`(\w+)`", names)]
    fields = [field for kind in (Timeouts, Retries, Polling) for field in attrs.fields(kind)]
    defaults = {field.name: field.default for field in fields if type(field.default) in (int, float)}
    assert {name: float(default) for name, default in given} == defaults
