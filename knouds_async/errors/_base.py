"""The root of all errors, and how a call comes to nothing: not begun, not sent, not answered, not to be read."""

from __future__ import annotations

from typing import Any


def _revive(kind: type[KnoudsError], args: tuple[Any, ...], fields: dict[str, Any]) -> KnoudsError:
    """Rebuild a pickled error without running its `__init__`, whose arguments are keywords."""
    error = kind.__new__(kind, *args)
    error.args = args  # an OSError, which TimeoutError is, does not take them from `__new__`
    error.__dict__.update(fields)
    return error


class KnoudsError(Exception):
    """The base of every error of this library.

    `may_have_run`: whether a paid run may have begun. `execution_id`: the run it is about, where one is known.
    """

    may_have_run: bool = False
    execution_id: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as plain data."""
        return _revive, (type(self), self.args, self.__dict__)


class ConfigurationError(KnoudsError, ValueError):
    """The client cannot be built as asked: key, tier, base URL or an option. Nothing was sent."""


class InvalidArgumentError(KnoudsError, ValueError):
    """An argument was refused before any request. Nothing was sent."""


class ClientClosedError(KnoudsError, RuntimeError):
    """The client was closed. Runs in progress continue: attach them in another client."""


class WrongEventLoopError(KnoudsError, RuntimeError):
    """The client was first used in another event loop. Build one client per loop."""


class ConnectionFailedError(KnoudsError):
    """No connection, or none in time: the request was certainly not sent.

    `is_lasting`: the fault does not pass by itself, a certificate that is not believed say: it was not tried again.
    """

    is_lasting: bool = False


class NoAnswerError(KnoudsError):
    """The request was sent and no answer came, so whether the service acted on it is not known."""


class InvalidResponseError(KnoudsError):
    """The service, or something in front of it, answered what this library cannot read.

    `status`: the HTTP status, `route`: the route pattern that was called.
    """

    def __init__(
        self, message: str, *, status: int | None = None, route: str | None = None, may_have_run: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.route = route
        self.may_have_run = may_have_run
