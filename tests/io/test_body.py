"""Reading a body: whole, within bounds, and never fooled by its encoding."""

import gc
import gzip
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knouds_async._io.exchange import UnreadableBody, read_body

STEP = 64 * 1024


class Chunks(httpx.AsyncByteStream):
    """A body in the given pieces, that knows whether it was closed and how much of it was asked for."""

    def __init__(self, *chunks: bytes) -> None:
        self.is_closed = False
        self.given = 0
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Return the pieces, unless closed."""
        for chunk in self._chunks:
            if self.is_closed:
                return
            self.given += 1
            yield chunk

    async def aclose(self) -> None:
        """Note it."""
        self.is_closed = True


def answer(*chunks: bytes, encoding: str | None = None) -> httpx.Response:
    """Make a response whose body is still to be read."""
    headers = {} if encoding is None else {"content-encoding": encoding}
    return httpx.Response(200, headers=headers, stream=Chunks(*chunks))


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Collect what a test has dropped while it is still the one to blame for a ResourceWarning."""
    yield
    gc.collect()


@pytest.mark.parametrize("encoding", [None, "", "identity", "Identity"])
async def test_a_plain_body_is_given_as_it_came(encoding: str | None) -> None:
    """Without an encoding the pieces are joined."""
    assert await read_body(answer(b"one ", b"", b"two", encoding=encoding)) == b"one two"


@pytest.mark.parametrize("encoding", ["gzip", " GZIP "])
async def test_a_gzipped_body_is_inflated(encoding: str) -> None:
    """One gzip member is what we ask for and take."""
    assert await read_body(answer(gzip.compress(b"hello"), encoding=encoding)) == b"hello"


@pytest.mark.parametrize("encoding", [None, "gzip"])
async def test_an_empty_body_is_empty_whatever_its_label(encoding: str | None) -> None:
    """A 204 or a HEAD may be labelled like the body that it does not have."""
    assert await read_body(answer(encoding=encoding)) == b""
    assert await read_body(answer(b"", encoding=encoding)) == b""


@pytest.mark.parametrize("encoding", ["gzip, gzip", "gzip, identity", "br", "deflate", "zstd", "x", "identity,gzip"])
async def test_other_and_stacked_encodings_are_refused_unread(encoding: str) -> None:
    """Only identity and a single gzip are read; the words of the header are not repeated."""
    response = answer(gzip.compress(gzip.compress(b"x")), encoding=encoding)
    with pytest.raises(UnreadableBody, match="content-encoding") as caught:
        await read_body(response)
    assert response.is_closed
    assert encoding not in caught.value.reason or encoding == "x"


async def test_stacked_encodings_in_two_headers_are_refused() -> None:
    """Two header lines stack just as a comma does."""
    headers = [("content-encoding", "gzip"), ("content-encoding", "gzip")]
    with pytest.raises(UnreadableBody, match="content-encoding"):
        await read_body(httpx.Response(200, headers=headers, stream=Chunks(b"x")))


@pytest.mark.parametrize("size", [0, 1, STEP - 1, STEP, STEP + 1, 3 * STEP])
async def test_a_body_may_be_exactly_as_long_as_allowed(size: int) -> None:
    """The limit itself is allowed, one byte more is not, plain or gzipped."""
    content = bytes(size)
    for chunk, encoding in ((content, None), (gzip.compress(content), "gzip")):
        assert await read_body(answer(chunk, encoding=encoding), most=size) == content
        if size:
            with pytest.raises(UnreadableBody, match=f"is longer than {size - 1} bytes"):
                await read_body(answer(chunk, encoding=encoding), most=size - 1)


async def test_reading_stops_where_the_limit_is_passed() -> None:
    """What is over the limit is not fetched, and the response is closed."""
    body = Chunks(*[b"x" * 10] * 1000)
    response = httpx.Response(200, stream=body)
    with pytest.raises(UnreadableBody):
        await read_body(response, most=95)
    assert body.given == 10
    assert body.is_closed


async def test_a_gzip_stream_that_never_gets_anywhere_is_refused() -> None:
    """Empty blocks for ever inflate to nothing, but are bounded too."""
    deflate = zlib.compressobj(wbits=31)
    start = deflate.compress(b"") + deflate.flush(zlib.Z_FULL_FLUSH)
    nothing = b"\x00\x00\x00\xff\xff" * 1000
    body = Chunks(start, *[nothing] * 1000)
    with pytest.raises(UnreadableBody, match="more than 1000 bytes"):
        await read_body(httpx.Response(200, headers={"content-encoding": "gzip"}, stream=body), most=1000)
    assert body.given < 20


