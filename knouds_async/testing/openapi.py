"""The service's HTTP API as an OpenAPI 3.1 document, which is stored beside this file as `openapi.json`."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

__all__ = ["openapi"]


def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of the service, parsed; each call returns a copy of its own.

    For mock servers, client generators and fuzzers. What the service does not document is marked `x-assumed`.
    """
    document: dict[str, Any] = json.loads(files("knouds_async.testing").joinpath("openapi.json").read_bytes())
    return document
