"""The library's log handler: silent, but for warnings that nobody else would see.

A warning of this library names a paid run that its caller was not given; where logging was never set up, it goes to
stderr as Python's own last resort would have it.
"""

from __future__ import annotations

import logging


class LastResort(logging.NullHandler):
    """A NullHandler that lets warnings through to stderr while there is no other handler."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Show a warning if nobody else does."""
        others = [*logging.getLogger("knouds_async").handlers, *logging.getLogger().handlers]
        if record.levelno >= logging.WARNING and others == [self] and logging.lastResort is not None:
            logging.lastResort.handle(record)
        return True
