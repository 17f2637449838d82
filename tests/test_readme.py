"""The README is run: every Python block against the emulator, its commands and tables against what there is."""

import ast
import asyncio
import builtins
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import CodeType, FunctionType

import anyio
import attrs
import httpx
import pytest

import knouds_async
from knouds_async import AsyncKnouds, KnoudsError
from knouds_async.cli.exits import MEANINGS
from knouds_async.testing import Emulator, EmulatorTransport, Fault, VirtualTimeLoop, faults, serve

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

DEMO_COMMAND = "python -m pip install '.[cli,testing]' && knouds demo"
TEST_COMMAND = (
    "python -m pip install --upgrade pip && python -m pip install -e '.[cli,testing]' --group tests "
    "&& python -m pytest -q"
)
UNKNOWN = "When the outcome of a submit is unknown"


@attrs.frozen
class Block:
    """One fenced block: its language, the heading it stands under, the line of its fence, its text."""

    language: str
    heading: str
    line: int
    source: str

    @property
    def is_program(self) -> bool:
        """Whether it is run as it stands, in a process of its own."""
        return re.search(r"^(asyncio|trio)\.run\(", self.source, re.MULTILINE) is not None

    @property
    def is_test_file(self) -> bool:
        """Whether it is run by pytest."""
        return "def test_" in self.source

    def compiled(self) -> CodeType:
        """Compile it as a snippet that may await, with the README's line numbers."""
        source = "\n" * self.line + self.source
        code: CodeType = compile(source, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        return code


def _blocks() -> list[Block]:
    heading_or_fence = re.compile(
        r"^#{1,3} (?P<heading>[^\n]+)$|^```(?P<language>\w*)\n(?P<source>.*?)^```$", re.M | re.S
    )
    found, heading = [], ""
    for part in heading_or_fence.finditer(README):
        if part["heading"]:
            heading = part["heading"]
        else:
            line = README.count("\n", 0, part.start()) + 1
            found.append(Block(part["language"], heading, line, part["source"]))
    return found


BLOCKS = _blocks()
PYTHON = [block for block in BLOCKS if block.language == "python"]
PROGRAMS = [block for block in PYTHON if block.is_program]
TEST_FILES = [block for block in PYTHON if block.is_test_file]
SNIPPETS = [block for block in PYTHON if not (block.is_program or block.is_test_file)]
SECTIONS = list(dict.fromkeys(block.heading for block in SNIPPETS))


def test_every_kind_of_block_is_found() -> None:
    """The README has programs, a test file and snippets: a change of its form cannot empty these tests."""
    assert (len(PROGRAMS), len(TEST_FILES)) == (2, 1)
    assert len(SNIPPETS) >= 10
    assert UNKNOWN in SECTIONS


def _run_in_virtual_time(section: str, emulator: Emulator) -> None:
    """Run a section's snippets one after the other, as a reader would: `knouds` and `asyncio` are there."""

    async def read_on() -> None:
        async with httpx.AsyncClient(transport=EmulatorTransport(emulator, latency=0.04)) as http:
            knouds = AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http)
            await knouds.whoami()  # a client that has been in use knows the service's clock
            names = {"knouds": knouds, "asyncio": asyncio, "__name__": "readme", "__builtins__": builtins}
            for block in SNIPPETS:
                if block.heading == section:
                    ran = FunctionType(block.compiled(), names)()
                    if inspect.iscoroutine(ran):
                        await ran
            await knouds.aclose()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(read_on())


@pytest.mark.parametrize("section", SECTIONS)
def test_snippets_run(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A section's snippets run as they stand, pay for each run once and provoke no 429."""
    emulator = Emulator(tier="business", duration=45.0)
    monkeypatch.setenv("KNOUDS_KEY", emulator.api_key)
    monkeypatch.setenv("KNOUDS_BASE_URL", "https://knouds.test")
    monkeypatch.setenv("KNOUDS_WEBHOOK_SECRET", "whsec_of_the_readme_0123456789")
    _run_in_virtual_time(section, emulator)
    emulator.assert_charged_once(allow_equal_inputs=True)
    emulator.assert_no_429()


@pytest.mark.parametrize(
    ("fault", "rows_shown"),
    [pytest.param(faults.closed(after_run=True), 1, id="ran"), pytest.param(faults.closed(), 0, id="not run")],
)
def test_unknown_submit_is_settled(fault: Fault, rows_shown: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The advice for an unknown submit leads to one run, whether or not the lost one had begun."""
    emulator = Emulator(tier="business", duration=45.0)
    emulator.faults.add(fault, route="POST /api/workflows/:slug/run", nth=1)
    _run_in_virtual_time(UNKNOWN, emulator)
    assert len(emulator.runs) == 1
    assert len(capsys.readouterr().out.splitlines()) == rows_shown


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: f"line {block.line}")
async def test_programs_run_on_a_port(block: Block) -> None:
    """A whole program of the README runs in a process of its own and prints one image."""
    emulator = Emulator(duration=0.2)
    async with serve(emulator) as url:
        environment = {**os.environ, "KNOUDS_KEY": emulator.api_key, "KNOUDS_BASE_URL": url}
        command = [sys.executable, "-W", "error", "-c", block.source]
        done = await anyio.run_process(command, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"https://")
    assert len(emulator.runs) == 1


@pytest.mark.parametrize("block", TEST_FILES, ids=lambda block: f"line {block.line}")
def test_the_test_file_passes(block: Block, tmp_path: Path) -> None:
    """The tests that the README shows pass on both backends, in a project that has no settings of its own."""
    (tmp_path / "test_shown.py").write_text(block.source, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_the_two_commands_are_these() -> None:
    """The README's shell blocks are the demo and the tests, and nothing else."""
    assert [block.source.strip() for block in BLOCKS if block.language == "sh"] == [DEMO_COMMAND, TEST_COMMAND]


def test_ci_runs_the_test_command() -> None:
    """`.ci/run` can be run and holds the README's test command as it stands, on a line of its own."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines().count(TEST_COMMAND) == 1


def test_exit_codes_are_those_of_the_command_line() -> None:
    """The README's table of exit codes is the one that `knouds --help` shows."""
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", README, re.MULTILINE))
    assert {code: text.replace("`", "") for code, text in rows.items()} == {
        str(code.value): meaning for code, meaning in MEANINGS.items()
    }


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md"])
def test_documents_name_only_errors_that_exist(document: str) -> None:
    """Every error that a document names is public."""
    named = set(re.findall(r"\b[A-Z]\w+Error\b", (ROOT / document).read_text(encoding="utf-8")))
    assert named <= set(knouds_async.__all__)


def _rows_of_the_error_table() -> dict[str, str]:
    table = README.partition("| Error | Money |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    return {name: money.strip() for names, money in rows for name in re.findall(r"\w+Error\b", names)}


@pytest.mark.parametrize(("name", "money"), _rows_of_the_error_table().items())
def test_error_table_agrees_with_may_have_run(name: str, money: str) -> None:
    """An error that the README calls harmless says that nothing ran, and one that may cost says that it may."""
    kind = getattr(knouds_async, name)
    assert issubclass(kind, KnoudsError)
    if name == "ServiceError":  # the one error of which only the instance can tell
        assert money.startswith("`may_have_run` tells")
    else:
        assert kind.may_have_run is not money.startswith("none")


@pytest.mark.parametrize("document", ["README.md", "examples/README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(document: str) -> None:
    """Every relative link of a document leads to a file or folder that is there."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text(encoding="utf-8"))
    assert links
    folder = (ROOT / document).parent
    assert [link for link in links if not (folder / link).exists()] == []
