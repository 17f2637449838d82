"""The README and the docs are run: every Python block against the emulator, as a reader would run it."""

import ast
import asyncio
import builtins
import inspect
import logging
import os
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from types import CodeType, FunctionType

import anyio
import attrs
import httpx
import pytest

import knouds_async
import knouds_async.testing
import knouds_async.webhooks
from knouds_async import AsyncKnouds
from knouds_async.testing import Emulator, EmulatorTransport, Fault, VirtualTimeLoop, faults, serve

ROOT = Path(__file__).parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md"))}
DOCUMENTS = {"README.md": (ROOT / "README.md").read_text(encoding="utf-8"), **PAGES}
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")
ALL_DOCUMENTS = DOCUMENTS | {name: (ROOT / name).read_text(encoding="utf-8") for name in BESIDE}
DIRECTIVES = ("{toctree}", "{eval-rst}", "{include}")
REPOSITORY = "https://github.com/knouds/knouds-async/blob/main/"  # of the README's links, which are absolute
UNKNOWN = "docs/errors.md: When the outcome of a submit is unknown"


@attrs.frozen
class Block:
    """One fenced block: its language, the section it stands in, the line of its fence, its text."""

    language: str
    document: str
    heading: str
    line: int
    source: str

    @property
    def section(self) -> str:
        """Name the section, by document and heading."""
        return f"{self.document}: {self.heading}"

    @property
    def place(self) -> str:
        """Name the block, by document and line."""
        return f"{self.document}:{self.line}"

    @property
    def is_program(self) -> bool:
        """Whether it is run as it stands, in a process of its own."""
        return re.search(r"^(asyncio|trio)\.run\(", self.source, re.MULTILINE) is not None

    @property
    def file_name(self) -> str:
        """The file that it is, by its first line; a test without a name has one all the same; "" for a snippet."""
        named = re.match(r"# (\w+\.py)\n", self.source)
        if named:
            return named[1]
        return "test_shown.py" if "def test_" in self.source else ""

    def compiled(self) -> CodeType:
        """Compile it as a snippet that may await, with the document's line numbers."""
        source = "\n" * self.line + self.source
        code: CodeType = compile(source, self.document, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        return code


def _blocks(document: str) -> Iterable[Block]:
    text = DOCUMENTS[document]
    heading_or_fence = re.compile(
        r"^#{1,3} (?P<heading>[^\n]+)$|^```(?P<language>[^\n]*)\n(?P<source>.*?)^```$", re.M | re.S
    )
    heading = ""
    for part in heading_or_fence.finditer(text):
        if part["heading"]:
            heading = part["heading"]
        else:
            yield Block(part["language"], document, heading, text.count("\n", 0, part.start()) + 1, part["source"])


PYTHON = [block for document in DOCUMENTS for block in _blocks(document) if block.language == "python"]
PROGRAMS = [block for block in PYTHON if block.is_program]
FILES = [block for block in PYTHON if block.file_name and not block.is_program]
SNIPPETS = [block for block in PYTHON if not (block.is_program or block.file_name)]
SECTIONS = list(dict.fromkeys(block.section for block in SNIPPETS))
PROJECTS = {
    section: {block.file_name: block.source for block in blocks}
    for section, blocks in groupby(FILES, key=lambda block: block.section)
}


def test_every_kind_of_block_is_found() -> None:
    """There are programs, projects and snippets: a change of form cannot empty these tests."""
    assert len([block for block in PROGRAMS if block.document == "README.md"]) == 1
    assert len([block for block in PROGRAMS if "import trio" in block.source]) >= 1
    assert len(SNIPPETS) >= 20
    assert len([section for section in PROJECTS if section.startswith("docs/testing.md")]) >= 5
    assert UNKNOWN in SECTIONS


def test_no_python_block_hides() -> None:
    """Every fence that holds Python is marked `python`, which is how these tests find it."""
    languages = {block.language for document in DOCUMENTS for block in _blocks(document)}
    assert {language.partition(" ")[0] for language in languages} <= {"python", "sh", "", *DIRECTIVES}
    indented = [name for name, text in DOCUMENTS.items() if re.search(r"^[ \t]+```|^~~~", text, re.MULTILINE)]
    assert indented == []


def _run_in_virtual_time(section: str, emulator: Emulator, *, is_in_use: bool = False) -> None:
    """Run a section's snippets one after the other, as a reader would: `knouds` and `asyncio` are there.

    `is_in_use`: the client has submitted a run before, which a proof needs to see in the usage.
    """

    async def read_on() -> None:
        async with httpx.AsyncClient(transport=EmulatorTransport(emulator, latency=0.04)) as http:
            knouds = AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http)
            await knouds.whoami()  # a client that has been in use knows the service's clock
            if is_in_use:
                await knouds.workflows.submit("my-thumbnail-pipeline", {"product_name": "a run before"})
            names = {"knouds": knouds, "asyncio": asyncio, "__name__": "readme", "__builtins__": builtins}
            for block in SNIPPETS:
                if block.section == section:
                    ran = FunctionType(block.compiled(), names)()
                    if inspect.iscoroutine(ran):
                        await ran
            await knouds.aclose()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(read_on())


