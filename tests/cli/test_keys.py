"""Where a key comes from: the environment, a profile in a private file, a file .env; and to which service it goes."""

import os
import stat
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async import Secret
from knouds_async._cli.keys import StoredKey, find_key, profiles_path, read_env_file, save_profile

KEY = "knouds_live_canary_0123456789"
PutUp = Callable[..., Any]
Here = Callable[..., Any]


def told(stored: StoredKey | None) -> tuple[str | None, str | None]:
    """Return the key as text, and its service."""
    assert stored is not None
    return None if stored.key is None else stored.key.reveal(), stored.base_url


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the environment of a user without a key, in an empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return {"XDG_CONFIG_HOME": str(tmp_path / "config")}


@pytest.fixture
def keyless(service: Any, folder: Any) -> dict[str, str]:
    """Return the environment of a user of the service without a key, whose home is the current folder."""
    env = {name: text for name, text in service.env.items() if not name.startswith("KNOUDS_")}
    return env | {"XDG_CONFIG_HOME": str(folder.path / "config")}


@pytest.mark.parametrize(
    ("text", "key", "base_url"),
    [
        ("KNOUDS_KEY=a\n", "a", None),
        ("\ufeffexport KNOUDS_KEY='a b' # mine\nOTHER=x\n", "a b", None),
        (
            'OTHER\n# KNOUDS_KEY=no\nKNOUDS_KEY = "a#b"\r\nKNOUDS_BASE_URL=http://localhost:1\n',
            "a#b",
            "http://localhost:1",
        ),
        ("KNOUDS_KEY=first\nKNOUDS_KEY=last\n", "last", None),
    ],
)
def test_a_file_of_variables_is_read(tmp_path: Path, text: str, key: str, base_url: str | None) -> None:
    """A key and a service are read as shells write them; other lines are passed over."""
    (tmp_path / ".env").write_text(text, encoding="utf-8")
    assert told(read_env_file(tmp_path / ".env")) == (key, base_url)


@given(st.binary(max_size=100))
def test_no_file_of_variables_is_an_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever stands in a file that is not ours, commands work without it; without a key its service is not used."""
    path = tmp_path_factory.mktemp("any") / ".env"
    path.write_bytes(data)
    read_env_file(path)
    path.write_bytes(b"KNOUDS_BASE_URL=https://evil.example\n")
    assert read_env_file(path) is None
    assert read_env_file(path.parent) is None


def test_the_nearest_key_wins(environment: dict[str, str]) -> None:
    """--profile, $KNOUDS_KEY, $KNOUDS_PROFILE, .env and the default count in this order, each with its service."""
    assert told(find_key(None, environment)) == (None, None)
    save_profile("default", StoredKey(Secret("d")), environment)
    assert told(find_key(None, environment)) == ("d", "https://knouds.ai")
    Path(".env").write_text("KNOUDS_KEY=e\nKNOUDS_BASE_URL=http://localhost:1\n")
    assert told(find_key(None, environment)) == ("e", "http://localhost:1")
    save_profile("work", StoredKey(Secret("w"), "http://localhost:2"), environment)
    assert told(find_key(None, environment | {"KNOUDS_PROFILE": "work"})) == ("w", "http://localhost:2")
    assert told(find_key(None, environment | {"KNOUDS_PROFILE": "work", "KNOUDS_KEY": "k"})) == (None, None)
    assert told(find_key("work", environment | {"KNOUDS_KEY": "k", "KNOUDS_BASE_URL": "https://x"})) == (
        "w",
        "http://localhost:2",
    )
    with pytest.raises(Exception, match=r"no profile 'home' \(there are default, work\): .*login --profile home"):
        find_key("home", environment)


def test_what_was_saved_is_private_and_kept(environment: dict[str, str]) -> None:
    """The file is for its owner alone, a second profile leaves the first, and no text breaks it."""
    odd = 'a"b\\c\u00e4\n[x]'
    path = save_profile("one", StoredKey(Secret("1")), environment)
    assert save_profile("two", StoredKey(Secret(odd), "http://localhost:1"), environment) == path
    assert path == profiles_path(environment)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert told(find_key("one", environment)) == ("1", "https://knouds.ai")
    assert told(find_key("two", environment)) == (odd, "http://localhost:1")
    assert [each.name for each in path.parent.iterdir()] == ["profiles.toml"]
    with pytest.raises(Exception, match="must be letters"):
        save_profile("../x", StoredKey(Secret("1")), environment)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
def test_a_link_to_a_file_of_keys_stays_one(environment: dict[str, str], tmp_path: Path) -> None:
    """A key is saved in the file that the link leads to, which may be among other files of the user's settings."""
    path = profiles_path(environment)
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "profiles.toml")
    for name in ("first", "second"):
        assert save_profile(name, StoredKey(Secret(name)), environment) == path
    assert path.is_symlink()
    assert set(tomllib.loads((tmp_path / "profiles.toml").read_text())) == {"first", "second"}


