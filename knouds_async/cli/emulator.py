"""`knouds emulator`: the service on this machine, to try things out with neither a key nor credits."""

from __future__ import annotations

import asyncio
import time
from ipaddress import ip_address
from socket import getaddrinfo
from typing import Annotated

from cyclopts import Parameter

from knouds_async.cli import output
from knouds_async.cli.exits import Exit, UsageError
from knouds_async.cli.words import counted

Port = Annotated[int, Parameter(help="The port; 0 takes a free one.")]
Host = Annotated[str, Parameter(help="The address to serve on; one that other machines reach needs --allow-remote.")]
AllowRemote = Annotated[bool, Parameter(show_default=False, help="Let --host be an address that other machines reach.")]
Tier = Annotated[str, Parameter(help="The account's tier: free, pro, business, enterprise, or any other.")]
Duration = Annotated[float, Parameter(help="Median seconds that a run takes.")]
Seed = Annotated[int, Parameter(help="The same seed gives the same durations and failures.")]
FailureRate = Annotated[float, Parameter(help="Share of runs that fail, 0 to 1.")]


def emulator(
    *,
    port: Port = 8000,
    host: Host = "127.0.0.1",
    allow_remote: AllowRemote = False,
    tier: Tier = "pro",
    duration: Duration = 45.0,
    seed: Seed = 0,
    failure_rate: FailureRate = 0.0,
) -> int:
    """Serve an emulator of Knouds on this machine, until Ctrl-C.

    It has rate limits, durations, failures and charges like the service, and nothing is paid. Prints the two lines
    that point `knouds` and the library at it, for another shell.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: must be 0 to 65535")
    if not allow_remote and not _is_loopback(host):
        raise UsageError(f"--host {host}: other machines could reach it; say --allow-remote if that is meant")
    from knouds_async.cli.serving import serve_for_good
    from knouds_async.testing import Emulator, Lognormal

    try:
        served = Emulator(
            tier=tier,
            duration=Lognormal(duration) if duration > 0 else duration,
            seed=seed,
            failure_rate=failure_rate,
            epoch=time.time(),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        asyncio.run(serve_for_good(served, host, port))
    except KeyboardInterrupt:
        seen = f"{counted(served.requests.count, 'request')} and {counted(len(served.runs), 'run')}"
        output.note(f"\nstopped after {seen}; {counted(served.credits_spent, 'credit')} would have been paid")
    return Exit.FINE


def _is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a host; one that cannot be looked up is left to the server to refuse."""
    try:
        return all(ip_address(found[4][0]).is_loopback for found in getaddrinfo(host, None))
    except OSError:
        return True
