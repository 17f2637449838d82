"""What commands share: the client, common options, printed results, downloads.

The folder of `--save` is checked before anything is run, and made with its first file; a failed download does not
affect the result that was paid for.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import attrs
from cyclopts import Parameter

from knouds_async import AsyncKnouds, ConfigurationError, DownloadError, ExecutionState, RunResult, Secret
from knouds_async._batch.progress import format_credits
from knouds_async._cli import output
from knouds_async._cli.errors import KeyMissingError, UsageError, format_error
from knouds_async._cli.keys import StoredKey, find_key
from knouds_async._cli.output import one_line
from knouds_async.config import DATABASE_URL, hide_url

T = TypeVar("T")

_NO_KEY = Secret("no-key-is-sent")


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class ServiceOptions:
    """Which service a command talks to, and with whose key."""

    base_url: Annotated[
        str | None,
        Parameter(help="The service's URL; else $KNOUDS_BASE_URL, else https://knouds.ai."),
    ] = None
    profile: Annotated[
        str | None,
        Parameter(help="The key that `knouds login --profile NAME` saved, and its service; else $KNOUDS_PROFILE."),
    ] = None

    @property
    def arguments(self) -> dict[str, str | None]:
        """The options, to be given again."""
        return {"--base-url": self.base_url, "--profile": self.profile}


DEFAULT_SERVICE: Final = ServiceOptions()


def connect(service: ServiceOptions, *, needs_key: bool = True) -> AsyncKnouds:
    """Return the client; raises UsageError for an invalid address, KeyMissingError for a missing or invalid key."""
    stored = find_key(service.profile, os.environ) if needs_key else StoredKey()
    if service.base_url is not None:
        stored = attrs.evolve(stored, base_url=service.base_url, origin="--base-url")
    return connect_with(stored) if needs_key else _keyless(stored)


def connect_with(stored: StoredKey) -> AsyncKnouds:
    """Return the client of a key; raises as `connect` does."""
    try:
        return AsyncKnouds(stored.key, base_url=stored.base_url)
    except ConfigurationError as error:
        _keyless(stored)  # raises when the address is invalid
        advice = ", or save the key with `knouds login`"
        raise KeyMissingError(str(error).replace(" or pass AsyncKnouds(api_key=...)", advice)) from None


def _keyless(stored: StoredKey) -> AsyncKnouds:
    try:
        return AsyncKnouds(_NO_KEY, base_url=stored.base_url)
    except ConfigurationError as error:
        words = str(error).replace(", or pass allow_insecure_http=True", "")
        raise UsageError(one_line(re.sub("^base_url", lambda _: stored.origin, words))) from None


def query(service: ServiceOptions, request: Callable[[AsyncKnouds], Awaitable[T]], *, needs_key: bool = True) -> T:
    """Send one request and return its result."""

    async def send() -> T:
        async with connect(service, needs_key=needs_key) as knouds:
            return await request(knouds)

    return asyncio.run(send())


Json: TypeAlias = Annotated[
    bool, Parameter(name="--json", show_default=False, help="Print JSON on stdout, for programs.")
]
Expected: TypeAlias = Annotated[
    float | None,
    Parameter(help="How many seconds such a run takes, if you know: it is then polled in time, and rarely before."),
]
Slug: TypeAlias = Annotated[str, Parameter(help="The workflow's slug, as `knouds workflows` lists it.")]
ExecutionId: TypeAlias = Annotated[str, Parameter(help="The id that `knouds run` printed when it submitted the run.")]


def print_state(state: ExecutionState, *, files: Iterable[Path] | None = None) -> None:
    """Print the state of an execution, and its result if there is one; `files`: as of `print_run_result`."""
    error = state.error
    output.print_pairs(
        ("execution", state.execution_id),
        ("status", state.status),
        ("runs", state.workflow_slug or state.model_ids),
        ("error", " ".join(word for word in (error.code, error.message) if word) if error else None),
        ("credits", None if state.cost is None else format_credits(state.cost)),
        ("seconds", None if state.ms is None else round(state.ms / 1000, 1)),
        ("started", state.created_at),
        ("ended", state.completed_at),
    )
    if state.result is not None:
        print_run_result(state.result, files=files)


def print_run_result(result: Any, *, files: Iterable[Path] | None = None) -> None:
    """Print a result: its text, then the address of each file on its own line; any other JSON as it is.

    `files`: where they were saved, printed instead of their addresses.
    """
    run = RunResult(result)
    files_of_run = (*run.images, *run.videos, *run.audios)
    if run.text is None and not files_of_run:
        output.print_json(result)
        return
    if run.text is not None:
        output.print_result(run.text)
    for location in files if files is not None else (file.url for file in files_of_run):
        output.print_result(one_line(str(location)))


def summarize_state(state: ExecutionState) -> str:
    """Return the status of a finished run, its duration and its cost."""
    duration = f" in {state.ms / 1000:.1f} s" if state.ms is not None else ""
    cost = f", {format_credits(state.cost)} credits" if state.cost is not None else ""
    return f"{state.status}{duration}{cost}"


Save = Annotated[
    Path | None,
    Parameter(
        name="--save",
        help="Download the files of the result into this folder, made where it is missing, and print their paths "
        "instead of their addresses; no existing file is overwritten.",
    ),
]


def check_folder(folder: Path | None) -> Path | None:
    """Check that the folder is there or can be made, and return it; raises UsageError otherwise."""
    if folder is None:
        return None
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--save {one_line(str(folder))}: {why}") from None
    return folder


async def download_files(knouds: AsyncKnouds, run: RunResult, folder: Path) -> tuple[Path, ...] | None:
    """Download the files of a run and return their paths; print an error and return None when one fails."""
    try:
        return await knouds.download_all(run, folder)
    except DownloadError as error:
        output.print_error(f"{format_error(error)}; the run has finished and its result is on stdout")
        return None


# URLs of databases, whose passwords no frame and no error of the parser may show.

_URL: Final = re.compile(rf"(--[a-z-]+=)?({DATABASE_URL.pattern})", DATABASE_URL.flags)
_PLAIN_URL: Final = re.compile(r"(-[\w-]+=)?(\s*postgres[\w+]*:?//.*)", DATABASE_URL.flags)
_hidden: Final[dict[str, Secret]] = {}


def without_urls(tokens: Sequence[str]) -> list[str]:
    """Return the arguments of a command with a name for each URL; `url_of` has what it stands for.

    Where a command takes none, only what is no misspelled one is hidden, for messages quote a stray argument.
    """
    shown = list(tokens)
    pattern = _URL if shown[:1] in (["batch"], ["ledger"]) else _PLAIN_URL
    for number, token in enumerate(tokens):
        if (found := pattern.fullmatch(token)) is not None:
            name = f"postgresql://(not shown, {number})"
            _hidden[name], shown[number] = Secret(found[2]), (found[1] or "") + name
    return shown


def url_of(text: str) -> Secret | None:
    """Return the URL that an argument is, or stands for; None for another argument."""
    hidden = hide_url(text)
    return _hidden.get(text) or (hidden if isinstance(hidden, Secret) else None)
