"""Options of a client: what is allowed, and that a bad value is named, unless it is the key."""

import copy
import math
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import attrs
import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from knouds_async import config
from knouds_async.config import Backoff, Polling, Retries, Secret, Timeouts
from knouds_async.errors import ConfigurationError

CANARY = "knouds_live_CANARY0123456789"
VARIABLES = ["KNOUDS_KEY", "KNOUDS_BASE_URL", "REQUEST_METHOD"] + [
    name for word in ("http", "https", "all", "no") for name in (f"{word}_proxy", f"{word}_proxy".upper())
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from an environment that names nothing."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def everything_shown(error: BaseException) -> str:
    """Return all that a traceback tool would show of an error, locals of the library's frames included."""
    seen = [repr(error), str(error), repr(vars(error)), repr(pickle.dumps(error))]
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if "knouds_async" in frame.f_code.co_filename:
            seen += [repr(value) for value in frame.f_locals.values()]
    return "".join([*seen, *traceback.format_exception(error)])


# The key.


@pytest.mark.parametrize("key", [CANARY, "x", "!~", "k" * 512])
def test_a_key_is_kept_as_it_is(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of printable ASCII is taken, from the argument or from the environment."""
    assert config.api_key(Secret(key)).reveal() == key
    monkeypatch.setenv("KNOUDS_KEY", key)
    assert config.api_key(None).reveal() == key


def test_the_argument_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is given counts, an empty one too."""
    monkeypatch.setenv("KNOUDS_KEY", "other")
    assert config.api_key(Secret(CANARY)).reveal() == CANARY
    with pytest.raises(ConfigurationError, match="no API key"):
        config.api_key(Secret(""))


@pytest.mark.parametrize("present", [None, ""])
def test_a_missing_key_says_how_to_set_it(present: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key the error names the variable and the argument."""
    if present is not None:
        monkeypatch.setenv("KNOUDS_KEY", present)
    with pytest.raises(ConfigurationError, match=r"\$KNOUDS_KEY.*AsyncKnouds\(api_key="):
        config.api_key(None)


MALFORMED: list[Any] = [
    f"{CANARY}\n", f" {CANARY}", f"{CANARY} x", f"{CANARY}\r\nx-evil: 1", f"{CANARY}\0", f"{CANARY}\x7f",
    f"{CANARY}\xe9", f"{CANARY}\u0661", f"{CANARY}\ud800", CANARY * 50, CANARY.encode(), [CANARY], {"key": CANARY},
]  # fmt: skip


@pytest.mark.parametrize("key", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_key_is_refused_and_never_shown(key: Any) -> None:
    """Message, repr, pickle, traceback and locals hold nothing of a key that was refused."""
    with pytest.raises(ConfigurationError) as caught:
        config.api_key(Secret.of(key))
    assert CANARY not in everything_shown(caught.value)


@given(st.text())
def test_any_text_is_a_key_or_malformed(text: str) -> None:
    """Whatever the text: it is printable ASCII without spaces, or refused without being shown."""
    try:
        key = config.api_key(Secret(f"{CANARY}{text}"))
    except ConfigurationError as error:
        assert CANARY not in everything_shown(error)  # noqa: PT017
    else:
        assert all("!" <= letter <= "~" for letter in key.reveal())


def test_a_secret_shows_nothing() -> None:
    """Neither repr, text, format nor attributes show it, and it is neither pickled nor copied."""
    secret = Secret(CANARY)
    assert secret.reveal() == CANARY
    assert {repr(secret), str(secret), f"{secret}", f"{secret!s:>20}".strip()} == {"Secret('***')"}
    assert not hasattr(secret, "__dict__")
    for refused in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled") as caught:
            refused(secret)
        assert CANARY not in str(caught.value)


def test_a_secret_is_wrapped_once() -> None:
    """`of` takes a text, a Secret or None."""
    secret = Secret(CANARY)
    assert Secret.of(secret) is secret
    assert Secret.of(None) is None
    wrapped = Secret.of(CANARY)
    assert wrapped is not None
    assert wrapped.reveal() == CANARY


# The base URL.


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        (None, "https://knouds.ai"),
        ("https://knouds.ai/", "https://knouds.ai"),
        ("https://knouds.ai///", "https://knouds.ai"),
        ("https://api.example:8443/prefix/", "https://api.example:8443/prefix"),
        ("HTTPS://Knouds.AI", "HTTPS://Knouds.AI"),
        ("https://xn--knuds-jua.example", "https://xn--knuds-jua.example"),
        ("https://10.0.0.1", "https://10.0.0.1"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://LOCALHOST", "http://LOCALHOST"),
        ("http://app.localhost", "http://app.localhost"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.9.9.9", "http://127.9.9.9"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_base_url_is_https_or_loopback(given_url: str | None, url: str) -> None:
    """https to anywhere and http to this machine are taken, without trailing slashes."""
    assert config.base_url(given_url) == url


def test_an_address_is_named_by_where_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with `$KNOUDS_BASE_URL` is said of it, not of an argument that nobody gave."""
    monkeypatch.setenv("KNOUDS_BASE_URL", "nowhere")
    with pytest.raises(ConfigurationError, match=r"^\$KNOUDS_BASE_URL 'nowhere' must be https"):
        config.base_url(None)


def test_the_base_url_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument comes first, then `$KNOUDS_BASE_URL`, then the vendor's; an empty variable is none."""
    monkeypatch.setenv("KNOUDS_BASE_URL", "https://env.example/")
    assert config.base_url(None) == "https://env.example"
    assert config.base_url("https://arg.example") == "https://arg.example"
    monkeypatch.setenv("KNOUDS_BASE_URL", "")
    assert config.base_url(None) == "https://knouds.ai"


@pytest.mark.parametrize(
    "url",
    ["http://knouds.ai", "http://0.0.0.0", "http://10.0.0.1", "http://127.1", "http://localhost.example",
     "http://notlocalhost", "http://[2001:db8::1]", "http://127.0.0.1.example", "http://localhost.", "http://2130706433"],
)  # fmt: skip
def test_plain_http_to_another_machine_has_to_be_asked_for(url: str) -> None:
    """The key would travel in the clear: refused with the way out, taken when asked for."""
    with pytest.raises(ConfigurationError, match="allow_insecure_http=True") as caught:
        config.base_url(url)
    assert repr(url) in str(caught.value)
    assert config.base_url(url, allow_insecure_http=True) == url


@pytest.mark.parametrize(
    "url",
    ["", "knouds.ai", "//knouds.ai", "ftp://knouds.ai", "https://", "https:///path", "https:knouds.ai", "https://:443",
     "file:///etc/passwd", "https://knouds.ai?", "https://knouds.ai#", "https://knouds.ai/?x=1", "https://knouds.ai#x",
     "https://knouds.ai:99999", "https://knouds.ai:-1", "https://knouds.ai:x", "https://[::1", "https://[zz]",
     "https://kno uds.ai", "https://knouds.ai/a b", "https://knouds.ai\n", "\x01https://knouds.ai", "https://kn\0ouds.ai",
     "https://knouds.ai\\x", "https:\\\\knouds.ai", "https://kn\u00f6uds.ai", "https://knouds\u3002ai", "https://%zz",
     "https://a,b", "https://a;b", "https://\ud800", "https://[::1]x", "https://[::1]1", "https://x[::1]", " https://knouds.ai"],
    ids=ascii,
)  # fmt: skip
def test_what_is_no_base_url_is_refused_by_name(url: str) -> None:
    """A URL to which paths cannot be appended, or whose host is none, is refused before any request."""
    for allow in (False, True):
        with pytest.raises(ConfigurationError, match=r"^base_url "):
            config.base_url(url, allow_insecure_http=allow)


@pytest.mark.parametrize(
    "url",
    ["https://user:CANARY@knouds.ai", "https://CANARY@knouds.ai", "https://user:CANARY@[bad", "https:\\\\u:CANARY@x",
     "https://user:CANARY@knouds.ai:99999", "user:CANARY@knouds.ai", CANARY, f"https://{CANARY}.example",
     f"https://knouds.ai/?key={CANARY}", "https://knouds.ai/?token=CANARY", "https://knouds.ai/#CANARY"],
)  # fmt: skip
def test_secrets_in_a_base_url_are_refused_and_not_shown(url: str) -> None:
    """A user name, password, key or query does not get into the message, nor a password or key into our frames."""
    with pytest.raises(ConfigurationError) as caught:
        config.base_url(Secret(url))
    assert "CANARY" not in str(caught.value)
    assert "CANARY" not in "".join(traceback.format_exception(caught.value))
    if "@" in url or CANARY in url:
        assert "must not hold a user name, a password or a key" in str(caught.value)
        assert "CANARY" not in everything_shown(caught.value)


@pytest.mark.parametrize("url", [5, b"https://knouds.ai", ["https://knouds.ai"]])
def test_a_base_url_is_a_text(url: Any) -> None:
    """A URL of another type is refused by its type."""
    with pytest.raises(ConfigurationError, match=f"base_url must be a string, not {type(url).__name__}"):
        config.base_url(url)


@given(st.text(alphabet="htps:/[]@?#.a1 \\%\n", max_size=25) | st.text())
@example("https://a\x85b")
@example("/\U0001b123")
def test_any_text_is_a_base_url_or_refused(text: str) -> None:
    """Whatever the text: paths can be appended to it, or ConfigurationError is raised."""
    for url in (text, f"https://{text}", f"http://localhost{text}"):
        try:
            passed = config.base_url(url)
        except ConfigurationError:
            continue
        assert passed.isprintable()
        assert not set(passed) & set("?#@\\ ")
        assert passed.lower().startswith(("https://", "http://"))
        assert httpx.URL(f"{passed}/api").host  # the library that sends takes it for a URL too


SPELLINGS = (
    ("https://knouds.ai", "HTTPS://Knouds.AI", "https://knouds.ai/", "https://knouds.ai:443", "https://knouds.ai:/"),
    ("https://knouds.ai/Prefix", "https://KNOUDS.ai:0443/Prefix//"),
    ("https://knouds.ai/prefix",),
    ("https://knouds.ai:8443", "https://knouds.ai:08443/"),
    ("http://localhost", "http://LOCALHOST:80"),
    ("http://localhost:443",),
    ("http://[::1]:8000", "http://[0:0::1]:8000/"),
)


def test_one_service_has_one_spelling() -> None:
    """Case of scheme and host, the usual port, slashes at the end do not make another service; the rest does."""
    seen = [{config.canonical_url(config.base_url(url)) for url in same} for same in SPELLINGS]
    assert seen == [{same[0]} for same in SPELLINGS]


DATABASES = ["postgresql://u:p@h/d", "postgres://h/d", "POSTGRESQL+psycopg://h/d", "//u:p@h/d", "u:p@h/d", "password=p"]
PATHS = ["renders.db", "/var/lib/renders.db", "C:\\renders.db", "mail@home.db", "", 5, None]


def test_what_was_meant_as_a_databases_url_is_hidden() -> None:
    """A URL with a password is kept as a Secret, however it is misspelled; a path stays as it is."""
    assert [url for url in DATABASES if not isinstance(config.hide_url(url), Secret)] == []
    assert [path for path in PATHS if config.hide_url(path) is not path] == []
    assert [config.is_database_url(url) for url in (*DATABASES, *PATHS)] == [True, True] + [False] * 11


# This machine.


@pytest.mark.parametrize(
    ("host", "is_here"),
    [("localhost", True), ("a.localhost", True), ("127.0.0.1", True), ("127.255.0.1", True), ("::1", True),
     ("localhost.example", False), ("xlocalhost", False), ("127.1", False), ("::", False),
     ("10.0.0.1", False), ("", False), ("knouds.ai", False)],
)  # fmt: skip
def test_loopback_is_known_without_a_lookup(host: str, is_here: bool) -> None:
    """Only names and addresses that cannot lead elsewhere count as this machine."""
    assert config.is_loopback(host) is is_here


# Tiers.


@pytest.mark.parametrize(
    ("tier", "limit"),
    [("free", 10), ("pro", 100), ("deployment", 100), ("business", 1000), ("admin", 1000), ("enterprise", math.inf),
     ("super_admin", math.inf), (None, None)],
)  # fmt: skip
def test_a_tier_has_its_limit(tier: str | None, limit: float | None) -> None:
    """Tiers of both generations give their requests per minute (contract 6); None has to be learned."""
    assert config.requests_per_minute(tier) == limit


@pytest.mark.parametrize("tier", ["creator", "Pro", "", "pro ", 100, ["pro"], True])
def test_an_unknown_tier_is_named_with_the_known_ones(tier: Any) -> None:
    """A tier that says nothing of the limit is refused with the way out."""
    with pytest.raises(ConfigurationError, match="or None to learn it") as caught:
        config.requests_per_minute(tier)
    assert repr(tier) in str(caught.value)
    assert all(known in str(caught.value) for known in config.TIERS)


@pytest.mark.parametrize("value", [1, 1.0, 0.7, 1e-9])
def test_a_share_is_a_part_of_the_quota(value: float) -> None:
    """More than nothing and at most all is a share."""
    assert config.share(value) == value


@pytest.mark.parametrize("value", [0, -0.5, 1.01, math.nan, math.inf, True, "0.5", None])
def test_what_is_no_share_is_named(value: Any) -> None:
    """Anything else is refused by name and value."""
    with pytest.raises(ConfigurationError) as caught:
        config.share(value)
    assert f"share={value!r}: must be a number" in str(caught.value)


# Frozen values.

KINDS: list[type[Any]] = [Backoff, Retries, Timeouts]
ODD: list[Any] = ["1", None, math.nan, True, -1, -0.5, -math.inf, [1], 1j, 10**400]


def fields() -> list[tuple[type[Any], str]]:
    """Return every number that can be configured."""
    return [(kind, field.name) for kind in KINDS for field in attrs.fields(kind)]


@pytest.mark.parametrize(("kind", "name"), fields())
def test_a_bad_number_is_named_with_its_field(kind: type[Any], name: str) -> None:
    """What is no number, or below the bound, is refused by class, field and value."""
    for value in ODD:
        with pytest.raises(ConfigurationError) as caught:
            kind(**{name: value})
        assert f"{kind.__name__}({name}={value!r:.80}): must be a" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Backoff(first=0), "Backoff(first=0): must be a number of more than 0"),
        (lambda: Backoff(longest=0.0), "Backoff(longest=0.0): must be a number of more than 0"),
        (lambda: Backoff(factor=0.99), "Backoff(factor=0.99): must be a number of at least 1"),
        (lambda: Backoff(jitter=1.01), "Backoff(jitter=1.01): must be a number of at least 0 and at most 1"),
        (
            lambda: Polling(cost_of_request=0),
            "Polling(cost_of_request=0): must be a number of more than 0 and at most 1e+300",
        ),
        (
            lambda: Polling(cost_of_request=math.inf),
            "Polling(cost_of_request=inf): must be a number of more than 0 and at most 1e+300",
        ),
        (lambda: Polling.every(0), "Backoff(first=0): must be a number of more than 0"),
        (lambda: Polling.backoff(factor=0.5), "Backoff(factor=0.5): must be a number of at least 1"),
        (lambda: Retries(attempts=0), "Retries(attempts=0): must be an integer of at least 1"),
        (lambda: Retries(attempts=1.5), "Retries(attempts=1.5): must be an integer of at least 1"),  # type: ignore[arg-type]
        (lambda: Timeouts(read=0), "Timeouts(read=0): must be a number of more than 0"),
    ],
)
def test_a_number_below_its_bound_is_refused(make: Callable[[], object], words: str) -> None:
    """The bound itself is said."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert str(caught.value) == words


@pytest.mark.parametrize(
    "options", [{"sweeps": "no"}, {"sweeps": None}, {"schedule": 5}, {"schedule": Polling.every(5)}]
)
def test_what_is_no_way_of_polling_is_named(options: dict[str, Any]) -> None:
    """A switch is True or False and a schedule a Backoff; anything else is refused at once."""
    ((name, value),) = options.items()
    with pytest.raises(ConfigurationError) as caught:
        Polling(**options)
    assert f"Polling({name}={repr(value)[:80]}): must be " in str(caught.value)


def test_bounds_are_allowed() -> None:
    """No retries, no waits, no jitter and no time-out can be asked for."""
    assert Retries(attempts=1, longest=0, budget=0).budget == 0
    assert Retries(longest=math.inf, budget=math.inf).longest == math.inf
    assert Timeouts(run=math.inf).run == math.inf
    assert Backoff(factor=1, jitter=1).jitter == 1


def test_polling_has_two_plain_schedules() -> None:
    """`backoff` grows with jitter; `every` is even."""
    assert Polling.backoff(2.0, 3.0, 30.0).schedule == Backoff(first=2.0, factor=3.0, longest=30.0)
    assert Polling.every(7).schedule == Backoff(first=7, factor=1.0, longest=7, jitter=0.0)


@pytest.mark.parametrize("kind", [*KINDS, Polling])
def test_configurations_are_frozen_values(kind: type[Any]) -> None:
    """They compare by value, pickle, and change by `attrs.evolve` only."""
    value = kind()
    assert value == kind() == pickle.loads(pickle.dumps(value)) == copy.deepcopy(value)  # noqa: S301  (our own)
    name = attrs.fields(kind)[0].name
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, name, 5)
    assert attrs.evolve(value) == value
    with pytest.raises(TypeError):
        kind(1)
