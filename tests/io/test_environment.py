"""What the environment says of the way to a service: proxies, who goes without, certificates, and what is no use."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import traceback
import zipapp
from pathlib import Path
from typing import Any

import httpx
import pytest

import knouds_async
from knouds_async import AsyncKnouds, ConfigurationError
from knouds_async._io import pool as ours
from knouds_async._io.pool import is_bypassed, proxy_for

KEY = "knouds_live_test_0123456789"
PASSWORD = "s3cr/et#word"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from an environment that says nothing of it."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "https://knouds.ai", None),
        ({"HTTPS_PROXY": "http://p:3128"}, "https://knouds.ai", "http://p:3128"),
        ({"https_proxy": "http://p:3128"}, "https://knouds.ai/prefix", "http://p:3128"),
        ({"HTTPS_PROXY": "p:3128"}, "https://knouds.ai", "http://p:3128"),
        ({"HTTPS_PROXY": ""}, "https://knouds.ai", None),
        ({"ALL_PROXY": "http://all:1"}, "https://knouds.ai", "http://all:1"),
        ({"ALL_PROXY": "all:1"}, "https://knouds.ai", "http://all:1"),
        ({"ALL_PROXY": "socks5://all:1", "HTTPS_PROXY": "http://p:1"}, "https://knouds.ai", "http://p:1"),
        ({"HTTP_PROXY": "http://p:3128"}, "https://knouds.ai", None),
        ({"HTTP_PROXY": "http://p:3128"}, "http://inner.example", "http://p:3128"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "knouds.ai"}, "https://knouds.ai", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".knouds.ai"}, "https://api.knouds.ai", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other.ai, knouds.ai"}, "https://api.knouds.ai", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "https://knouds.ai", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "knouds.ai:8443"}, "https://knouds.ai:8443", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "knouds.ai:443"}, "https://knouds.ai", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "knouds.ai:8443"}, "https://knouds.ai", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "nouds.ai"}, "https://knouds.ai", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other.ai"}, "https://knouds.ai", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "ALL_PROXY": "http://p:2"}, "https://localhost:8000", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://127.0.0.1:8000", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://[::1]:8000", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "2001:db8::1"}, "https://[2001:db8::1]", None),
        ({"HTTPS_PROXY": "http://p:1", "https_proxy": ""}, "https://knouds.ai", None),
        ({"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, "http://inner.example", None),
        ({"HTTPS_PROXY": "http://user:p%40ss@p:1/"}, "https://knouds.ai", "http://user:p%40ss@p:1/"),
    ],
)
def test_the_environment_names_the_proxy(
    environment: dict[str, str], url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual variables count, and no proxy is asked to reach this machine."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == proxy


@pytest.mark.parametrize(
    ("entries", "host", "port", "is_named"),
    [
        ("*.knouds.ai", "api.knouds.ai", 443, True),
        ("*.knouds.ai", "a.api.knouds.ai", 443, True),
        ("*.knouds.ai", "knouds.ai", 443, False),
        ("*.knouds.ai:8443", "api.knouds.ai", 443, False),
        ("KNOUDS.ai", "Knouds.AI.", 443, True),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.1.2.3/8", "10.9.9.9", 443, True),
        ("10.0.0.0/8", "10.example", 443, False),
        ("192.168.0.1", "192.168.0.1", 443, True),
        ("168.0.1", "192.168.0.1", 443, False),
        ("2001:db8::/32", "2001:db8::5", 443, True),
        ("[2001:db8::]/32", "2001:db8::5", 443, True),
        ("[2001:db8::5]", "2001:db8::5", 443, True),
        ("[2001:db8::5]:8443", "2001:db8::5", 8443, True),
        ("[2001:db8::5]:8443", "2001:db8::5", 443, False),
        ("2001:0db8:0::5", "2001:db8::5", 443, True),
        ("2001:db8::/32", "10.0.0.1", 443, False),
        ("a.example b.example", "b.example", None, True),
        (" , ,", "b.example", 443, False),
        ("*.", "b.example", 443, False),
        ("10.0.0.0/99", "10.0.0.1", 443, False),
    ],
)
def test_who_goes_without_a_proxy(entries: str, host: str, port: int | None, is_named: bool) -> None:
    """Names, names below, addresses, ranges, IPv6 in brackets; a port binds an entry to it."""
    assert is_bypassed(entries, host, port) is is_named


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (f"http://user:{PASSWORD}@p:3128", "percent-encoded"),
        ("http://user:pass\n@p:3128", "line ends"),
        ("http://p:3128\n", "line ends"),
        ('"http://p:3128"', "quotes"),
        ("'http://p:3128'", "quotes"),
        ("http://p:31 28", "spaces"),
        ("http://user:pässword@p:3128", "no URL has"),
        ("http://", "http://host:port"),
        ("http://:3128", "http://host:port"),
        ("http://p:99999", "http://host:port"),
        ("http://p:port", "http://host:port"),
        ("http://p/pac?x", "http://host:port"),
        (f"user:{PASSWORD}@p", "http://host:port"),
        ("socks4://p:1080", "'socks4'"),
        ("s3cr:et://p:1080", "must be one of"),
    ],
)
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "all_proxy"])
def test_a_proxy_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """The constructor names the variable and what is wrong, and shows no part of what may be a password."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=said) as caught:
        AsyncKnouds(KEY)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    ours_only = shown[: shown.find("monkeypatch")] + str(caught.value) + repr(caught.value)
    assert f"${name}" in str(caught.value)
    assert "s3cr" not in ours_only
    assert "pass\n" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY"])
