"""Why a connection came to nothing, in words: what lies below "All connection attempts failed"."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

_MOST: Final = 3
_DEEPEST: Final = 20


def causes_of(error: BaseException) -> str:
    """Give the different reasons of an error that its own text leaves out, at most three; "" where there are none."""
    said, found = str(error).lower(), list[str]()
    for cause in _below(error, _DEEPEST):
        words = _words(cause)
        if words and words.lower() not in said and words not in found:
            found.append(words)
    return "; ".join(found[:_MOST])


def _below(error: BaseException, depth: int) -> Iterator[BaseException]:
    """Give what an error came from, the members of a group one by one, the nearest first."""
    if depth == 0:
        return
    below = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    cause = error.__cause__ or error.__context__  # HTTP libraries raise `from None`, and the reason lies below
    for each in (*below, *([cause] if cause is not None else [])):
        yield each
        yield from _below(each, depth - 1)


def _words(cause: BaseException) -> str:
    import socket  # both are loaded with the first client, not with the package
    import ssl

    match cause:
        case ssl.SSLCertVerificationError():
            reason = getattr(cause, "verify_message", "")  # aiohttp's own has none, and one with a reason below it
            return f"TLS: certificate verify failed: {reason}" if reason else ""
        case ssl.SSLError():
            reason = getattr(cause, "reason", None) or "handshake failed"
            return f"TLS: {reason.replace('_', ' ').lower()}"
        case socket.gaierror():
            return f"the name is not known: {cause.strerror}"
        case OSError(errno=int() as number) if number > 0:
            return os.strerror(number)
    return ""
