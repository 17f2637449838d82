"""`knouds emulator`: create an emulator from options, and serve it on this machine until the command ends."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_address
from socket import getaddrinfo
from typing import Any

from knouds_async._cli import output
from knouds_async._cli.errors import ExitCode, ServingError, UsageError
from knouds_async._cli.input_files import read_value
from knouds_async.testing import Emulator, serve
from knouds_async.testing.faults import add_fault
from knouds_async.testing.settings import DEFAULT_MEDIA_URL, settings_from


def make_emulator(options: dict[str, Any], pairs: Sequence[str], faults: Sequence[str]) -> Emulator:
    """Return an emulator with these options, NAME=VALUE pairs and faults; raises UsageError when one is invalid."""
    given: dict[str, Any] = {}
    try:
        given = _parse_pairs(pairs)
        made = Emulator(**(options | settings_from(given)))
        for text in faults:
            add_fault(made.faults, text)
    except (TypeError, ValueError) as error:
        raise UsageError(_as_given(str(error), options, given)) from None
    return made


def _as_given(words: str, options: Mapping[str, Any], pairs: Mapping[str, Any]) -> str:
    """Return an error, which begins with the name of a setting, with the option that it was given by."""
    words = words.replace(", or a callable", "")  # which no option can be
    name = words.split(" ", 1)[0].rstrip(":")
    if name in pairs:
        return f"--set {words}"
    return f"--{name.replace('_', '-')}{words.removeprefix(name)}" if name in options else words


@asynccontextmanager
async def serving(
    emulator: Emulator, *, host: str = "127.0.0.1", port: int = 0, serves_media: bool = False
) -> AsyncIterator[str]:
    """Serve an emulator while the block runs and yield its base URL; port 0 takes a free one.

    Raises ServingError when the port is in use or the host is not this machine. Requests in flight at the end are cut.
    """
    async with AsyncExitStack() as stack:
        try:
            base_url = await stack.enter_async_context(serve(emulator, host=host, port=port, serves_media=serves_media))
        except OSError as error:
            raise ServingError(f"cannot serve on {host} port {port}: {error.strerror or error}") from None
        yield base_url


async def serve_forever(emulator: Emulator, host: str, port: int) -> None:
    """Serve an emulator until the task is cancelled, and print how to reach it."""
    is_media_here = emulator.media_url == DEFAULT_MEDIA_URL  # else it was set by the user
    async with serving(emulator, host=host, port=port, serves_media=is_media_here) as base_url:
        output.print_info(
            f"An emulator of Knouds at {base_url} (nothing is paid); open it in a browser to see what it does.\n"
            f"Ctrl-C ends it. In another shell:\n"
        )
        output.print_result(f"export KNOUDS_BASE_URL={base_url}")
        output.print_result(f"export KNOUDS_KEY={emulator.api_key}")
        if emulator.webhook_url is not None:
            output.print_result(f"export KNOUDS_WEBHOOK_SECRET={emulator.webhook_secret}")
        sys.stdout.flush()
        await asyncio.Event().wait()


def _parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in pairs:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r}: write NAME=VALUE")
        if name in found:
            raise ValueError(f"--set {name}=... is given twice")
        found[name] = read_value(value)
    return found


def print_faults() -> int:
    """Print the kinds of faults and the routes that --fault takes."""
    from knouds_async.testing.faults import GRAMMAR, KINDS, PLACES, takes

    output.print_result(f"A fault reads: {GRAMMAR}\n\nKinds:")
    for kind, make in KINDS.items():
        output.print_result(f"  {' '.join([kind, *takes(kind)])}\n      {(make.__doc__ or '').partition(chr(10))[0]}")
    output.print_result("\nRoutes, or a method and a path as the contract writes it:")
    for name, label in PLACES.items():
        output.print_result(f"  {name:13} {label}")
    return ExitCode.OK


def to_address(host: str) -> str:
    """Return a host as a server takes it: of an IPv6 address in a URL without the brackets, of `*` all addresses."""
    return "0.0.0.0" if host == "*" else host.removeprefix("[").removesuffix("]")  # noqa: S104 - checked afterwards


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host; the server rejects one that cannot be resolved."""
    try:
        return all(ip_address(found[4][0]).is_loopback for found in getaddrinfo(host, None))
    except OSError:
        return True
