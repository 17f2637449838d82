"""Requests that tell when they are handed to a transport: what fails before that has sent nothing.

What fails before is a request hook or the auth of a client's owner.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from knouds_async._io.lent import sends_plainly
from knouds_async._io.sent import SentTrace

if TYPE_CHECKING:
    import httpx

_TRACE: Final = "knouds.trace"


def withheld(request: httpx.Request, client: object, trace: SentTrace) -> None:
    """Have `trace` know that nothing was sent until the client hands the request to a transport.

    Right before, httpx asks the request for its stream; an auth may send a copy, for which it asks for the content. A
    client that sends in another way than httpx's own does not count.
    """
    if sends_plainly(client):
        trace.is_withheld = True
        names = ("stream",) if getattr(client, "auth", None) is None else ("stream", "content", "read", "aread")
        kind: Any = type(request)
        request.__class__ = _telling(kind, names)
        request.extensions[_TRACE] = trace


@functools.cache
def _telling(kind: Any, names: tuple[str, ...]) -> Any:
    """Make a subclass of a request class that tells the trace in its extensions when it is asked for one of these."""

    def asked(self: Any, name: str) -> Any:
        if name in names and (trace := self.extensions.get(_TRACE)) is not None:
            trace.is_withheld = False
        return kind.__getattribute__(self, name)

    return type(kind.__name__, (kind,), {"__getattribute__": asked, "__module__": kind.__module__})
