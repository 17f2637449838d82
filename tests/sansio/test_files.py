"""The rules of downloads: hosts, answers, parts and names, against what a hostile host may say."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async._sansio.files import (
    MEDIA_HOSTS,
    Hosts,
    Redirected,
    Rejected,
    Start,
    default_name,
    evaluate,
    is_markup,
    request_headers,
)
from knouds_async.errors import ConfigurationError, DownloadFault
from knouds_async.types import EXTENSIONS, Media

ID = "550e8400-e29b-41d4-a716-446655440000"
THEN, LATER = "Mon, 01 Jun 2026 12:00:00 GMT", "Mon, 01 Jun 2026 12:00:01 GMT"
IMAGE = Media("image", "https://knouds-media.s3.amazonaws.com/media/a.png", execution_id=ID, number=2)
PNG = {"content-type": "image/png", "content-length": "100", "etag": '"v1"'}
VENDOR = Hosts.of(None, "https://knouds.ai")
LOCAL = Hosts.of(None, "http://127.0.0.1:8000")


def refusal(hosts: Hosts, scheme: str, host: str, port: int | None = None) -> str | None:
    """Ask whether an address may be fetched."""
    return hosts.refusal(scheme, host, port, has_user=False)


def test_the_vendors_bucket_by_default() -> None:
    """By https, at its usual port, without a user, and nothing else."""
    host = MEDIA_HOSTS[0]
    assert refusal(VENDOR, "https", host) is None
    assert refusal(VENDOR, "https", host, 443) is None
    assert refusal(VENDOR, "http", host)
    assert refusal(VENDOR, "https", host, 8443)
    assert refusal(VENDOR, "ftp", host)
    assert VENDOR.refusal("https", host, None, has_user=True)


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"{MEDIA_HOSTS[0]}.evil.example", f"evil{MEDIA_HOSTS[0]}", "169.254.169.254", "", "knouds.ai"],
)
def test_no_other_host(host: str) -> None:
    """Neither a similar name, nor the cloud's own addresses, nor the API itself."""
    assert refusal(VENDOR, "https", host)
    assert refusal(LOCAL, "https", host)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_loopback_only_beside_a_loopback_service(host: str) -> None:
    """A service on this machine may have its files here too; one elsewhere may not reach in."""
    assert refusal(LOCAL, "http", host, 9000) is None
    assert refusal(VENDOR, "http", host, 9000)
    assert refusal(VENDOR, "https", host)


def test_hosts_of_the_callers_own() -> None:
    """They replace the vendor's; a star stands for anything below, not for the name itself."""
    hosts = Hosts.of(["Media.Example.com", "*.cdn.example"], "https://knouds.ai")
    assert refusal(hosts, "https", "media.example.com") is None
    assert refusal(hosts, "https", "a.b.cdn.example") is None
    for host in ("cdn.example", "evilcdn.example", "x.media.example.com", MEDIA_HOSTS[0]):
        assert refusal(hosts, "https", host)


@pytest.mark.parametrize("given_hosts", ["media.example.com", ["https://x"], ["a b"], [""], [None], 17, ["x/y"], ["*"]])
def test_what_is_no_list_of_hosts_is_refused(given_hosts: object) -> None:
    """A single text, a URL or nothing at all is a ConfigurationError."""
    with pytest.raises(ConfigurationError):
        Hosts.of(given_hosts, "https://knouds.ai")  # type: ignore[arg-type]


def test_asks_for_the_rest_only_of_the_same_file() -> None:
    """Without a validator there is no telling whether the rest is of the same file, so it is asked for whole."""
    assert request_headers(0, '"v1"') == request_headers(10, None) == {"accept": "*/*", "accept-encoding": "identity"}
    assert request_headers(10, '"v1"') == {**request_headers(0, None), "range": "bytes=10-", "if-range": '"v1"'}


@pytest.mark.parametrize(
    ("status", "headers", "received", "expected"),
    [
        (200, PNG, 0, Start(0, 100, '"v1"', ".png")),
        (200, PNG, 50, Start(0, 100, '"v1"', ".png")),
        (200, {"content-type": "image/x"}, 0, Start(0, None, None, None)),
        (200, {"content-length": "-1"}, 0, Start(0, None, None, None)),
        (200, {"etag": 'W/"v1"', "last-modified": THEN, "date": LATER}, 0, Start(0, None, THEN, None)),
        (200, {"last-modified": THEN, "date": THEN}, 0, Start(0, None, None, None)),
        (200, {"last-modified": THEN}, 0, Start(0, None, None, None)),
        (200, {"last-modified": "then", "date": LATER}, 0, Start(0, None, None, None)),
        (200, {"last-modified": "99999999999 Jun 2026 12:00:00", "date": LATER}, 0, Start(0, None, None, None)),
        (206, {**PNG, "content-range": "bytes 50-99/100"}, 50, Start(50, 100, '"v1"', ".png")),
        (302, {"location": "/x"}, 0, Redirected("/x")),
    ],
)
def test_what_is_taken(status: int, headers: dict[str, str], received: int, expected: object) -> None:
    """A whole file, the rest of one, or another address."""
    assert evaluate(status, headers, IMAGE, received=received, most=1000) == expected


