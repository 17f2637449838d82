"""What a change has to pass: `nox` runs lint, types and tests; `nox -s coverage`, `docs` and `bench` the rest.

The tests run against the built wheel, from a folder without the package, so that the checkout cannot shadow it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
BENCHMARKS = sorted(
    path.name for path in ROOT.glob("benchmarks/*.py") if "__main__" in path.read_text(encoding="utf-8")
)
DOCUMENTS = [path.name for path in ROOT.glob("*.md")]
BESIDE_THE_PACKAGE = (
    "tests",
    "examples",
    "benchmarks",
    "docs",
    ".ci",
    "noxfile.py",
    "pyproject.toml",
    "LICENSE",
    *DOCUMENTS,
)


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


def _interpreters(version: str) -> Iterator[Path]:
    """Yield where a Python may be: on PATH, and where pyenv keeps them."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep) if folder]
    for folder in [*folders, *sorted(pyenv.glob("versions/*/bin"), reverse=True)]:
        candidate = folder / f"python{version}"
        if os.access(candidate, os.X_OK):
            yield candidate


def _is_usable(interpreter: Path) -> bool:
    """Return whether an interpreter starts: a shim of pyenv for a version that is not selected does not."""
    command = [str(interpreter), "-c", "import venv, ensurepip"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603


def _put_usable_interpreters_first() -> None:
    """Put the folder of the first usable interpreter of each version on PATH, where nox looks for it."""
    usable = [next(filter(_is_usable, _interpreters(version)), None) for version in PYTHONS]
    folders = [str(interpreter.parent) for interpreter in usable if interpreter is not None]
    os.environ["PATH"] = os.pathsep.join([*dict.fromkeys(folders), os.environ["PATH"]])


_put_usable_interpreters_first()


@nox.session
def lint(session: nox.Session) -> None:
    """Check rules and format."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy and pyright."""
    session.install("-e", ".[cli,testing]", *group("typing"), *group("bench"))
    session.run("mypy")
    session.run("pyright")


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel that the tests run against."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", "--wheel", "--outdir", "dist", silent=True)


def _enter_a_folder_with_the_wheel(session: nox.Session) -> None:
    """Install the wheel, and enter a copy of all that the tests need except the package."""
    (built,) = (ROOT / "dist").glob("*.whl")
    session.install("--force-reinstall", "--no-deps", str(built))
    session.install(f"{built}[cli,testing]", *group("tests"))
    folder = Path(session.create_tmp()) / "beside"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in BESIDE_THE_PACKAGE:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    session.chdir(folder)


@nox.session(python=PYTHONS, requires=["wheel"])
def tests(session: nox.Session) -> None:
    """Run all tests against the wheel."""
    _enter_a_folder_with_the_wheel(session)
    session.run("python", "-m", "pytest", "-m", "", *session.posargs)


@nox.session(python=PYTHONS[0], requires=["wheel"])
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest versions that `pyproject.toml` allows; `nox -s lowest -- tests/sansio` some."""
    _enter_a_folder_with_the_wheel(session)
    session.install("uv")
    (built,) = (ROOT / "dist").glob("*.whl")
    wanted = [f"{built}[cli,testing]", "--group", f"{ROOT / 'pyproject.toml'}:tests"]
    session.run("uv", "pip", "install", "--resolution", "lowest-direct", *wanted)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(requires=["wheel"])
def coverage(session: nox.Session) -> None:
    """Measure branch coverage, child processes included."""
    _enter_a_folder_with_the_wheel(session)
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-m", "", "-n", "0", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report", "--fail-under=95")
    session.run("coverage", "report", "--include=*/knouds_async/_sansio/*", "--fail-under=100")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the docs into `docs/_build`; a warning or a name that leads nowhere is an error."""
    session.install(".[cli,testing,fastapi,aiohttp]", *group("docs"))
    target = ROOT / "docs" / "_build"
    session.run("sphinx-build", "-nW", "--keep-going", "-b", "html", str(ROOT / "docs"), str(target), *session.posargs)


@nox.session
@nox.parametrize("program", BENCHMARKS, ids=BENCHMARKS)
def bench(session: nox.Session, program: str) -> None:
    """Run a benchmark; `nox -s bench -- --quick` shortens them all."""
    session.install(".[cli,testing]", *group("bench"))
    session.run("python", str(ROOT / "benchmarks" / program), *session.posargs)
