"""A batch under way, as the parts of the command share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from knouds_async.batch.progress import Progress
from knouds_async.cli.batch.account import Account
from knouds_async.cli.batch.order import Order
from knouds_async.cli.batch.results import Results
from knouds_async.cli.batch.sinks import Stdout
from knouds_async.cli.batch.source import Source


@attrs.define
class Run:
    """A batch under way."""

    order: Order
    source: Source
    total: int | None
    sink: Results | Stdout
    failed_before: dict[str, Mapping[str, Any]] = attrs.Factory(dict)
    account: Account = attrs.Factory(Account)
    progress: Progress = attrs.Factory(Progress)
    failure: Exception | None = None