@pytest.mark.parametrize("name", ["my shop", "a.b", "", "\U0001f511", 'a"b', "a\x7fb"])
def test_what_somebody_wrote_is_still_read_after_another_key_was_saved(environment: dict[str, str], name: str) -> None:
    """A name or a value that has to be quoted, as TOML allows, is not saved as what nobody can read."""
    path = profiles_path(environment)
    save_profile("mine", StoredKey(Secret("m")), environment)
    quoted = "".join(f"\\U{ord(char):08x}" for char in name)
    with path.open("a", encoding="utf-8") as file:
        file.write(f'["{quoted}"]\nkey = "k"\nbase_url = "https://{quoted}"\n')
    save_profile("other", StoredKey(Secret("o")), environment)
    assert [told(find_key(each, environment))[0] for each in ("mine", "other")] == ["m", "o"]
    assert tomllib.loads(path.read_text(encoding="utf-8"))[name] == {"key": "k", "base_url": f"https://{name}"}


@pytest.mark.skipif(os.name != "posix", reason="there are no modes")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(environment: dict[str, str], mode: int) -> None:
    """The error says what to do, and shows no key."""
    path = save_profile("default", StoredKey(Secret(KEY)), environment)
    path.chmod(mode)
    with pytest.raises(Exception, match=r"run `chmod 600 .*profiles\.toml`: others can read") as refused:
        find_key(None, environment)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    "text", [f"key = {KEY}", f'[a]\nkey = "{KEY}', f"[a]\nkey = ['{KEY}']", f'a = "{KEY}"', "\ud800"]
)
def test_a_file_that_is_none_is_refused_without_its_contents(environment: dict[str, str], text: str) -> None:
    """What is wrong with a file of profiles is said with its name and nothing out of it."""
    path = profiles_path(environment)
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode(errors="surrogatepass"))
    path.chmod(0o600)
    with pytest.raises(Exception, match=r"profiles\.toml") as refused:
        find_key("a", environment)
    assert KEY not in str(refused.value)


def test_a_key_is_saved_and_used(service: Any, knouds: Here, keyless: dict[str, str]) -> None:
    """`knouds login` takes a key from stdin and asks whose it is; commands then use it, with --profile or without."""
    at = ("--base-url", service.base_url)
    assert knouds("whoami", *at, env=keyless).code == 3
    saved = knouds("login", *at, env=keyless, stdin=f"{service.emulator.api_key}\n")
    assert (saved.code, saved.out) == (0, ""), saved
    assert "is saved as [default] in " in saved.err
    assert service.emulator.api_key not in saved.err
    assert knouds("whoami", env=keyless).code == 0
    assert knouds("login", *at, "--profile", "work", env=keyless, stdin=service.emulator.api_key).code == 0
    elsewhere = keyless | {"KNOUDS_KEY": KEY, "KNOUDS_BASE_URL": "http://127.0.0.1:9"}
    assert knouds("whoami", "--profile", "work", env=elsewhere).code == 0
    waited = knouds("run", "daily-picture", "--profile", "work", "--timeout", "0.0001", env=elsewhere)
    assert waited.code == 0 or " --profile work`" in waited.err


@pytest.mark.parametrize(("text", "code"), [("", 3), ("\n", 3), (KEY, 3), ("with spaces", 3)])
def test_a_key_that_is_none_is_not_saved(
    service: Any, knouds: Here, keyless: dict[str, str], text: str, code: int
) -> None:
    """A key that is missing, malformed or refused by the service leaves no file behind, and is not shown."""
    ended = knouds("login", "--base-url", service.base_url, env=keyless, stdin=text)
    assert ended.code == code
    assert not text.strip() or text not in ended.err
    assert not profiles_path(keyless).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_key_in_a_file_of_variables_is_used(service: Any, knouds: Here, keyless: dict[str, str]) -> None:
    """A file .env in the current folder gives the key and the service that it is for."""
    Path(".env").write_text(f"KNOUDS_KEY={service.emulator.api_key}\nKNOUDS_BASE_URL={service.base_url}\n")
    assert knouds("whoami", env=keyless).code == 0
    assert knouds("whoami", env=keyless | {"KNOUDS_KEY": KEY, "KNOUDS_BASE_URL": service.base_url}).code == 3


def test_an_unknown_profile_is_wrong_usage(service: Any, knouds: Here, keyless: dict[str, str]) -> None:
    """The profiles that there are are named, and the command that makes another."""
    ended = knouds("whoami", "--profile", "home", env=keyless)
    assert ended.code == 2
    assert "no profile 'home' (there are none): save one with `knouds login --profile home`" in ended.err
