"""What the service says, as frozen records; each keeps the JSON it was read from in `raw`.

Plain values. A field that the contract does not promise is None when it is missing or odd, so
that additions to the service never break reading (contract 1). Annotations are types, not text, for the records are
read by them, and go by the name of this module.
"""

from knouds_async.types._account import (
    Account,
    Health,
    Pricing,
    SchemaField,
    SubmissionSearch,
    UsagePage,
    UsageRow,
    Workflow,
    WorkflowSchema,
    WorkflowSummary,
)
from knouds_async.types._results import (
    EXTENSIONS,
    Media,
    MediaKind,
    RunResult,
)
from knouds_async.types._runs import (
    ExecutionState,
    Failure,
    Inputs,
    Status,
    Submitted,
    Target,
)

__all__ = [
    "EXTENSIONS",
    "Account",
    "ExecutionState",
    "Failure",
    "Health",
    "Inputs",
    "Media",
    "MediaKind",
    "Pricing",
    "RunResult",
    "SchemaField",
    "Status",
    "SubmissionSearch",
    "Submitted",
    "Target",
    "UsagePage",
    "UsageRow",
    "Workflow",
    "WorkflowSchema",
    "WorkflowSummary",
]

for _kind in (globals()[name] for name in __all__):
    if isinstance(_kind, type):
        _kind.__module__ = __name__  # where reprs and pickles name it, whichever file in here it stands in
