"""What would be published: the metadata, and what is in the wheel and in the sdist, built as a release is."""

import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import knouds_async

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("knouds_async", "pytest_knouds")


def test_the_version_is_said_in_one_voice() -> None:
    """The package and its metadata have the same one."""
    assert knouds_async.__version__ == PROJECT["version"]


def test_the_links_of_the_project_lead_to_one_repository() -> None:
    """The page on the index links the source, the docs, the changes and the issues."""
    urls = PROJECT["urls"]
    assert set(urls) == {"Homepage", "Documentation", "Changelog", "Source", "Issues"}
    assert {re.match(r"https://github.com/\w+/[\w-]+", url)[0] for url in urls.values()} == {urls["Source"]}  # type: ignore[index]


def test_every_python_that_is_tested_is_named() -> None:
    """The classifiers begin where `requires-python` does, with no gap."""
    minors = [int(found) for found in re.findall(r"Python :: 3\.(\d+)", " ".join(PROJECT["classifiers"]))]
    assert minors == list(range(11, 11 + len(minors)))
    assert PROJECT["requires-python"] == ">=3.11"


def run(*command: str) -> str:
    """Run a module of this interpreter, from the root of the checkout."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build wheel and sdist into a folder of their own."""
    if not (ROOT / "knouds_async").is_dir():
        pytest.skip("the tests run against a wheel that was built before, without the source beside them")
    folder = tmp_path_factory.mktemp("dist")
    run("hatchling", "build", "-d", str(folder))
    return folder


def sources(*folders: str) -> set[str]:
    """Return the files below folders of the checkout, as an archive names them."""
    found = {path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()}
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_the_index_accepts_it(built: Path) -> None:
    """`twine check --strict` has nothing to say about either archive."""
    archives = sorted(map(str, built.iterdir()))
    assert [Path(each).name for each in archives] == [
        f"knouds_async-{PROJECT['version']}-py3-none-any.whl",
        f"knouds_async-{PROJECT['version']}.tar.gz",
    ]
    assert run("twine", "check", "--strict", *archives).count("PASSED") == 2


def metadata(built: Path) -> tuple[set[str], Message]:
    """Return the names in the wheel, and its metadata."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (described,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        return names, message_from_bytes(archive.read(described))


@pytest.mark.slow
def test_the_wheel_has_the_packages_and_nothing_else(built: Path) -> None:
    """Code, its data, the mark of types, the demo's prompts and the licence; no tests, no caches."""
    names, _ = metadata(built)
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == sources(*PACKAGES) | {"knouds_async/_cli/prompts.jsonl"}
    assert {"knouds_async/py.typed", "knouds_async/__main__.py", "knouds_async/testing/openapi.json"} <= names
    assert {name.partition("/")[2] for name in info} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


@pytest.mark.slow
def test_the_page_on_the_index_stands_alone(built: Path) -> None:
    """The description is the README, whose links are absolute, and the metadata has the rest of what the page shows."""
    _, described = metadata(built)
    assert described["Description-Content-Type"] == "text/markdown"
    page = described.get_payload(decode=True)
    assert isinstance(page, bytes)
    assert page.decode() == (ROOT / "README.md").read_text(encoding="utf-8")
    assert described["License-Expression"] == "MIT"
    assert set(described.get_all("Provides-Extra") or ()) == set(PROJECT["optional-dependencies"])
    assert len(described.get_all("Project-URL") or ()) == 5


@pytest.mark.slow
def test_the_sdist_has_what_is_needed_to_test_and_build_it(built: Path) -> None:
    """Everything that the tests read is there, and nothing that merely lies in a checkout."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    beside = {path.name for path in ROOT.glob("*.md")} | {"pyproject.toml", "noxfile.py", "LICENSE", ".ci/run"}
    needed = {name for name in sources(*PACKAGES, "examples") if name.endswith((".py", ".json", ".jsonl", ".typed"))}
    assert needed | beside <= names
    tops = {name.partition("/")[0] for name in names}
    folders = {*PACKAGES, "tests", "examples", "benchmarks", "docs", ".ci", ".gitignore", ".pre-commit-config.yaml"}
    assert tops <= folders | {each.partition("/")[0] for each in beside} | {"PKG-INFO"}


@pytest.mark.slow
def test_the_wheel_runs_by_itself(built: Path, tmp_path: Path) -> None:
    """From the archive alone the package imports, says its version, and runs as a module."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)  # noqa: S202  (our own)
    show = "import json, knouds_async; print(json.dumps([knouds_async.__version__, knouds_async.__file__]))"
    done = subprocess.run([sys.executable, "-c", show], cwd=tmp_path, capture_output=True, text=True, check=True)  # noqa: S603
    version, file = json.loads(done.stdout)
    assert version == PROJECT["version"]
    assert Path(file).is_relative_to(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "knouds_async", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == PROJECT["version"]
