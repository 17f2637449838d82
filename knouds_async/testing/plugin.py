"""What the pytest plugin's fixtures are made of: an emulator and a client from the settings of a test's marker.

Nothing here imports pytest. TypeError or ValueError for impossible settings, with messages that name the possible ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
from anyio.from_thread import start_blocking_portal

from knouds_async.client import AsyncKnouds
from knouds_async.testing.emulator import Emulator
from knouds_async.testing.faults import add_fault
from knouds_async.testing.messages import Fault
from knouds_async.testing.server import serve
from knouds_async.testing.settings import Settings
from knouds_async.testing.transport import emulator_client

if TYPE_CHECKING:
    import httpx

__all__ = ["client_on", "emulator_with", "http_client_on", "serving"]

_EMULATOR: Final = frozenset(field.name for field in attrs.fields(Settings))
_OTHERS: Final = frozenset({"faults", "latency", "virtual_time"})


def emulator_with(settings: Mapping[str, Any]) -> Emulator:
    """Create an emulator from a marker's settings; `faults` are attached to it.

    Its `faults` are one or a list of: a `Fault`, for every request; a string as the command line takes it, "closed
    after_run on submit nth=1"; the arguments of `emulator.faults.add` as a dict.
    """
    if unknown := set(settings) - _EMULATOR - _OTHERS:
        raise TypeError("; ".join(_no_such(name) for name in sorted(unknown)))
    emulator = Emulator(**{name: value for name, value in settings.items() if name in _EMULATOR})
    given = settings.get("faults", ())
    for fault in given if isinstance(given, Sequence) and not isinstance(given, str) else (given,):
        _attach(emulator, fault)
    return emulator


def http_client_on(
    emulator: Emulator, settings: Mapping[str, Any], *, on_real_time: Callable[[str], None] | None
) -> httpx.AsyncClient:
    """Create an HTTP client on an emulator; `on_real_time` is called when its time is real, None allows it."""
    return emulator_client(emulator, latency=settings.get("latency", 0.0), on_real_time=on_real_time)


def client_on(emulator: Emulator, http_client: httpx.AsyncClient) -> AsyncKnouds:
    """Create the client that a test gets."""
    return AsyncKnouds(emulator.api_key, base_url="https://knouds.test", http_client=http_client)


@contextmanager
def serving(emulator: Emulator) -> Iterator[str]:
    """Serve an emulator from a thread while the block runs, and yield its URL."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve(emulator, serves_media=True)) as url,
    ):
        yield url


def _attach(emulator: Emulator, fault: object) -> None:
    match fault:
        case Fault():
            emulator.faults.add(fault)
        case str():
            add_fault(emulator.faults, fault)
        case Mapping():
            emulator.faults.add(**fault)
        case _:
            raise TypeError(f"faults: {fault!r} must be a Fault, a string such as 'reset on submit nth=1', or a dict")


def _no_such(name: str) -> str:
    near = difflib.get_close_matches(name, _EMULATOR | _OTHERS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(_EMULATOR | _OTHERS))}"
    return f"there is no setting {name!r}; {hint}"
