"""What a client is configured with, as frozen values; the only reader of the environment.

A bad value is a ConfigurationError that names it, before any request. The key is never named.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO, TypeAlias, TypeGuard, TypeVar
from urllib.parse import urlsplit

import attrs

from knouds_async.errors import KEY_BEGINNING, ConfigurationError, safe_repr

T = TypeVar("T")

__version__: Final = "0.1.0"  # here, for a vendored copy or a zip has no metadata
DEFAULT_BASE_URL: Final = "https://knouds.ai"
_KEY: Final = re.compile(r"[!-~]{1,512}\Z")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+\Z")
_AUTHORITY: Final = re.compile(r"([^\[\]:]+|\[[^\[\]]+\])(:[0-9]*)?\Z")
_NOT_IN_A_BASE: Final = re.compile(r"[\x00-\x20\x7f\\?#]|\s")  # paths are appended, so even a bare ? would hide them

_PORTS: Final = {"https": 443, "http": 80}

TIERS: Final[dict[str, float | None]] = {
    "free": 10,
    "deployment": 100,
    "pro": 100,
    "admin": 1000,
    "business": 1000,
    "enterprise": math.inf,
    "super_admin": math.inf,
}
"""Requests per minute and route of each tier, and of each scope of the older generation (contract 6)."""

MOST_BYTES: Final = 2 * 1024**3
"""How large a file may be unless a caller allows more: 2 GiB."""
MOST_IN_MEMORY: Final = 256 * 1024**2
"""The same for a file that is read into memory: 256 MiB."""

OnBytes: TypeAlias = Callable[[int, int | None], None]
"""Called after each piece with the bytes received, and the total where the host said it."""


class Secret:
    """A string that never shows in a repr, a log, a traceback with locals or a pickle; `reveal()` gives it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    @classmethod
    def of(cls, text: str | Secret | None) -> Secret | None:
        """Return the value as a Secret, unchecked: no frame of a traceback holds it when it is refused later."""
        return text if text is None or isinstance(text, Secret) else cls(text)

    def reveal(self) -> str:
        """Return the text itself; only where it is sent."""
        return self._text

    def __repr__(self) -> str:
        """Show nothing of it."""
        return "Secret('***')"

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to be pickled or copied."""
        raise TypeError("a Secret is not pickled: build the client anew from $KNOUDS_KEY in the other process")


DATABASE_URL: Final = re.compile(
    r"\s*postgres[\w+]*:.*|\s*([a-z][\w+.-]+:?)?//.*@.*|\s*[\w.+-]+:[^/\\@\s]+@[\w.-]+(:\d+)?/.*|.*\bpassword\s*=.*",
    re.IGNORECASE | re.DOTALL,
)
"""What was meant as the URL of a database, however it is misspelled: never a path, which messages would show."""


def is_database_url(value: object) -> bool:
    """Return whether a value is the URL of a PostgreSQL database."""
    return isinstance(value, str) and value.startswith(("postgresql://", "postgres://"))


def hide_url(value: T) -> T | Secret:
    """Return a database's URL as a Secret, so that no traceback shows it, and any other value as it is."""
    return Secret(value) if isinstance(value, str) and DATABASE_URL.fullmatch(value) else value


def api_key(given: Secret | None) -> Secret:
    """Return the key: the argument, else `$KNOUDS_KEY`. It is checked for form and never printed."""
    key = given if given is not None else Secret(os.environ.get("KNOUDS_KEY", ""))
    if not isinstance(key.reveal(), str):
        raise ConfigurationError(f"the API key must be a string, not {type(key.reveal()).__name__}")
    if not key.reveal():
        raise ConfigurationError(
            "no API key: set $KNOUDS_KEY (export KNOUDS_KEY=knouds_live_...) or pass AsyncKnouds(api_key=...)"
        )
    if not _KEY.match(key.reveal()):
        raise ConfigurationError(
            "the API key is malformed (it is not shown here): it must be 1 to 512 printable ASCII characters with "
            "no spaces or newlines; check that $KNOUDS_KEY was not cut, quoted or read with a trailing newline"
        )
    return key


