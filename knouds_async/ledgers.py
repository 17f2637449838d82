"""What the author of another ledger needs: the protocol, the states of a job, and the decisions of a transaction.

A ledger loads an entry, has `decide` or `advance` decide, and saves what they return, in one transaction: the rules are
here, the storage is yours. `docs/batches.md` shows one.
"""

from knouds_async._batch.ledger import (
    Claim,
    Claimed,
    Doubted,
    Ledger,
    OverBudget,
    Summary,
    Taken,
    Written,
    decide,
    held_against,
)
from knouds_async._sansio.clock import Moment
from knouds_async._sansio.ledger import (
    OPEN,
    Accepted,
    Ending,
    Entry,
    Event,
    IllegalStepError,
    OwnerGone,
    Payer,
    Stage,
    Totals,
    advance,
    repriced,
)
from knouds_async._sansio.reconcile import Doubt, KnownRun

__all__ = [
    "OPEN",
    "Accepted",
    "Claim",
    "Claimed",
    "Doubt",
    "Doubted",
    "Ending",
    "Entry",
    "Event",
    "IllegalStepError",
    "KnownRun",
    "Ledger",
    "Moment",
    "OverBudget",
    "OwnerGone",
    "Payer",
    "Stage",
    "Summary",
    "Taken",
    "Totals",
    "Written",
    "advance",
    "decide",
    "held_against",
    "repriced",
]