@pytest.mark.parametrize("extra", [b"x", gzip.compress(b"more", mtime=0), b"\x00"])
@pytest.mark.parametrize("is_apart", [True, False])
async def test_nothing_may_follow_the_gzip_stream(extra: bytes, *, is_apart: bool) -> None:
    """Neither rubbish nor a second member, in the same piece or in the next."""
    packed = gzip.compress(b"hello")
    chunks = (packed, b"", extra) if is_apart else (packed + extra,)
    with pytest.raises(UnreadableBody, match="after the end"):
        await read_body(answer(*chunks, encoding="gzip"))


@pytest.mark.parametrize("damaged", [b"no gzip at all", gzip.compress(b"hello", mtime=0)[:-8] + b"\x00" * 8])
async def test_a_damaged_gzip_stream_is_refused(damaged: bytes) -> None:
    """What is no gzip, or fails its checksum, is not given out, and zlib's error is not chained."""
    with pytest.raises(UnreadableBody, match="damaged") as caught:
        await read_body(answer(damaged, encoding="gzip"))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_gzip_in_any_pieces_comes_back_whole_and_a_part_of_it_never(draws: st.DataObject) -> None:
    """Pieces and steps leave no trace in what is read, and a stream cut anywhere is noticed."""
    unit = draws.draw(st.binary(min_size=1, max_size=50))
    content = unit * draws.draw(st.integers(0, 5000))
    packed = gzip.compress(content, draws.draw(st.integers(0, 9)))
    cut = draws.draw(st.integers(1, len(packed) - 1))
    size = draws.draw(st.integers(1, len(packed)))

    async def read(stream: bytes) -> bytes:
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        return await read_body(answer(*pieces, encoding="gzip"), most=len(content))

    assert anyio.run(read, packed) == content
    with pytest.raises(UnreadableBody, match="cut off"):
        anyio.run(read, packed[:cut])


async def test_what_was_read_before_us_is_taken_as_read() -> None:
    """An event hook that logs bodies, or a mock, has read the response already: its content counts."""

    async def log(response: httpx.Response) -> None:
        await response.aread()

    def play(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-encoding": "gzip"}, content=gzip.compress(b"hello"))

    transport = httpx.MockTransport(play)
    for hooks in ({}, {"response": [log]}):
        async with httpx.AsyncClient(transport=transport, event_hooks=hooks) as http:
            async with http.stream("GET", "http://mocked.test/") as response:
                assert await read_body(response) == b"hello"
            async with http.stream("GET", "http://mocked.test/") as response:
                with pytest.raises(UnreadableBody, match="longer"):
                    await read_body(response, most=4)


async def test_what_was_streamed_away_before_us_cannot_be_read() -> None:
    """When somebody else has consumed the stream there is nothing left to give."""
    response = answer(b"hello")
    async for _ in response.aiter_raw():
        pass
    with pytest.raises(UnreadableBody, match="something else"):
        await read_body(response)


async def test_transport_errors_pass_through() -> None:
    """A connection that breaks in the body is the transport's to tell."""

    class Broken(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"half"
            raise httpx.ReadError("broken")

    with pytest.raises(httpx.ReadError):
        await read_body(httpx.Response(200, stream=Broken()))


LIMITED = """
import gzip, resource, sys, zlib
import anyio, httpx
from knouds_async._io.exchange import UnreadableBody, read_body

MIB = 1024 * 1024
resource.setrlimit(resource.RLIMIT_AS, (512 * MIB, 512 * MIB))

def zeros(mebibytes):
    deflate = zlib.compressobj(9, wbits=31)
    return b"".join(deflate.compress(bytes(MIB)) for _ in range(mebibytes)) + deflate.flush()

class Body(httpx.AsyncByteStream):
    def __init__(self, content): self.content = content
    async def __aiter__(self): yield self.content

async def main():
    once = zeros(600)
    twice = gzip.compress(once)
    for body, encoding in ((once, "gzip"), (twice, "gzip, gzip"), (bytes(40 * MIB), "identity")):
        response = httpx.Response(200, headers={"content-encoding": encoding}, stream=Body(body))
        try:
            await read_body(response)
        except UnreadableBody as refused:
            print(refused.reason)
    response = httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Body(twice))
    assert await read_body(response) == once  # labelled once, inflated once
    response = httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Body(zeros(32)))
    assert len(await read_body(response)) == 32 * MIB
    with open("/proc/self/status") as status:  # ru_maxrss would count what the parent held when it forked
        print(next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM")))

anyio.run(main)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_bombs_stay_in_small_memory() -> None:
    """Bodies that inflate to more than the process may have are refused, and those within bounds are still read."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    *reasons, peak = done.stdout.splitlines()
    assert reasons == [
        f"is longer than {32 * 1024 * 1024} bytes",
        "has a content-encoding other than identity or a single gzip",
        f"is longer than {32 * 1024 * 1024} bytes",
    ]
    assert int(peak) < 200
