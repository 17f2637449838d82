"""`knouds emulator`: serve the emulator on this machine, without a key or credits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from ipaddress import ip_address
from socket import getaddrinfo
from typing import Annotated, Any

from cyclopts import Group, Parameter

from knouds_async.cli import output
from knouds_async.cli.exits import ExitCode, UsageError
from knouds_async.cli.words import plural

_FAULTS = Group("Odd circumstances")
_FAULT = (
    "What goes wrong: KIND [NAME=VALUE] [after_run] [on ROUTE] [nth=1,3 or 20%], such as 'closed after_run on submit "
    "nth=2' or 'bad_gateway on poll 5%'. May be given more than once; 'help' lists kinds and routes."
)
_SET = "Another setting of knouds_async.testing.Emulator; VALUE is JSON or text. May be given more than once."

Port = Annotated[int, Parameter(help="The port; 0 takes a free one.")]
Host = Annotated[str, Parameter(help="The address to serve on; one that other machines reach needs --allow-remote.")]
AllowRemote = Annotated[bool, Parameter(show_default=False, help="Let --host be an address that other machines reach.")]
Tier = Annotated[str, Parameter(help="The account's tier: free, pro, business, enterprise, or any other.")]
Duration = Annotated[float, Parameter(help="Median seconds that a run takes.")]
Seed = Annotated[int, Parameter(help="The same seed gives the same durations and failures.")]
FailureRate = Annotated[float, Parameter(help="Share of runs that fail, 0 to 1.", group=_FAULTS)]
RateLimit = Annotated[
    int | None, Parameter(help="Requests per minute and route, instead of the tier's.", group=_FAULTS)
]
OthersShare = Annotated[
    float, Parameter(help="Share of each quota that others of the account use up, 0 to 1.", group=_FAULTS)
]
Faults = Annotated[
    Sequence[str], Parameter(name="--fault", help=_FAULT, negative=(), show_default=False, group=_FAULTS)
]
WebhookUrl = Annotated[str | None, Parameter(help="Where to deliver webhooks; plain http, as this is a trial.")]
WebhookSecret = Annotated[str | None, Parameter(help="What deliveries are signed with; one is made up without it.")]
Settings = Annotated[Sequence[str], Parameter(name="--set", help=_SET, negative=(), show_default=False, group=_FAULTS)]


def emulator(
    *,
    port: Port = 8000,
    host: Host = "127.0.0.1",
    allow_remote: AllowRemote = False,
    tier: Tier = "pro",
    duration: Duration = 45.0,
    seed: Seed = 0,
    webhook_url: WebhookUrl = None,
    webhook_secret: WebhookSecret = None,
    failure_rate: FailureRate = 0.0,
    limit: RateLimit = None,
    others: OthersShare = 0.0,
    fault: Faults = (),
    set_: Settings = (),
) -> int:
    """Serve an emulator of Knouds on this machine, until Ctrl-C.

    It has rate limits, durations, failures and charges like the service, and nothing is paid. Prints the lines that
    point `knouds` and the library at it, for another shell. Its page in a browser shows runs, limits and charges live;
    under /__emulator__/ a test in any language can look at them, end runs, add faults and begin anew.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: must be 0 to 65535")
    if "help" in fault:
        return _explain_faults()
    if not allow_remote and not _is_loopback(host):
        raise UsageError(f"--host {host}: other machines could reach it; say --allow-remote if that is meant")
    from knouds_async.cli.serving import make_emulator, serve_forever
    from knouds_async.testing import Lognormal

    distribution = Lognormal(duration) if duration > 0 else duration
    settings: dict[str, Any] = {"tier": tier, "duration": distribution, "seed": seed, "failure_rate": failure_rate}
    settings |= {"limit": limit, "others": others, "webhook_url": webhook_url, "epoch": time.time()}
    settings |= {} if webhook_secret is None else {"webhook_secret": webhook_secret}
    made = make_emulator(settings, set_, fault)
    try:
        asyncio.run(serve_forever(made, host, port))
    except KeyboardInterrupt:
        received = f"{plural(made.requests.count, 'request')} and {plural(len(made.runs), 'run')}"
        output.print_info(f"\nstopped after {received}; {plural(made.credits_spent, 'credit')} would have been paid")
    return ExitCode.OK


def _explain_faults() -> int:
    from knouds_async.testing.faults import GRAMMAR, KINDS, PLACES, takes

    output.print_result(f"A fault reads: {GRAMMAR}\n\nKinds:")
    for kind, make in KINDS.items():
        output.print_result(f"  {' '.join([kind, *takes(kind)])}\n      {(make.__doc__ or '').partition(chr(10))[0]}")
    output.print_result("\nRoutes, or a method and a path as the contract writes it:")
    for name, label in PLACES.items():
        output.print_result(f"  {name:13} {label}")
    return ExitCode.OK


def _is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host; the server rejects one that cannot be resolved."""
    try:
        return all(ip_address(found[4][0]).is_loopback for found in getaddrinfo(host, None))
    except OSError:
        return True