odd_dates = ["99999999999 Jun 2026 12:00:00", "1 Jun 99999 12:00:00 +9999", "1 Jun 2026", "0 0 0 0:0:0"]
values = st.sampled_from([*PNG.values(), THEN, LATER, *odd_dates]) | st.text(max_size=9)
names = ["content-type", "content-length", "content-range", "content-encoding", "etag", "last-modified", "date"]


@given(st.sampled_from([200, 206]), st.dictionaries(st.sampled_from(names), values, max_size=3))
def test_no_header_breaks_the_reading(status: int, odd: dict[str, str]) -> None:
    """Whatever a host writes into its headers, the answer is a file, a part of it, or refused."""
    usual = {"last-modified": THEN, "date": LATER, "content-range": "bytes 5-99/100"}
    assert isinstance(evaluate(status, usual | odd, IMAGE, received=5, most=1000), (Start, Rejected))


TYPES = {
    "image": {"png": "png", "jpeg": "jpg", "webp": "webp", "gif": "gif", "avif": "avif"},
    "video": {"mp4": "mp4", "webm": "webm", "quicktime": "mov"},
    "audio": {
        "mpeg": "mp3", "mp3": "mp3", "wav": "wav", "x-wav": "wav", "mp4": "m4a", "ogg": "ogg", "flac": "flac",
        "aac": "aac",
    },
}  # fmt: skip


