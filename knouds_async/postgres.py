"""What many machines share through PostgreSQL (`pip install 'knouds-async[postgres]'`)."""

from knouds_async._batch.postgres import Postgres

__all__ = ["Postgres"]
