"""Which proxy the environment names for a host, and what is wrong with it. Pure.

A proxy's value may hold a password, so no message shows any of it but a scheme and never a cause.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

import attrs

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,20}\Z")
_UNCLEAN: Final = re.compile(r"[\x00-\x20\x7f\"'`\\]|[^\x00-\x7f]")
_SCHEMES: Final = ("http", "https", "socks5", "socks5h")
_FORM: Final = (
    "it must be http://host:port (it is not shown here); what a user name or a password holds beside letters and "
    "digits is to be percent-encoded"
)


@attrs.frozen
class Variable:
    """A variable of the environment that names a proxy."""

    name: str
    value: str = attrs.field(repr=False)


def chosen(environment: Mapping[str, str], scheme: str) -> Variable | None:
    """Return the variable that names the proxy for a scheme: its own before `ALL_PROXY`, lower case before upper.

    An empty one in lower case switches the other off. A web server's `HTTP_PROXY` is what a request's header said.
    """
    for kind in (scheme, "all"):
        for name in (f"{kind}_proxy", f"{kind}_proxy".upper()):
            if name == "HTTP_PROXY" and "REQUEST_METHOD" in environment:
                continue
            if name in environment:
                if environment[name]:
                    return Variable(name, environment[name])
                break
    return None


def fault(variable: Variable, *, has_socks: bool) -> str | None:
    """Return what is wrong with a proxy; None when it can be used. `has_socks`: SOCKS can be spoken."""
    value = variable.value
    if _UNCLEAN.search(value):
        return "it holds quotes, spaces, line ends or other characters that no URL has (it is not shown here)"
    scheme, has_scheme, _ = value.partition("://")
    if has_scheme and scheme.lower() not in _SCHEMES:
        named = f"a proxy of the kind {scheme!r}" if _SCHEME.match(scheme) else "what it names (it is not shown here)"
        return f"{named} cannot be used: it must be one of {', '.join(f'{one}://' for one in _SCHEMES)}"
    if not _is_address(url_of(variable)):
        return _FORM
    if scheme.lower().startswith("socks") and has_scheme and not has_socks:
        return "a SOCKS proxy needs the package socksio: pip install 'httpx[socks]'"
    return None


def url_of(variable: Variable) -> str:
    """Return the URL of a proxy; one without a scheme is meant as http."""
    return variable.value if "://" in variable.value else f"http://{variable.value}"


def _is_address(url: str) -> bool:
    """Return whether a URL is one of a host alone; its errors would quote it."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and parts.path in ("", "/") and not parts.query + parts.fragment
    except ValueError:
        return False


def is_bypassed(no_proxy: str, host: str, port: int | None) -> bool:
    """Return whether `NO_PROXY` names a host.

    Its entries, separated by commas or spaces: `*`; a name, for itself and what is below it; `*.name`, for what is
    below it; an address, IPv6 in brackets or not; a range of addresses, `10.0.0.0/8`. A port binds an entry to it.
    """
    entries: Iterable[str] = no_proxy.replace(",", " ").split()
    return any(_names(entry.lower(), host.lower().rstrip("."), port) for entry in entries)


def _names(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    name, bound = _split(entry)
    if bound and bound != str(port):
        return False
    if (address := _address(host)) is not None:
        return _holds(name, address)
    below = name.removeprefix("*").lstrip(".")
    if not below:
        return False
    return host.endswith(f".{below}") or (host == below and not name.startswith("*"))


def _split(entry: str) -> tuple[str, str]:
    """Split an entry into what it names and the port that it is bound to, if any."""
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        return (name + rest, "") if rest.startswith("/") else (name, rest.removeprefix(":"))
    name, _, bound = entry.partition(":")
    return (entry, "") if ":" in bound else (name, bound)  # a bare IPv6 address has no port


def _holds(name: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