def base_url(given: str | Secret | None, *, allow_insecure_http: bool = False) -> str:
    """Return the base URL: the argument, else `$KNOUDS_BASE_URL`, else the vendor's; without a trailing slash.

    Plain http is refused except to loopback, or when asked for: the key would travel in the clear.
    """
    text = given.reveal() if isinstance(given, Secret) else given
    name = "$KNOUDS_BASE_URL" if text is None else "base_url"
    url = text if text is not None else os.environ.get("KNOUDS_BASE_URL") or DEFAULT_BASE_URL
    if not isinstance(url, str):
        raise ConfigurationError(f"{name} must be a string, not {type(url).__name__}")
    if "@" in url or KEY_BEGINNING in url:
        text = url = ""  # so that no frame of ours shows it in a traceback with locals
        raise ConfigurationError(f"{name} must not hold a user name, a password or a key (it is not shown here)")
    shown = re.split("[?#]", url)[0]
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigurationError(f"{name} {shown!r} is not a URL") from None
    is_clean = url.isprintable() and not _NOT_IN_A_BASE.search(url)
    if parts.scheme not in _PORTS or not _is_host(host) or not _AUTHORITY.match(parts.netloc) or not is_clean:
        raise ConfigurationError(f"{name} {shown!r} must be https://host with no query or fragment")
    if parts.scheme == "http" and not (allow_insecure_http or is_loopback(host)):
        raise ConfigurationError(
            f"{name} {shown!r} is plain http to another machine, so the key would travel in the clear: use https, "
            "or pass allow_insecure_http=True"
        )
    return url.rstrip("/")


