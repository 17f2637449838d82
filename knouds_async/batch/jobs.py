"""A job of a batch: a key that names it for ever, and the inputs of its run."""

from __future__ import annotations

from typing import Any, Final

import attrs

from knouds_async._sansio import names
from knouds_async.errors import InvalidArgumentError
from knouds_async.types import Inputs

LONGEST_KEY: Final = 200


def _is_key(_: object, attribute: attrs.Attribute[Any], key: object) -> None:
    if not isinstance(key, str) or not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
        raise InvalidArgumentError(
            f"Job({attribute.name}={names.shown(key)}): must be a text of 1 to {LONGEST_KEY} printable characters"
        )


@attrs.frozen
class Job:
    """One run that is wanted: `key` names it, `inputs` are what it runs on.

    `key`: 1 to 200 printable characters, unique within a batch. In a ledger it names the run for ever: a job whose key
    is there is picked up where it stands and never run a second time, and the same key with other inputs is refused.
    `inputs`: names to JSON values, as for `submit`; not copied, so leave them as they are while the batch runs.
    Raises InvalidArgumentError for a bad key; bad inputs come out as a NotRun.
    """

    key: str = attrs.field(validator=_is_key)
    inputs: Inputs