def test_each_usual_type_has_its_extension() -> None:
    """A file whose address ends in no extension gets that of its type, also with parameters and in capitals."""
    for kind, extensions in TYPES.items():
        for subtype, extension in extensions.items():
            headers = {"content-type": f" {kind.title()}/{subtype}; charset=x"}
            media = Media(kind, "https://x/a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            assert evaluate(200, headers, media, received=0, most=1000) == Start(0, None, None, f".{extension}")
            assert f".{extension}" in EXTENSIONS[media.kind]


@pytest.mark.parametrize("untyped", ["", "application/octet-stream", "binary/octet-stream"])
def test_a_file_without_a_type_is_taken(untyped: str) -> None:
    """Hosts that know no types send none, or that of plain bytes."""
    assert evaluate(200, {"content-type": untyped}, IMAGE, received=0, most=1000) == Start(0, None, None, None)


def test_errors_that_may_pass_are_those_of_servers_and_proxies() -> None:
    """A busy or broken server may answer the next time; a refusal stays."""
    refused = {
        status: evaluate(status, {}, IMAGE, received=0, most=1000) for status in range(400, 600) if status != 416
    }
    temporary = {status for status, seen in refused.items() if isinstance(seen, Rejected) and seen.is_temporary}
    assert temporary == {408, 425, 429, 500, 502, 503, 504}


@pytest.mark.parametrize(
    ("status", "headers", "received", "fault", "passing"),
    [
        (404, PNG, 0, DownloadFault.REFUSED_STATUS, False),
        (403, PNG, 0, DownloadFault.REFUSED_STATUS, False),
        (304, PNG, 0, DownloadFault.REFUSED_STATUS, False),
        (304, {"location": "/x"}, 0, DownloadFault.REFUSED_STATUS, False),
        (302, {}, 0, DownloadFault.REFUSED_STATUS, False),
        (299, {"location": "/x"}, 0, DownloadFault.REFUSED_STATUS, False),
        (400, {"location": "/x"}, 0, DownloadFault.REFUSED_STATUS, False),
        (503, {}, 0, DownloadFault.REFUSED_STATUS, True),
        (416, {}, 50, DownloadFault.DROPPED, True),
        (200, {"content-type": "text/html"}, 0, DownloadFault.WRONG_TYPE, False),
        (200, {"content-type": "video/mp4"}, 0, DownloadFault.WRONG_TYPE, False),
        (200, {"content-type": "image/svg+xml"}, 0, DownloadFault.WRONG_TYPE, False),
        (200, {**PNG, "content-encoding": "gzip"}, 0, DownloadFault.WRONG_TYPE, False),
        (200, {**PNG, "content-length": "1001"}, 0, DownloadFault.TOO_LARGE, False),
        (206, {**PNG, "content-range": "bytes 0-99/100"}, 50, DownloadFault.DROPPED, True),
        (206, {**PNG, "content-range": "bytes 50-80/100"}, 50, DownloadFault.DROPPED, True),
        (206, {**PNG, "content-range": "odd"}, 50, DownloadFault.DROPPED, True),
        (206, PNG, 50, DownloadFault.DROPPED, True),
        (206, {**PNG, "content-range": "bytes 50-1000/1001"}, 50, DownloadFault.TOO_LARGE, False),
    ],
)
def test_what_is_refused(
    status: int, headers: dict[str, str], received: int, fault: DownloadFault, passing: bool
) -> None:
    """Another type, too much of it, a part that was not asked for, or no file at all."""
    seen = evaluate(status, headers, IMAGE, received=received, most=1000)
    assert isinstance(seen, Rejected)
    assert (seen.fault, seen.is_temporary) == (fault, passing)


REST = {**PNG, "content-range": "bytes 50-99/100"}


@pytest.mark.parametrize(
    ("started", "headers", "expected"),
    [
        (Start(0, 100, '"v1"', ".png"), REST, Start(50, 100, '"v1"', ".png")),
        (Start(0, None, '"v1"', ".png"), REST, Start(50, 100, '"v1"', ".png")),
        (Start(0, 100, '"v1"', None), {"content-range": "bytes 50-99/100"}, None),
        (Start(0, 100, None, None), {"content-range": "bytes 50-99/100"}, None),
        (Start(0, 100, '"v1"', None), {"content-range": "bytes 50-99/100", "last-modified": THEN}, None),
        (Start(0, 100, "then", ".png"), {**REST, "last-modified": "then"}, Start(50, 100, "then", ".png")),
        (Start(0, 100, '"v0"', ".png"), REST, None),
        (Start(0, 100, "then", ".png"), {**REST, "last-modified": "now"}, None),
        (Start(0, 101, '"v1"', ".png"), REST, None),
        (Start(0, 100, '"v1"', ".png"), {**REST, "content-range": "odd"}, None),
    ],
)
def test_the_rest_is_of_what_was_begun(started: Start, headers: dict[str, str], expected: Start | None) -> None:
    """A rest that may be of another version or length is not used, and the whole file is fetched again."""
    seen = evaluate(206, headers, IMAGE, received=50, most=1000, started=started)
    if expected is None:
        assert isinstance(seen, Rejected)
        assert (seen.fault, seen.is_temporary) == (DownloadFault.DROPPED, True)
    else:
        assert seen == expected


@pytest.mark.parametrize("head", [b"<!DOCTYPE html>", b"\n <html>", b"<?xml version", b"\xef\xbb\xbf<Error>", b"<svg "])
def test_pages_are_no_media(head: bytes) -> None:
    """What begins like a page is recognised, whatever type it claims to be."""
    assert is_markup(head)


@pytest.mark.parametrize("head", [b"\x89PNG", b"\xff\xd8\xff", b"ID3", b"", b"< not a page"])
def test_media_are_no_pages(head: bytes) -> None:
    """Files are not taken for pages."""
    assert not is_markup(head)


@pytest.mark.parametrize(
    ("url", "typed", "expected"),
    [
        ("https://x/a.jpeg", ".png", f"{ID}-2.jpeg"),
        ("https://x/a", ".webp", f"{ID}-2.webp"),
        ("https://x/a", None, f"{ID}-2.png"),
        ("https://x/a.exe", None, f"{ID}-2.png"),
        ("https://x/a.png?x=.exe", None, f"{ID}-2.png"),
        ("https://x/..%2f..%2fetc%2fpasswd", None, f"{ID}-2.png"),
        ("https://x/.bashrc", None, f"{ID}-2.png"),
        ("https://x/CON.png", None, f"{ID}-2.png"),
        ("https://x/\u202egnp.exe", None, f"{ID}-2.png"),
        (f"https://x/{'a' * 300}.gif", None, f"{ID}-2.gif"),
        ("https://x/a.mp4", None, f"{ID}-2.png"),
        ("https://[", None, f"{ID}-2.png"),
        ("https://x/a", ".mp4", f"{ID}-2.png"),
    ],
)
def test_names_are_the_runs(url: str, typed: str | None, expected: str) -> None:
    """The run's id, a number, and an extension from the list for its kind: nothing else of a hostile name survives."""
    assert default_name(Media("image", url, execution_id=ID, number=2), typed) == expected


@given(st.text(max_size=400), st.none() | st.text(max_size=40), st.sampled_from(sorted(EXTENSIONS)))
def test_no_address_makes_an_odd_name(url: str, run: str | None, kind: str) -> None:
    """Whatever the address and the id, the name is short, plain, and not hidden."""
    media = Media(kind, url, execution_id=run)  # type: ignore[arg-type]
    name = default_name(media, None)
    assert len(name) < 240
    assert set(name) <= set(string.ascii_letters + string.digits + "-_.")
    assert not name.startswith(".")
    assert name.endswith(EXTENSIONS[media.kind])
