"""Small media files, so that a result can be fetched when `media_url` points back at the emulator (contract 12)."""

from __future__ import annotations

import base64
from typing import Final

from knouds_async.testing._service.replies import ErrorResponse, not_found
from knouds_async.testing._service.service import EndpointCall, ServiceState
from knouds_async.testing.messages import Response

__all__ = ["media"]

_PNG: Final = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
_MP4: Final = b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isommp41"
_MP3: Final = b"ID3\x04\x00\x00\x00\x00\x00\x00"
_FILES: Final = {".png": ("image/png", _PNG), ".mp4": ("video/mp4", _MP4), ".mp3": ("audio/mpeg", _MP3)}


def media(_: ServiceState, call: EndpointCall) -> Response:
    """Answer GET /media/:name; 400 when a key was sent along, which the real bucket must never see."""
    if "x-api-key" in call.request.headers:
        raise ErrorResponse(400, None, "An API key was sent to the media host")
    for ending, (content_type, body) in _FILES.items():
        if call.subject.endswith(ending):
            return Response(200, {"content-type": content_type}, body)
    raise not_found("File")
