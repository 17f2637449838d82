"""Which ledger a command means, a file or a database, and `knouds ledger`, which prepares a database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import anyio

from knouds_async import LedgerError, SQLiteLedger
from knouds_async._cli.client import url_of
from knouds_async._cli.errors import ExitCode, UsageError
from knouds_async._cli.output import one_line, print_info
from knouds_async.postgres import LedgerOwner, Postgres

LedgerPlace: TypeAlias = Path | Postgres


def place_of(text: str) -> LedgerPlace:
    """Return the ledger that an option names: the URL of a database, else the path of a file."""
    url = url_of(text)
    return Path(text) if url is None else Postgres(url)


def is_there(place: LedgerPlace) -> bool:
    """Return whether a ledger exists; a database always does."""
    return isinstance(place, Postgres) or place.exists()


@asynccontextmanager
async def open_ledger(option: str, place: LedgerPlace) -> AsyncIterator[SQLiteLedger | Postgres]:
    """Lend a ledger, which is opened by its first use, so that none is made for a batch that cannot begin.

    Raises UsageError, by the option that names it, for a file that is no ledger.
    """
    ledger = place if isinstance(place, Postgres) else SQLiteLedger(place)
    try:
        yield ledger
    except LedgerError as error:
        if error.unopened is None:
            raise
        raise UsageError(f"{option} {one_line(str(place))}: no ledger: {error.unopened}") from None
    finally:
        await ledger.aclose()


def existing(option: str, place: LedgerPlace) -> AbstractAsyncContextManager[SQLiteLedger | Postgres]:
    """Lend a ledger that is there; raises UsageError for a file that is not, or is none."""
    if not is_there(place):
        raise UsageError(f"{option} {one_line(str(place))}: no such ledger")
    return open_ledger(option, place)


def prepare(action: str, url: str, name: str) -> int:
    """Make the tables of a database, or trust the ledger of a name in it after a failover."""
    hidden = url_of(url)
    if hidden is None:
        raise UsageError("knouds ledger is for databases: name one as postgresql://user:password@host:5432/database")
    if action not in ("migrate", "trust"):
        raise UsageError(f"knouds ledger {one_line(action)}: must be migrate or trust")
    place = Postgres(hidden, name=name)
    anyio.run(_prepare, place, action)
    done = {"migrate": "its tables are up to date", "trust": "batches may submit again"}[action]
    print_info(f"{place}: {done}")
    return ExitCode.OK


async def _prepare(place: Postgres, action: str) -> None:
    try:
        await (place.migrate() if action == "migrate" else place.trust())
    finally:
        await place.aclose()


async def owners(ledger: SQLiteLedger | Postgres) -> tuple[LedgerOwner, ...]:
    """Return which processes have jobs of a ledger; a file does not say."""
    return await ledger.owners() if isinstance(ledger, Postgres) else ()


async def doubt(ledger: SQLiteLedger | Postgres) -> str | None:
    """Return why a ledger may lack runs, so that nothing is submitted; a file never does."""
    return await ledger.doubt() if isinstance(ledger, Postgres) else None