def canonical_url(url: str) -> str:
    """Return a base URL in its canonical form, so that two of them can be compared."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{ipaddress.ip_address(host)}]" if ":" in host else host
    port = "" if parts.port in (None, _PORTS.get(parts.scheme)) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"


def _is_host(host: str) -> bool:
    """Return whether a host is an ASCII name or an address; other names are to be given in their `xn--` form."""
    try:
        return _NAME.match(host) is not None or bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def host_of(url: str) -> str | None:
    """Return the host of a URL and nothing else of it, for a message: the rest may hold secrets."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Return whether a host name is this machine's loopback, without looking it up."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_live(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal that can redraw lines."""
    is_terminal = stream is not None and not stream.closed and stream.isatty()
    return is_terminal and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def environment() -> Mapping[str, str]:
    """Return the environment, for what is decided by several of its variables."""
    return os.environ


def proxies() -> dict[str, str]:
    """Return the proxies of the environment by scheme, or `all`; lower case counts first."""
    from urllib.request import getproxies_environment

    return getproxies_environment()


def option(name: str, value: T | None, kind: type[T]) -> T:
    """Return an option, or the default of its kind where it is None; another kind is refused by the option's name."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise ConfigurationError(f"{name}={safe_repr(value)}: must be {kind.__name__}(...), or None for its defaults")
    return value


def requests_per_minute(tier: str | None) -> float | None:
    """Return the first guess of a tier's limit: inf when unlimited, None when it has to be learned."""
    if tier is None:
        return None
    if not isinstance(tier, str) or tier not in TIERS:
        raise ConfigurationError(
            f"unknown tier {safe_repr(tier)}: use one of {', '.join(sorted(TIERS))}, or None to learn it from the "
            "headers"
        )
    return TIERS[tier]


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number that a float can hold; True and False are not."""
    return isinstance(value, float) or (is_integer(value) and abs(value) < 2**1023)


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def share(value: float) -> float:
    """Check the part of a quota that is ours: more than 0, at most 1."""
    if not (is_number(value) and 0 < value <= 1):
        raise ConfigurationError(
            f"share={safe_repr(value)}: must be a number more than 0 and at most 1, e.g. 0.7 for 70 %"
        )
    return float(value)


_MOST: Final = 1e300  # beyond it, an integer fits no float


def _number(least: float, most: float = math.inf, *, inclusive: bool = False, is_whole: bool = False) -> Any:
    """Return a validator for a number between bounds, whose error names the field and the value."""
    bound = f"of {'at least' if inclusive else 'more than'} {least:g}"
    bound += "" if most == math.inf else f" and at most {most:g}"

    def check(owner: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        fits = is_integer(value) if is_whole else is_number(value)
        if not fits or not (least < value <= most or (value == least and inclusive)) or _MOST < value < math.inf:
            number = "an integer" if is_whole else "a number"
            raise ConfigurationError(
                f"{type(owner).__name__}({attribute.name}={safe_repr(value)}): must be {number} {bound}"
            )

    return check


def _of_type(kind: Any, what: str) -> Any:
    """Return a validator for values of a type, whose error says what it must be."""

    def check(owner: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, kind):
            raise ConfigurationError(f"{type(owner).__name__}({attribute.name}={safe_repr(value)}): must be {what}")

    return check


_positive = _number(0)


@attrs.frozen(kw_only=True)
class Backoff:
    """A plain schedule of polls: `first` seconds after the submit, then longer by `factor`, `longest` at most.

    `jitter`: the part of a pause by which it varies, from 0 to 1.
    """

    first: float = attrs.field(default=1.0, validator=_positive)
    factor: float = attrs.field(default=1.5, validator=_number(1, inclusive=True))
    longest: float = attrs.field(default=5.0, validator=_positive)
    jitter: float = attrs.field(default=0.1, validator=_number(0, 1, inclusive=True))  # more could end before it began


@attrs.frozen(kw_only=True)
class Polling:
    """How finished runs are noticed: by what was learned of how long such runs last, or on a plain schedule.

    `cost_of_request`: what a request is worth, in seconds of notice: 1 makes fewer requests, 0.05 notices sooner.
    `sweeps`: whether listings of `GET /api/usage` may replace many polls when three or more runs are in progress.
    `schedule`: a plain schedule instead, without sweeps (make one with `Polling.backoff` or `Polling.every`).
    `max_failures`: polls of a run that may fail in a row on the way before a wait without a timeout ends with their
    error; `math.inf` waits through them all. A wait with a timeout waits through them until then.
    """

    cost_of_request: float = attrs.field(default=0.25, validator=_number(0, _MOST))
    sweeps: bool = attrs.field(default=True, validator=_of_type(bool, "True or False"))
    schedule: Backoff | None = attrs.field(
        default=None,
        validator=_of_type(
            Backoff | None, "a Backoff, as Polling.every(...) and Polling.backoff(...) make it, or None"
        ),
    )
    max_failures: float = attrs.field(default=5, validator=_number(1, inclusive=True))

    @classmethod
    def backoff(cls, first: float = 1.0, factor: float = 1.5, longest: float = 5.0) -> Polling:
        """Poll first after `first` seconds, then at steps longer by `factor` up to `longest` seconds, with jitter."""
        return cls(schedule=Backoff(first=first, factor=factor, longest=longest))

    @classmethod
    def every(cls, seconds: float) -> Polling:
        """Poll at a fixed pace of `seconds`."""
        return cls(schedule=Backoff(first=seconds, factor=1.0, longest=seconds, jitter=0.0))


@attrs.frozen(kw_only=True)
class Retries:
    """How often and how long a request that is safe to repeat is repeated.

    `attempts`: the most attempts in all. `longest`: the longest single wait the service may ask for, in seconds; a
    longer `Retry-After` is raised instead of slept. `budget`: seconds that all attempts and pauses may take together.
    A 429 is never an attempt. Waiting, for the rate limit or for a free connection, spends nothing of the budget.
    """

    attempts: int = attrs.field(default=4, validator=_number(1, inclusive=True, is_whole=True))
    longest: float = attrs.field(default=120.0, validator=_number(0, inclusive=True))
    budget: float = attrs.field(default=120.0, validator=_number(0, inclusive=True))


@attrs.frozen(kw_only=True)
class Timeouts:
    """Seconds for each phase of an exchange, and for the whole of it.

    `connect`, `read`, `write`: per connection, read and write; `pool`: to get a connection when all are busy, before
    the exchange begins (a paid request waits at least as long as its exchange may take); `total`: a whole exchange,
    `submit`: the same for a submit. `run`: the same for a synchronous run, whose answer comes when the run is finished
    (15 minutes: contract 3).
    """

    connect: float = attrs.field(default=10.0, validator=_positive)
    read: float = attrs.field(default=30.0, validator=_positive)
    write: float = attrs.field(default=30.0, validator=_positive)
    pool: float = attrs.field(default=120.0, validator=_positive)
    total: float = attrs.field(default=60.0, validator=_positive)
    submit: float = attrs.field(default=60.0, validator=_positive)
    run: float = attrs.field(default=900.0, validator=_positive)
