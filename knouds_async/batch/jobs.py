"""A job of a batch: a key that names it for ever, and the inputs of its run."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any, Final, TypeAlias

import attrs

from knouds_async._sansio import keys
from knouds_async._sansio.inputs import safe_repr
from knouds_async.errors import InvalidArgumentError, InvalidInputsError, KnoudsError
from knouds_async.types import Inputs

LONGEST_KEY: Final = 200


def _is_key(_: object, attribute: attrs.Attribute[Any], key: object) -> None:
    if not isinstance(key, str) or not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
        raise InvalidArgumentError(
            f"Job({attribute.name}={safe_repr(key)}): must be a text of 1 to {LONGEST_KEY} printable characters"
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


Jobs: TypeAlias = Iterable[Job | Inputs] | AsyncIterable[Job | Inputs]
"""Where the jobs of a batch come from; plain inputs get a key made of them."""


@attrs.frozen
class PreparedJob:
    """A job as it was read: `number` counts from 0; `digest` of its inputs, or the `error` that is in their way."""

    number: int
    job: Job
    digest: str = ""
    error: KnoudsError | None = None
    is_repeated: bool = False


class Reader:
    """Makes jobs of what a caller's iterable gives, and notices keys that came before."""

    def __init__(self) -> None:
        """Have read nothing."""
        self._keys = keys.Keys()
        self._seen = keys.Seen()
        self.count = 0

    def read(self, item: Job | Inputs) -> PreparedJob:
        """Read the next item; one that is neither a job nor inputs is an InvalidArgumentError."""
        if not isinstance(item, (Job, Mapping)):
            raise InvalidArgumentError(f"{safe_repr(item)} is no job: give Job(key, inputs) or a mapping of inputs")
        inputs = item.inputs if isinstance(item, Job) else item
        digest, error = "", None
        try:
            digest = keys.digest(inputs)
        except InvalidInputsError as refused:
            error = refused.with_traceback(None)
        number, self.count = self.count, self.count + 1
        job = item if isinstance(item, Job) else Job(self._key(digest, number), inputs)
        return PreparedJob(number, job, digest, error, is_repeated=not self._seen.add(job.key))

    def _key(self, digest: str, number: int) -> str:
        return self._keys.of(digest) if digest else f"job {number + 1}"
