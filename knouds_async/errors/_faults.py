"""What is wrong with the delivery of a webhook or the download of a file: an error for each, and its reasons."""

from __future__ import annotations

from enum import StrEnum

from knouds_async.errors._base import KnoudsError


class WebhookFault(StrEnum):
    """Why a webhook delivery was refused."""

    SIGNATURE_MISSING = "signature_missing"
    """There is no signature header."""
    SIGNATURE_MALFORMED = "signature_malformed"
    """The header is not `t=<unix seconds>,v1=<hex>`, or too long, or holds too many signatures."""
    SIGNATURE_WRONG = "signature_wrong"
    """No signature matches any of the secrets."""
    OUT_OF_TIME = "out_of_time"
    """The signature is right, but too old or from the future."""
    BODY_TOO_LARGE = "body_too_large"
    """The body has more than 1 MiB."""
    BODY_MALFORMED = "body_malformed"
    """The signature is right, but the body is not an event."""
    MISCONFIGURED = "misconfigured"
    """The receiver's own fault: secrets, clock or tolerance cannot be used."""


class WebhookVerificationError(KnoudsError):
    """A webhook delivery was refused: not signed by the service, too old, or malformed; `reason` says which."""

    def __init__(self, message: str, *, reason: WebhookFault) -> None:
        super().__init__(message)
        self.reason = reason


class DownloadFault(StrEnum):
    """Why a file was not downloaded."""

    REFUSED_ADDRESS = "refused_address"
    """Not https, or a host that is not one of `media_hosts`; also where a redirect leads."""
    REFUSED_STATUS = "refused_status"
    """The host answered something else than the file."""
    WRONG_TYPE = "wrong_type"
    """What came is not of the kind that was promised."""
    TOO_LARGE = "too_large"
    """The file has more than `max_bytes`."""
    DROPPED = "dropped"
    """The connection broke or stalled again and again."""
    EXISTS = "exists"
    """There is a file of that name, and `overwrite` was not asked for."""
    NOT_WRITTEN = "not_written"
    """The file could not be written here."""


class DownloadError(KnoudsError):
    """A file of a result was not downloaded; `reason` says why. Nothing was run by asking for it.

    `host`: where the file lies; the rest of the address may hold a signature and is not kept.
    """

    def __init__(self, message: str, *, reason: DownloadFault, host: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.host = host
