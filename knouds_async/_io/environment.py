"""What the environment says of the way to a service: its proxy, and the certificates that are believed.

Rule of the file: what cannot be used is a ConfigurationError that names the variable, when the client is built.
"""

from __future__ import annotations

import ssl
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from knouds_async import config
from knouds_async._io.pool import Proxy
from knouds_async._sansio import proxies
from knouds_async.errors import ConfigurationError

_PORTS = {"https": 443, "http": 80}
_ADVICE = "correct it, unset it, or name the service in $NO_PROXY"


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for a URL (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`), if any."""
    parts, environment = urlsplit(url), config.environment()
    host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    skipped = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if config.is_loopback(host) or proxies.is_bypassed(skipped, host, port):
        return None
    variable = proxies.chosen(environment, parts.scheme)
    if variable is None:
        return None
    if (why := proxies.fault(variable, has_socks=find_spec("socksio") is not None)) is not None:
        name, variable, environment = variable.name, None, {}  # so that no frame of ours shows a password
        raise ConfigurationError(f"the proxy in ${name}: {why}; {_ADVICE}")
    return proxies.url_of(variable)


def host_of_proxy(url: str) -> str | None:
    """Return host and port of the proxy for a URL, and nothing else of it: the rest may hold a password."""
    return None if (named := proxy_for(url)) is None else Proxy.of(named).name


def tls_context(url: str, proxy: str | None) -> ssl.SSLContext | None:
    """Return what checks the certificates of a service; None where there is no TLS: loading them takes long."""
    if urlsplit(url).scheme != "https" and urlsplit(proxy or "").scheme != "https":
        return None
    environment = config.environment()
    name = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if environment.get(name)), "")
    path = environment.get(name, "")
    try:
        if name and not (Path(path).is_dir() if name == "SSL_CERT_DIR" else Path(path).exists()):
            raise FileNotFoundError("there is no such file or folder")
        return httpx.create_ssl_context(trust_env=True)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        if (log := environment.get("SSLKEYLOGFILE")) and getattr(error, "filename", None) == log:
            name, path = "SSLKEYLOGFILE", log
        if not name:
            raise
        why = getattr(error, "strerror", None) or str(error)
    raise ConfigurationError(
        f"${name} names {path!r}, which cannot be used: {why}; correct it, unset it, or pass ssl_context="
    )


def check_context(given: object) -> None:
    """Raise ConfigurationError for what is no context of a client's: each call would fail, and be tried again."""
    if given is not None and not isinstance(given, ssl.SSLContext):
        raise ConfigurationError(f"ssl_context={given!r:.80}: must be an ssl.SSLContext, or None for the default")
    if given is not None and given.protocol == ssl.PROTOCOL_TLS_SERVER:
        raise ConfigurationError("ssl_context=: is a server's; make a client's with ssl.create_default_context()")
