"""Where the command line finds an API key: $KNOUDS_KEY, a profile in a private file, or a file .env; never an argument.

A key goes to the service that is named beside it, and nowhere else: a file .env in a folder that somebody else made may
name another service, but not for a key that comes from the environment or from a profile.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from knouds_async import Secret
from knouds_async._cli.errors import KeyMissingError, UsageError
from knouds_async._cli.output import one_line

DEFAULT_PROFILE: Final = "default"
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FIELDS: Final = ("key", "base_url")
_LINE: Final = re.compile(r"""\s*(?:export\s+)?(KNOUDS_\w+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^#]*?))\s*(?:\#.*)?""")


@attrs.frozen
class StoredKey:
    """A key and the service that it is for; None: the library's own default, and for a key $KNOUDS_KEY.

    `origin`: what the address is called where it was given.
    """

    key: Secret | None = None
    base_url: str | None = None
    origin: str = "base_url"


def find_key(profile: str | None, environment: Mapping[str, str]) -> StoredKey:
    """Return the key to use: of the profile that was asked for, else $KNOUDS_KEY, a file .env, the default profile.

    Raises UsageError for a profile that there is not, KeyMissingError for a file of keys that others can read.
    """
    named = profile or environment.get("KNOUDS_PROFILE")
    if profile is None and environment.get("KNOUDS_KEY"):
        return StoredKey()
    if named is None and (stored := read_env_file(Path(".env"))) is not None:
        return stored
    profiles = _read_profiles(profiles_path(environment))
    if named is None:
        return _of_profile(DEFAULT_PROFILE, profiles) if DEFAULT_PROFILE in profiles else StoredKey()
    if named not in profiles:
        known = f"there are {', '.join(profiles)}" if profiles else "there are none"
        raise UsageError(one_line(f"no profile {named!r} ({known}): save one with `knouds login --profile {named}`"))
    return _of_profile(named, profiles)


def _of_profile(name: str, profiles: Mapping[str, Mapping[str, str]]) -> StoredKey:
    fields = profiles[name]
    url = fields.get("base_url") or "https://knouds.ai"
    return StoredKey(Secret(fields.get("key", "")), url, f"base_url of the profile {name}")


def read_env_file(path: Path) -> StoredKey | None:
    """Return the key in a file such as `.env`, None when there is none; other variables are passed over."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return None
    found = {}
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            found[match[1]] = next(part for part in match.groups()[1:] if part is not None)
    key = found.get("KNOUDS_KEY")
    return StoredKey(Secret(key), found.get("KNOUDS_BASE_URL") or None, "KNOUDS_BASE_URL in .env") if key else None


def profiles_path(environment: Mapping[str, str]) -> Path:
    """Return the file of profiles; raises KeyMissingError for a user without a home."""
    folder = environment.get("XDG_CONFIG_HOME")
    try:
        return (Path(folder) if folder else Path.home() / ".config") / "knouds" / "profiles.toml"
    except RuntimeError:
        raise KeyMissingError("set $KNOUDS_KEY, or $HOME: this user has no home for a file of keys") from None


def _read_profiles(path: Path) -> dict[str, dict[str, str]]:
    """Return the profiles by their names; none where there is no file."""
    try:
        with path.open("rb") as file:
            if os.name == "posix" and stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise KeyMissingError(one_line(f"run `chmod 600 {path}`: others can read the keys in it"))
            profiles = tomllib.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not TOML: write [NAME], and below it key and base_url in quotes"
        raise KeyMissingError(one_line(f"{path}: {why}")) from None
    for name, fields in profiles.items():
        is_text = isinstance(fields, dict) and all(isinstance(fields.get(each, ""), str) for each in _FIELDS)
        if not is_text:
            raise KeyMissingError(one_line(f"{path}: [{name}] must hold key and base_url as strings"))
    return profiles


def save_profile(name: str, stored: StoredKey, environment: Mapping[str, str]) -> Path:
    """Save a key under a name in the private file, and return its path; raises UsageError for another kind of name."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"--profile {one_line(name)}: must be letters, digits, - and _, 64 at most")
    path = profiles_path(environment)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = "" if stored.key is None else stored.key.reveal()
    fields = {"key": key} | ({} if stored.base_url is None else {"base_url": stored.base_url})
    profiles = {**_read_profiles(path), name: fields}
    text = "\n".join(_section(each, values) for each, values in profiles.items())
    target = path.resolve()  # of a link, the file
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600, exist_ok=False)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(target)
    return path


def _section(name: str, values: Mapping[str, str]) -> str:
    heading = name if _NAME.fullmatch(name) else _quoted(name)  # somebody wrote it by hand
    return f"[{heading}]\n" + "".join(f"{field} = {_quoted(values[field])}\n" for field in _FIELDS if field in values)


def _quoted(text: str) -> str:
    """Return text as a string of TOML: one of JSON, but without pairs of surrogates, and with DEL escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
