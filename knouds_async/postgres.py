"""What many machines share through PostgreSQL (`pip install 'knouds-async[postgres]'`)."""

from knouds_async._batch.postgres import LedgerOwner, Postgres
from knouds_async._io.database import Database, DatabaseBus
from knouds_async.config import Secret, hide_url
from knouds_async.errors import ConfigurationError, safe_repr

__all__ = ["LedgerOwner", "Postgres"]


def bus_of(shared: Postgres | str | Secret) -> DatabaseBus:
    """Return the bus of a database; ConfigurationError for what names none."""
    named = hide_url(shared)
    database = Postgres(named) if isinstance(named, Secret) else named
    if not isinstance(database, Database):
        raise ConfigurationError(f"bus={safe_repr(database)}: must be a Postgres, or its URL (postgresql://...)")
    return DatabaseBus(database)
