"""How an emulated service behaves: every setting of `Emulator`, checked when it is set, and read from JSON.

They may be changed while the emulator runs; what a run was given at its start (duration, cost, outcome) stays. Keys,
workflows, models, `seed`, `epoch`, `clock_skew`, `window_phase` and `usage_lag` are read once, when the emulator is
created. From JSON, workflows and models cannot be set.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import attrs
from attrs import validators as must

from knouds_async.config import is_integer, is_number
from knouds_async.testing._service.catalog import (
    DEFAULT_KEY,
    DEFAULT_MODELS,
    DEFAULT_WORKFLOWS,
    ApiKey,
    EmulatedWorkflow,
    Model,
)

__all__ = [
    "DEFAULT_MEDIA_URL",
    "Deliveries",
    "Delivery",
    "Lognormal",
    "Seconds",
    "Settings",
    "change_settings",
    "checked_seconds",
    "draw",
    "is_seconds",
    "key_from",
    "settings_from",
]


def _is_above_zero(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{attribute.name} must be above zero and finite, not {value!r}")


@attrs.frozen
class Lognormal:
    """Durations spread log-normally round a median (seconds); `sigma` is the spread of their logarithm."""

    median: float = attrs.field(validator=_is_above_zero)
    sigma: float = attrs.field(default=0.35, validator=attrs.validators.ge(0))

    def __call__(self, rng: Random) -> float:
        """Draw one duration, in seconds."""
        return self.median * math.exp(rng.gauss(0.0, self.sigma))


Seconds = float | Callable[[Random], float]


def checked_seconds(name: str, value: Seconds) -> Seconds:
    """Return a duration or distribution unchanged; ValueError for a number that is no duration."""
    if not callable(value) and not (is_number(value) and 0 <= value < math.inf):
        raise ValueError(f"{name} must be finite seconds, zero or more, or a callable, not {value!r}")
    return value


def is_seconds(_: object, attribute: attrs.Attribute[Any], value: Seconds) -> None:
    """Check an attribute that is a duration or distribution, as an attrs validator."""
    checked_seconds(attribute.name, value)


def draw(value: Seconds, rng: Random) -> float:
    """Draw one duration; ValueError when a callable returns something that is no duration."""
    seconds = value(rng) if callable(value) else value
    if not 0 <= seconds < math.inf:
        raise ValueError(f"a duration must be a finite number of seconds, zero or more; {value!r} returned {seconds!r}")
    return seconds


Kind = Literal["genuine", "repeated", "forged", "expired", "stale", "test"]


def _is_share(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not (is_number(value) and 0 <= value <= 1):
        raise ValueError(f"{attribute.name} must be between 0 and 1, not {value!r}")


@attrs.frozen(kw_only=True)
class Deliveries:
    """How webhooks arrive; the shares are of the runs, and independent of each other.

    `latency`: seconds from the end of a run to its delivery; a spread puts them out of order. `late`: the
    share that takes `late_by` more. `dropped`: never sent. `repeated`: sent again after another `late_by`. `forged`:
    preceded by one with another result and a signature by another secret. `expired`: sent first with a signature of
    an hour ago. `stale`: followed by an event that has the run still processing. `has_result`: whether they have
    results. `attempts`: how often one that is not answered with 2xx is sent in all, at growing pauses.
    """

    latency: Seconds = attrs.field(default=0.2, validator=is_seconds)
    late: float = attrs.field(default=0.0, validator=_is_share)
    late_by: Seconds = attrs.field(default=20.0, validator=is_seconds)
    dropped: float = attrs.field(default=0.0, validator=_is_share)
    repeated: float = attrs.field(default=0.0, validator=_is_share)
    forged: float = attrs.field(default=0.0, validator=_is_share)
    expired: float = attrs.field(default=0.0, validator=_is_share)
    stale: float = attrs.field(default=0.0, validator=_is_share)
    has_result: bool = True
    attempts: int = attrs.field(default=3, validator=[attrs.validators.instance_of(int), attrs.validators.ge(1)])


@attrs.frozen(kw_only=True)
class Delivery:
    """One POST that the service sends: to `url`, with `headers` and `body`; `kind` says what is odd about it."""

    url: str
    execution_id: str
    kind: Kind
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    attempt: int = 1


DEFAULT_MEDIA_URL: Final = "https://knouds-media.s3.amazonaws.com/media"


def _must_be(what: str, is_valid: Callable[[Any], bool]) -> Callable[[object, attrs.Attribute[Any], Any], None]:
    """Return a validator of an attribute that says what it must be."""

    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not is_valid(value):
            raise ValueError(f"{attribute.name} must be {what}, not {value!r:.80}")

    return check


def _one_of(*values: str) -> Callable[[object, attrs.Attribute[Any], Any], None]:
    return _must_be(f"one of {', '.join(map(repr, values))}", lambda value: value in values)


def _is_web_address(value: object) -> bool:
    if not (isinstance(value, str) and value.isprintable()):
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


_is_text: Final = _must_be("a string that is not empty", lambda value: isinstance(value, str) and value != "")
_is_switch: Final = _must_be("true or false", lambda value: isinstance(value, bool))
_is_integer: Final = _must_be("an integer", is_integer)
_is_finite: Final = _must_be("a finite number of seconds", lambda value: is_number(value) and math.isfinite(value))
_is_span: Final = _must_be(
    "a finite number of seconds above zero", lambda value: is_number(value) and 0 < value < math.inf
)
_is_time_span: Final = _must_be(
    "finite seconds, zero or more", lambda value: is_number(value) and 0 <= value < math.inf
)
_is_others_share: Final = _must_be(
    "a share of the limit, at least 0 and below 1, or a callable",
    lambda value: callable(value) or (is_number(value) and 0 <= value < 1),
)
_is_count: Final = _must_be(
    "an integer number of credits, zero or more", lambda value: is_integer(value) and value >= 0
)
_is_object: Final = _must_be("an object, from targets to values", lambda value: isinstance(value, Mapping))


def _is_secret(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not (isinstance(value, str) and len(value) >= 16):
        raise ValueError(f"{attribute.name} must be a string of 16 characters or more (it is not shown)")


def _are_capabilities(_: object, attribute: attrs.Attribute[Any], value: Sequence[str]) -> None:
    if isinstance(value, str):
        raise TypeError(f"{attribute.name} must be a list of capabilities, not one string: {value!r}")


def _keys(values: Iterable[ApiKey]) -> tuple[ApiKey, ...]:
    return tuple(values)


def _workflows(values: Iterable[EmulatedWorkflow]) -> tuple[EmulatedWorkflow, ...]:
    return tuple(values)


def _models(values: Iterable[Model]) -> tuple[Model, ...]:
    return tuple(values)


_per_target_seconds = [_is_object, must.deep_mapping(key_validator=_is_text, value_validator=is_seconds)]
_costs = [_is_object, must.deep_mapping(key_validator=_is_text, value_validator=_is_count)]


@attrs.define(kw_only=True, eq=False, repr=False, slots=False)
class Settings:
    """How the emulated service behaves; every one has a default. ValueError for an impossible value.

    Account: `tier`, `role`, `generation` ("old" has scopes), `scope`, `api_key`, `capabilities`, `webhook_url` and
    `webhook_secret` with how `deliveries` arrive, more `keys`, `credits`, and `grant` (trial credits; a trial account
    pays with nothing else).
    Runs: `duration` and per-target `durations` (seconds, a callable over `random.Random`, or `Lognormal`), `cost`
    and per-target `costs` (credits), `failure_rate`, `cancel_delay` (seconds until a cancel takes effect),
    `late_cancel` (how a run is reported that finishes before that), `not_found_after_submit` (seconds).
    Limits: `limit` (instead of the tier's), `window_length`, `window_phase` (start of a window in seconds after
    the first request; random by default), `window_opens` ("on_the_clock" or with the "first_request"),
    `reset_rounding`, `polls_limited`, `usage_limited`, `others` (requests of other users of the same quota: a
    share of the limit, or a callable over `random.Random` returning the number in each window).
    The rest: `seed`, `epoch`, `clock_skew`, `usage_lag` (seconds), `workflows`, `models`, `media_url`.
    """

    tier: str = attrs.field(default="pro", validator=_is_text)
    role: Literal["user", "admin"] = attrs.field(default="user", validator=_one_of("user", "admin"))
    generation: Literal["current", "old"] = attrs.field(default="current", validator=_one_of("current", "old"))
    scope: Literal["free", "deployment", "admin", "super_admin"] = attrs.field(
        default="deployment", validator=_one_of("free", "deployment", "admin", "super_admin")
    )
    api_key: str = DEFAULT_KEY
    capabilities: Sequence[str] = attrs.field(default=("*",), validator=_are_capabilities)
    webhook_url: str | None = attrs.field(
        default=None, validator=must.optional(_must_be("http://host or https://host", _is_web_address))
    )
    webhook_secret: str = attrs.field(default="whsec_emulator_0123456789abcdef", validator=_is_secret)
    deliveries: Deliveries = attrs.field(factory=Deliveries, validator=must.instance_of(Deliveries))
    keys: tuple[ApiKey, ...] = attrs.field(
        default=(), converter=_keys, validator=must.deep_iterable(must.instance_of(ApiKey))
    )
    credits: int = attrs.field(default=1_000_000_000, validator=_is_count)
    grant: int | None = attrs.field(default=None, validator=must.optional(_is_count))
    duration: Seconds = attrs.field(default=Lognormal(45.0, 0.35), validator=is_seconds)
    durations: Mapping[str, Seconds] = attrs.field(factory=dict[str, Seconds], validator=_per_target_seconds)
    cost: int = attrs.field(default=12, validator=_is_count)
    costs: Mapping[str, int] = attrs.field(factory=dict[str, int], validator=_costs)
    failure_rate: float = attrs.field(default=0.0, validator=_is_share)
    cancel_delay: Seconds = attrs.field(default=2.0, validator=is_seconds)
    late_cancel: Literal["completed", "cancelled"] = attrs.field(
        default="completed", validator=_one_of("completed", "cancelled")
    )
    not_found_after_submit: float = attrs.field(default=0.0, validator=_is_time_span)
    limit: int | None = attrs.field(
        default=None, validator=must.optional(_must_be("at least 1", lambda value: is_integer(value) and value >= 1))
    )
    window_length: float = attrs.field(default=60.0, validator=_is_span)
    window_phase: float | None = attrs.field(default=None, validator=must.optional(_is_finite))
    window_opens: Literal["on_the_clock", "first_request"] = attrs.field(
        default="on_the_clock", validator=_one_of("on_the_clock", "first_request")
    )
    reset_rounding: Literal["up", "down", "nearest"] = attrs.field(
        default="up", validator=_one_of("up", "down", "nearest")
    )
    polls_limited: bool = attrs.field(default=True, validator=_is_switch)
    usage_limited: bool = attrs.field(default=True, validator=_is_switch)
    others: float | Callable[[Random], int] = attrs.field(default=0.0, validator=_is_others_share)
    seed: int = attrs.field(default=0, validator=_is_integer)
    epoch: float = attrs.field(default=1_780_000_000.0, validator=_is_span)
    clock_skew: float = attrs.field(default=0.0, validator=_is_finite)
    usage_lag: float = attrs.field(default=0.0, validator=_is_time_span)
    workflows: tuple[EmulatedWorkflow, ...] = attrs.field(default=DEFAULT_WORKFLOWS, converter=_workflows)
    models: tuple[Model, ...] = attrs.field(default=DEFAULT_MODELS, converter=_models)
    media_url: str = attrs.field(default=DEFAULT_MEDIA_URL, validator=_is_text)

    def check_together(self) -> None:
        """Raise ValueError for settings that are possible one by one but not together."""
        rank = self.tier if self.generation == "current" else self.scope
        if self.limit is not None and (rank in ("enterprise", "super_admin") or self.role == "admin"):
            raise ValueError(f"limit has no effect: {rank!r} with the role {self.role!r} is unlimited (contract 6)")
        _no_duplicates("workflows", [workflow.slug for workflow in self.workflows])
        _no_duplicates("models", [model.name for model in self.models])
        known = {model.name for model in self.models}
        for workflow in self.workflows:
            if unknown := set(workflow.models) - known:
                raise ValueError(f"workflow {workflow.slug!r} uses unknown models: {sorted(unknown)}")
        targets = known | {workflow.slug for workflow in self.workflows}
        for name, per_target in (("durations", self.durations), ("costs", self.costs)):
            if unknown := set(per_target) - targets:
                raise ValueError(f"{name} names unknown targets: {sorted(unknown)}")

    def account_keys(self) -> dict[str, ApiKey]:
        """Return all keys by their text; ValueError for duplicates."""
        main = ApiKey(
            self.api_key,
            capabilities=self.capabilities,
            scope=self.scope,
            webhook_url=self.webhook_url,
        )
        by_text = {key.text: key for key in (main, *self.keys)}
        if len(by_text) != len(self.keys) + 1:
            raise ValueError("two API keys have the same text (not shown)")
        return by_text


def _no_duplicates(what: str, names: list[str]) -> None:
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{what} has duplicate names: {sorted(twice)}")


_NAMES: Final = frozenset(
    field.name for field in attrs.fields(Settings) if field.name not in ("api_key", "keys", "workflows", "models")
)
_READ_ONCE: Final = frozenset(
    {"seed", "epoch", "clock_skew", "window_phase", "usage_lag", "capabilities", "scope", "webhook_url"}
)


def settings_from(given: Mapping[str, object]) -> dict[str, Any]:
    """Return the settings of an emulator to be created; `deliveries` may be an object."""
    return {name: _read(name, value) for name, value in given.items()}


def change_settings(settings: Settings, given: Mapping[str, object]) -> None:
    """Change settings, all of them or, if one is impossible, none."""
    if once := set(given) & _READ_ONCE:
        raise ValueError(f"{min(once)} is read when the emulator is created, and cannot be changed while it runs")
    values = settings_from(given)
    before = {name: getattr(settings, name) for name in values}
    try:
        for name, value in values.items():
            setattr(settings, name, value)
        settings.check_together()
    except (TypeError, ValueError) as error:
        for name, value in before.items():
            object.__setattr__(settings, name, value)
        raise ValueError(str(error)) from None


def key_from(given: Mapping[str, Any], text: str) -> ApiKey:
    """Create a key from its Python attribute names; its text is `text` unless it has one."""
    names = {field.name for field in attrs.fields(ApiKey)}
    if unknown := set(given) - names:
        raise ValueError(f"an API key has no {min(unknown)!r}; choose from: {', '.join(sorted(names))}")
    rights = given.get("capabilities", ())
    if isinstance(rights, str) or not all(isinstance(right, str) for right in rights):
        raise ValueError(f"capabilities must be a list of strings, not {rights!r}")
    return ApiKey(**{"text": text, **given})


def _read(name: str, value: object) -> Any:
    if name not in _NAMES:
        near = difflib.get_close_matches(name, _NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(_NAMES))}"
        raise ValueError(f"there is no setting {name!r}; {hint}")
    match name, value:
        case (("duration" | "cancel_delay"), Mapping()):
            return _lognormal(name, value)
        case "durations", Mapping():
            return {target: _lognormal(name, one) if isinstance(one, Mapping) else one for target, one in value.items()}
        case "deliveries", Mapping():
            return _deliveries(value)
        case _:
            return value


def _lognormal(name: str, given: Mapping[str, Any]) -> Lognormal:
    if not {"median"} <= set(given) <= {"median", "sigma"} or not all(map(is_number, given.values())):
        raise ValueError(f'{name} is seconds, or {{"median": ..., "sigma": ...}}, not {dict(given)!r}')
    return Lognormal(**given)


def _deliveries(given: Mapping[str, Any]) -> Deliveries:
    known = {field.name for field in attrs.fields(Deliveries)}
    if unknown := set(given) - known:
        raise ValueError(f"deliveries have no {min(unknown)!r}; choose from: {', '.join(sorted(known))}")
    values: dict[str, Any] = {
        name: _lognormal(name, value) if isinstance(value, Mapping) else value for name, value in given.items()
    }
    try:
        return Deliveries(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"deliveries: {error.args[0]}") from None