@pytest.mark.parametrize("section", SECTIONS)
def test_snippets_run(section: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A section's snippets run as they stand, pay for each run once and provoke no 429."""
    emulator = Emulator(tier="business", duration=45.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNOUDS_KEY", emulator.api_key)
    monkeypatch.setenv("KNOUDS_BASE_URL", "https://knouds.test")
    monkeypatch.setenv("KNOUDS_WEBHOOK_SECRET", "whsec_of_the_readme_0123456789")
    monkeypatch.setattr(logging.getLogger("knouds_async"), "handlers", [])  # a snippet may add its own
    _run_in_virtual_time(section, emulator)
    emulator.assert_charged_once(allow_equal_inputs=True)
    emulator.assert_no_429()


def test_a_failed_run_loses_no_result_in_a_task_group(capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe for many runs at once shows every paid result when some fail."""
    emulator = Emulator(tier="business", duration=45.0, failure_rate=0.1)
    _run_in_virtual_time("docs/runs.md: Many at once", emulator)
    failed = sum(run.status == "failed" for run in emulator.runs)
    printed = capsys.readouterr().out
    assert 0 < failed < 100
    assert printed.count("https://") == 100 - failed
    assert printed.endswith(f" {failed} failures\n")


@pytest.mark.parametrize(
    ("fault", "rows_shown"),
    [pytest.param(faults.closed(after_run=True), 1, id="ran"), pytest.param(faults.closed(), 0, id="not run")],
)
def test_unknown_submit_is_settled(fault: Fault, rows_shown: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The advice for an unknown submit leads to one run, whether or not the lost one had begun."""
    emulator = Emulator(tier="business", duration=45.0)
    emulator.faults.add(fault, route="POST /api/workflows/:slug/run", nth=2)
    _run_in_virtual_time(UNKNOWN, emulator, is_in_use=True)
    assert len(emulator.runs) == 2
    assert len(capsys.readouterr().out.splitlines()) == rows_shown


@pytest.mark.parametrize(
    ("fault", "runs", "said"),
    [
        pytest.param(faults.closed(after_run=True), 2, "kie_", id="ran"),
        pytest.param(faults.closed(), 1, "it did not run", id="not run"),
        pytest.param(faults.truncated(), 2, "", id="ran, and the id came through"),
    ],
)
def test_unknown_submit_is_judged(fault: Fault, runs: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What the docs do about an unknown submit sends nothing again, and says what became of it."""
    emulator = Emulator(tier="business", duration=45.0)
    emulator.faults.add(fault, route="POST /api/workflows/:slug/run", nth=2)
    _run_in_virtual_time("docs/how-it-works.md: Money", emulator, is_in_use=True)
    assert len(emulator.runs) == runs
    printed = capsys.readouterr().out
    assert said in printed
    assert bool(said) is bool(printed)


async def _run_program(block: Block, emulator: Emulator, folder: Path, *, times: int = 1) -> list[str]:
    """Run a program so many times, each in a process of its own, and return what each printed."""
    program = folder / "program.py"
    program.write_text(block.source, encoding="utf-8")
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("often.py")), str(program)]
    printed = []
    async with serve(emulator) as url:
        environment = {**os.environ, "KNOUDS_KEY": emulator.api_key, "KNOUDS_BASE_URL": url}
        for _ in range(times):
            done = await anyio.run_process(command, env=environment, cwd=folder, check=False)
            assert (done.returncode, done.stderr) == (0, b"")
            printed.append(done.stdout.decode())
    return printed


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.place)
async def test_programs_run_on_a_port(block: Block, tmp_path: Path) -> None:
    """A whole program runs in a process of its own, says something and pays for each run once.

    One with a ledger is run twice: it says the same again, for nothing.
    """
    emulator = Emulator(tier="business", duration=0.2)
    for printed in await _run_program(block, emulator, tmp_path, times=2 if "ledger=" in block.source else 1):
        assert "https://" in printed
    assert emulator.runs
    emulator.assert_charged_once()


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_failed_run_loses_no_result_in_the_readme(tmp_path: Path) -> None:
    """The README's example shows every paid result when some runs fail, and again when it is started again."""
    (block,) = (block for block in PROGRAMS if block.document == "README.md")
    emulator = Emulator(tier="business", duration=0.2, failure_rate=0.05)
    printed = await _run_program(block, emulator, tmp_path, times=2)
    completed = [run for run in emulator.runs if run.status == "completed"]
    assert len(emulator.runs) == 100
    assert 0 < len(completed) < 100
    for text in printed:
        lines = text.splitlines()
        assert len([line for line in lines if re.fullmatch(r"cup-\d+ https://\S+", line)]) == len(completed)
        assert len([line for line in lines if line.startswith("not completed: Failed(")]) == 100 - len(completed)
    emulator.assert_charged_once()


@pytest.mark.slow
def test_programs_and_apps_are_typed(tmp_path: Path) -> None:
    """`mypy --strict` has nothing to say about what a reader may copy as a whole: programs, files, and web apps."""
    apps = [block for block in SNIPPETS if re.search(r"^app = ", block.source, re.MULTILINE)]
    shown = [*PROGRAMS, *apps, *(block for block in FILES if "def test_" not in block.source)]
    assert len(apps) >= 2
    names = [f"{block.document.replace('/', '_').replace('.', '_')}_{block.line}.py" for block in shown]
    for name, block in zip(names, shown, strict=True):
        (tmp_path / name).write_text(block.source, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), *names]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("project", PROJECTS.values(), ids=PROJECTS)
def test_projects_pass_their_tests(project: Mapping[str, str], tmp_path: Path) -> None:
    """The files of a section stand together, in a project that has no settings, and pass its tests on both backends."""
    for name, source in project.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    plugins = [f"-pno:{name}" for name in ("cacheprovider", "asyncio", "schemathesis")]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "-W", "error"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    tests = sum(len(re.findall(r"^async def test_", source, re.MULTILINE)) for source in project.values())
    assert tests
    (passed,) = re.findall(r"^(\d+) passed in ", done.stdout, re.MULTILINE)
    assert int(passed) >= 2 * tests


def test_documents_name_only_errors_that_exist() -> None:
    """Every error that a document names is public, of Python's own, or made by the document itself."""
    unknown = []
    for document, text in ALL_DOCUMENTS.items():
        own = re.findall(r"^class (\w+Error)\b", text, re.MULTILINE)
        known = {*knouds_async.__all__, *vars(builtins), *own}
        unknown += [(document, name) for name in re.findall(r"\b[A-Z]\w+Error\b", text) if name not in known]
    assert unknown == []


def test_the_map_names_files_that_exist() -> None:
    """Every file and folder in the contributing guide's map is there, in the folder it is listed under."""
    guide, package = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), Path(knouds_async.__file__).parent
    (drawn,) = re.findall(r"^## The map$(.*?)^## ", guide, re.MULTILINE | re.DOTALL)
    folder, places = "", list[tuple[str, str]]()
    for line in drawn.splitlines():
        names = re.findall(r"(?<![\w*/-])[\w-]+(?:/[\w-]*)*(?:/|\.py|\.json|\.md)(?!\w)", line)
        folder = folder if line.startswith("  ") else (names or [""])[0]
        places += [(folder, name) for name in names]
    assert len(places) >= 40
    roots = (package, package.parent, ROOT)  # the wheel that is under test has no checkout around it
    lost = [
        name
        for folder, name in places
        if not any((at / name).exists() or (at / folder / name).exists() for at in roots)
    ]
    assert lost == []


def test_links_lead_somewhere() -> None:
    """Every relative link of a document leads to a file or folder that is there, and to a heading if it names one."""
    links = [
        (document, link)
        for document, text in ALL_DOCUMENTS.items()
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text.replace(f"]({REPOSITORY}", "]("))
    ]
    assert sum(document == "README.md" for document, _ in links) > 20
    assert [(document, link) for document, link in links if not _leads_somewhere(document, link)] == []


def _leads_somewhere(document: str, link: str) -> bool:
    place, _, heading = link.partition("#")
    target = (ROOT / document).parent / place if place else ROOT / document
    if not target.exists():
        return False
    headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
    return not heading or heading in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_files_that_documents_name_exist() -> None:
    """Every file or folder of the repository that a document names by its path is there."""
    roots = (ROOT, Path(knouds_async.__file__).parent)
    path = re.compile(r"`((?:tests|docs|examples|benchmarks|_\w+|testing|webhooks)/[\w./-]*)`")
    named = [(document, name) for document, text in ALL_DOCUMENTS.items() for name in path.findall(text)]
    named.remove(("CONTRIBUTING.md", "docs/_build"))  # which is built
    assert len(named) >= 20
    assert [each for each in named if not any((root / each[1]).exists() for root in roots)] == []


def test_every_citation_of_the_contract_leads_somewhere() -> None:
    """Each section of the contract that code, tests or docs cite by its number is a section of the page."""
    sections = set(re.findall(r"^## (\d+)\. ", DOCUMENTS["docs/api-contract.md"], re.MULTILINE))
    folders = (Path(knouds_async.__file__).parent, *(ROOT / name for name in ("tests", "benchmarks", "docs")))
    cited: dict[str, set[str]] = {}
    for path in (path for folder in folders for path in folder.rglob("*.*") if path.suffix in (".py", ".md")):
        for numbers in re.findall(r"\b[Cc]ontract (\d+(?:(?:, | and )\d+)*)", path.read_text(encoding="utf-8")):
            cited.setdefault(path.name, set()).update(re.findall(r"\d+", numbers))
    assert len(cited) >= 10
    assert {name: numbers - sections for name, numbers in cited.items() if numbers - sections} == {}


def test_every_page_is_in_the_table_of_contents() -> None:
    """No page of the docs is left out of the index, and the README points at each."""
    index = DOCUMENTS["docs/index.md"]
    (listed,) = re.findall(r"^```{toctree}\n(?::\w+:[^\n]*\n)*\n(.*?)^```$", index, re.MULTILINE | re.DOTALL)
    pages = {Path(page).stem for page in PAGES} - {"index"}
    assert set(listed.split()) == pages
    assert {page for page in pages if f"docs/{page}.md" not in DOCUMENTS["README.md"]} <= {"changelog"}


def test_language_models_are_shown_every_page() -> None:
    """`llms.txt` has the form of its kind, and links every page of the docs."""
    text = (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8")
    assert re.match(r"# knouds_async\n\n> ", text)
    linked = re.findall(rf"^- \[[^]]+\]\({re.escape(REPOSITORY)}docs/([\w-]+)\.md\): \S", text, re.MULTILINE)
    assert sorted(linked) == sorted({Path(page).stem for page in PAGES} - {"index"})


def test_the_reference_has_every_public_name() -> None:
    """The reference has every public name, and no name that cannot be imported."""
    listed = re.findall(r"^\.\. (?:auto|py:)\w+:: (\S+)$", DOCUMENTS["docs/reference.md"], re.MULTILINE)
    assert len(listed) == len(set(listed))
    own = {f"knouds_async.{name}" for name in knouds_async.__all__}
    for module in (knouds_async.testing, knouds_async.webhooks):
        own |= {f"{module.__name__}.{name}" for name in set(module.__all__) - set(knouds_async.__all__)}
    assert own - set(listed) == set()
    assert [name for name in listed if pydoc.locate(name) is None] == []


def test_the_reference_leaves_out_only_what_there_is() -> None:
    """A member that the reference excludes exists: one that was renamed would be shown to users."""
    found = r"^\.\. auto\w+:: (\S+)\n(?:   :inherited-members:\n)?   :exclude-members: (.+)$"
    blocks = re.findall(found, DOCUMENTS["docs/reference.md"], re.MULTILINE)
    assert len(blocks) > 3
    left_out = [(owner, name) for owner, names in blocks for name in names.split(", ")]
    assert [each for each in left_out if not hasattr(pydoc.locate(each[0]), each[1])] == []


POSTGRES, SCENARIOS = "postgres/test_", "scenarios/test_"
HELD_BY = {
    "the database restarts": f"{POSTGRES}ledger::test_a_batch_while_the_database_restarts",
    "it is away for more than 60 s": f"{POSTGRES}ledger::test_a_database_that_is_away_for_too_long_ends_the_batch",
    "an answer to a commit is lost": f"{POSTGRES}database::test_a_commit_in_doubt_is_found_out",
    "a standby is not promoted yet": f"{POSTGRES}ledger::test_a_failover_to_a_replica_that_is_behind",
    "a failover, or a restored backup, has lost commits": (
        f"{POSTGRES}ledger::test_a_failover_that_lost_nothing_is_settled_by_the_usage_rows",
        f"{POSTGRES}ledger::test_processes_that_live_restore_what_a_failover_lost",
        f"{POSTGRES}ledger::test_a_backup_that_was_restored",
    ),
    "a run that a failover lost stays missing": f"{POSTGRES}ledger::test_a_run_that_a_failover_lost_stops_the_batch",
    "a process is cut off from the database after a submit has left": (
        f"{POSTGRES}ledger::test_an_id_that_waits_for_the_database_is_recorded_when_it_is_back"
    ),
    "a process is cut off from the service": (
        "batch/test_worker::test_an_unknown_that_may_have_begun_one_stays",
        "batch/test_worker::test_an_unknown_that_surely_began_no_run_is_sent",
    ),
    "a process ends while the database is silent": (
        f"{POSTGRES}database::test_a_process_that_ends_waits_for_no_database_that_is_silent"
    ),
    "a process is killed": (
        f"{POSTGRES}ledger::test_a_machine_that_is_gone_loses_its_claims",
        f"{SCENARIOS}failpoints::test_killed_at_each_step",
    ),
    "a process is frozen and continues": f"{SCENARIOS}failpoints::test_stopped_at_each_step",
    "a process says nothing for a week": (
        f"{POSTGRES}ledger::test_rows_of_processes_that_are_gone_for_long_are_removed",
        f"{POSTGRES}ledger::test_a_process_whose_row_was_removed_is_not_in_doubt",
    ),
    "a process is frozen inside a transaction": (
        f"{POSTGRES}database::test_a_process_that_is_frozen_in_a_transaction_holds_up_nobody"
    ),
    "an event loop is blocked": f"{POSTGRES}database::test_a_lease_is_renewed_while_the_event_loop_is_blocked",
    "an event loop was closed in the middle of a batch, and its process lives": (
        f"{POSTGRES}ledger::test_a_batch_whose_event_loop_was_closed_is_gone"
    ),
    "clocks of machines differ": (
        f"{POSTGRES}ledger::test_clocks_of_machines_do_not_count",
        f"{POSTGRES}limiter::test_machines_share_one_quota",
    ),
    "`synchronous_commit = off`, timeouts or read-only by default": (
        f"{POSTGRES}database::test_settings_of_a_role_that_would_lose_commits"
    ),
    "connections run out": (
        f"{POSTGRES}ledger::test_connections_that_have_run_out_are_waited_for",
        f"{POSTGRES}database::test_it_opens_nothing_before_it_is_used",
        f"{POSTGRES}ledger::test_a_pooler_in_between",
    ),
    "a pooler stands in between": f"{POSTGRES}bus::test_behind_a_pooler_runs_are_polled",
    "the database refuses a process that would hear of deliveries": (
        f"{POSTGRES}database::test_a_listener_that_the_database_refuses_is_told_once"
    ),
    "the quota's table is empty after a crash": (
        f"{POSTGRES}limiter::test_a_crash_of_the_database_forgets_the_windows_only"
    ),
}
"""The tests of each row of the table of what happens when."""


def test_what_happens_when_is_tested() -> None:
    """Each row of the table about many machines has its tests, and they are there."""
    _, _, after = PAGES["docs/many-machines.md"].partition("## What happens when")
    lines = after.partition("\n## ")[0].strip().splitlines()[2:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == list(HELD_BY)
    names = [name for held in HELD_BY.values() for name in ([held] if isinstance(held, str) else held)]
    for file, test in (name.split("::") for name in names):
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