def test_socks_without_its_package_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A SOCKS proxy says at once which package it needs."""
    monkeypatch.setenv(name, f"socks5://user:{PASSWORD.replace('/', '').replace('#', '')}@p:1080")
    monkeypatch.setattr(ours, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="socksio") as caught:
        AsyncKnouds(KEY)
    assert f"${name}" in str(caught.value)
    assert "s3cr" not in str(caught.value)
    AsyncKnouds(KEY, base_url="http://127.0.0.1:1")  # no proxy is asked to reach this machine


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_certificates_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch, name: str, tmp_path: Path) -> None:
    """A missing file or folder of certificates, and one that holds none, is named with its variable."""
    wrong = tmp_path / "no-such.pem"
    monkeypatch.setenv(name, str(wrong))
    with pytest.raises(ConfigurationError, match=f"{name} names .*no-such.pem"):
        AsyncKnouds(KEY)
    wrong.write_text("no certificate")
    with pytest.raises(ConfigurationError, match=f"{name} names"):
        AsyncKnouds(KEY)
    AsyncKnouds(KEY, ssl_context=ssl.create_default_context())
    AsyncKnouds(KEY, base_url="http://127.0.0.1:1")


def test_a_key_log_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Python writes the keys of TLS connections where $SSLKEYLOGFILE says, so that is named, too."""
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "no-such" / "keys"))
    with pytest.raises(ConfigurationError, match=r"\$SSLKEYLOGFILE names .*no-such"):
        AsyncKnouds(KEY)


@pytest.mark.parametrize("given", [True, "ca.pem", ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)])
@pytest.mark.parametrize("http_client", [None, httpx.AsyncClient(verify=False)])  # noqa: S501  (it is not used)
def test_an_ssl_context_that_is_none_is_refused(given: Any, http_client: Any) -> None:
    """Anything but a client's context is told when the client is built, not by each call."""
    with pytest.raises(ConfigurationError, match="ssl_context="):
        AsyncKnouds(KEY, ssl_context=given, http_client=http_client)


def test_plain_http_loads_no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a service without TLS no TLS context is made: it takes longer than all the rest of a client."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a TLS context was made")

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", refuse)
    monkeypatch.setattr(ssl, "create_default_context", refuse)
    AsyncKnouds(KEY, base_url="http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://p:1")
    AsyncKnouds(KEY, base_url="http://inner.example", allow_insecure_http=True)


def test_a_copy_without_metadata_runs(tmp_path: Path) -> None:
    """Vendored or in a zip, without `.dist-info`, the package builds a client and knows its version."""
    source, copy = Path(knouds_async.__file__).parent, tmp_path / "app"
    (copy / "knouds_async").parent.mkdir()
    for path in source.rglob("*"):
        if path.suffix in (".py", ".json") and "__pycache__" not in path.parts:
            (copy / "knouds_async" / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (copy / "knouds_async" / path.relative_to(source)).write_bytes(path.read_bytes())
    (copy / "__main__.py").write_text(
        "import importlib.metadata\n"
        "def missing(name): raise importlib.metadata.PackageNotFoundError(name)\n"
        "importlib.metadata.version = missing\n"
        "from knouds_async import AsyncKnouds, __file__, __version__\n"
        f"AsyncKnouds({KEY!r})\n"
        "print(__file__, __version__)\n"
    )
    zipapp.create_archive(copy, tmp_path / "app.pyz")
    command = [sys.executable, str(tmp_path / "app.pyz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": ""})  # noqa: S603
    assert "app.pyz" in done.stdout
    assert done.stdout.split()[-1] == knouds_async.__version__
