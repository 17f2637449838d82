"""The real server: faults on real sockets, met by a stock httpx client on both backends, in real time."""

from __future__ import annotations

import socket

import anyio
import httpx
import pytest

from knouds_async.testing import Emulator, EmulatorTransport, Fault, faults, serve

RUN = "/api/workflows/jingle/run"
EMPTY: dict[str, object] = {"inputs": {}}

pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


async def _met(client: httpx.AsyncClient, emulator: Emulator, url: str) -> list[object]:
    """Send two submits and give for each the status and body's size, or the exception's class; and the runs."""
    met: list[object] = []
    for _ in range(2):
        await anyio.sleep(0.1)  # until a closing has come through
        try:
            answer = await client.post(f"{url}{RUN}?async=true", json=EMPTY, headers={"x-api-key": emulator.api_key})
            met.append((answer.status_code, len(answer.content), answer.headers.get("content-type")))
        except httpx.HTTPError as error:
            met.append(type(error))
    return [*met, len(emulator.runs), dict(emulator.faults.struck)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        faults.reset(),
        faults.reset(after_run=True),
        faults.closed(),
        faults.closed(after_run=True),
        faults.stalled(),
        faults.stalled(after_run=True),
        faults.stalled(0.05),
        faults.stalled(0.05, after_run=True),
        faults.truncated(),
        faults.dripping(0.0005),
        faults.dropped_keep_alive(),
        faults.bad_gateway(after_run=True),
        faults.redirect(),
        faults.empty_body(),
        faults.huge_body(3_000_000),
        faults.gzip_bomb(3_000_000, layers=2),
        faults.half_headers(),
        faults.rate_limited(),
    ],
    ids=lambda fault: f"{fault.name}-{fault.stage}-{fault.seconds}",
)
async def test_the_transport_acts_as_real_sockets_do(anyio_backend: str, fault: Fault) -> None:
    """A client gets the same over a real socket as over the in-process transport, and reacts the same."""
    real, inside = Emulator(), Emulator()
    is_silent = fault.name == "stalled" and not fault.seconds
    timeout = httpx.Timeout(20.0, read=0.5 if is_silent else 20.0)
    for emulator in (real, inside):
        emulator.faults.add(fault, nth=1)
    async with serve(real) as url, httpx.AsyncClient(timeout=timeout) as client:
        on_sockets = await _met(client, real, url)
    async with httpx.AsyncClient(transport=EmulatorTransport(inside), timeout=timeout) as client:
        in_process = await _met(client, inside, "http://knouds.test")
    assert on_sockets == in_process


# When the reset beats the body, httpx leaves its own generator unfinished, of which trio complains.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
@pytest.mark.parametrize("fault", [faults.refused(), faults.reset_unread()])
async def test_a_reset_before_reading_runs_nothing(anyio_backend: str, fault: Fault) -> None:
    """The connection is reset before the body is read: the client sees it break, nothing was run."""
    emulator = Emulator()
    emulator.faults.add(fault, nth=1)
    async with serve(emulator) as url, httpx.AsyncClient() as client:
        met = await _met(client, emulator, url)
    assert met[0] in (httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError)
    assert (met[1], met[2]) == ((200, 225, "application/json"), 1)


async def test_an_unreachable_service_reads_nothing(anyio_backend: str) -> None:
    """The connection stands, but nothing is read and no answer comes."""
    emulator = Emulator()
    emulator.faults.add(faults.unreachable(), nth=1)
    async with serve(emulator) as url, httpx.AsyncClient(timeout=httpx.Timeout(20.0, read=0.5)) as client:
        met = await _met(client, emulator, url)
    assert met[0] is httpx.ReadTimeout
    assert met[2] == 1


async def test_connections_are_kept_alive(anyio_backend: str) -> None:
    """A client's requests share a connection, until it is dropped."""
    emulator = Emulator()
    emulator.faults.add(faults.dropped_keep_alive(), nth=3)
    connected: list[str] = []

    async def trace(event: str, _: object) -> None:
        connected.extend([event] if event == "connection.connect_tcp.complete" else [])

    async with serve(emulator) as url, httpx.AsyncClient(base_url=url) as client:
        for expected in (1, 1, 1, 2, 2):
            answer = await client.get("/api/health", extensions={"trace": trace})
            assert (answer.status_code, len(connected)) == (200, expected)
            await anyio.sleep(0.1)  # until the closing has come through


async def test_synchronous_runs_wait(anyio_backend: str) -> None:
    """A synchronous run's answer comes when the run has finished, others meanwhile."""
    emulator = Emulator(duration=1.0)
    answers: list[str] = []

    async def ask(client: httpx.AsyncClient, method: str, path: str) -> None:
        answer = await client.request(
            method, path, json=EMPTY if method == "POST" else None, headers={"x-api-key": emulator.api_key}
        )
        assert answer.status_code == 200
        answers.append(path)

    async with serve(emulator) as url, httpx.AsyncClient(base_url=url) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, client, "POST", RUN)
        await anyio.sleep(0.05)
        tasks.start_soon(ask, client, "GET", "/api/whoami")
    assert answers == ["/api/whoami", RUN]


async def test_a_head_request_gets_a_head_only(anyio_backend: str) -> None:
    """The page and the service answer HEAD without a body, and the connection stays usable."""
    async with serve(Emulator()) as url, httpx.AsyncClient(base_url=url) as client:
        for path, status in (("/", 200), ("/api/whoami", 404), ("/__emulator__/state", 200)):
            answer = await client.head(path)
            assert (answer.status_code, answer.content) == (status, b"")
            assert int(answer.headers["content-length"]) > 0


async def test_nonsense_closes_the_connection_only(anyio_backend: str) -> None:
    """Bytes that are no HTTP close their own connection; a client that goes away does no harm."""
    emulator = Emulator()
    async with serve(emulator) as url:
        port = int(url.rpartition(":")[2])
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"\x16\x03\x01 nonsense\r\n\r\n")
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stream.receive()
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"POST /api/workflows HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/api/health")).status_code == 200
    assert emulator.requests.count == 1


async def test_leaving_closes_the_port(anyio_backend: str) -> None:
    """After the block the port takes no connection, and clients that hung are cut off."""
    emulator, client, port = Emulator(), httpx.AsyncClient(timeout=30), 0
    emulator.faults.add(faults.stalled())

    async def hang(url: str) -> None:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await client.get(f"{url}/api/health")

    async with anyio.create_task_group() as tasks, serve(emulator) as url:
        tasks.start_soon(hang, url)
        port = int(url.rpartition(":")[2])
        while emulator.requests.count == 0:  # noqa: ASYNC110 - the emulator has no event for it
            await anyio.sleep(0.01)
    await client.aclose()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


async def test_a_port_can_be_asked_for(anyio_backend: str) -> None:
    """A port that is taken is an OSError, a free one is used."""
    async with serve(Emulator()) as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            async with serve(Emulator(), port=port):
                pass


async def test_the_console_answers_to_its_own_hosts(anyio_backend: str) -> None:
    """A name that another site has bound to this machine gets nothing from the page and the control API."""
    async with serve(Emulator()) as url, httpx.AsyncClient(base_url=url) as client:
        for path in ("/", "/__emulator__/state"):
            assert (await client.get(path)).status_code == 200
            refused = await client.get(path, headers={"host": "evil.example"})
            assert refused.status_code == 421
            assert refused.json().keys() == {"error"}
        assert (await client.get("/api/health", headers={"host": "evil.example"})).status_code == 200


async def test_a_server_for_all_addresses_answers_under_the_name_of_its_machine(anyio_backend: str) -> None:
    """The full name of the machine, which others of the network use, is the console's own; no other with a dot is."""
    async with serve(Emulator(), host="0.0.0.0") as url, httpx.AsyncClient() as client:  # noqa: S104
        state = f"http://127.0.0.1:{url.rpartition(':')[2]}/__emulator__/state"
        full_name = socket.gethostname()
        assert (await client.get(state, headers={"host": f"{full_name}.:80"})).status_code == 200
        assert (await client.get(state, headers={"host": f"{full_name}.evil.example"})).status_code == 421


async def test_the_console_answers_to_the_host_it_was_given(anyio_backend: str) -> None:
    """A host that `serve` was given by name is the console's own."""
    async with serve(Emulator(), host="localhost") as url, httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/__emulator__/state")).status_code == 200


@pytest.mark.parametrize("serves_media", [False, True])
async def test_an_exception_of_the_block_comes_out_as_it_is(anyio_backend: str, serves_media: bool) -> None:
    """A failing assertion in a test that serves an emulator is what the test fails with, in no group."""
    own = AssertionError("of the test")
    with pytest.raises(AssertionError) as caught:
        async with serve(Emulator(), serves_media=serves_media) as url, httpx.AsyncClient(base_url=url) as client:
            await client.get("/api/health")
            raise own
    assert caught.value is own


async def test_a_cancelled_block_is_cancelled(anyio_backend: str) -> None:
    """Cancellation passes through, and what follows the block is not run."""
    with anyio.CancelScope() as scope:
        async with serve(Emulator()):
            scope.cancel()
            await anyio.sleep_forever()
        raise AssertionError("the line after the block")
    assert scope.cancelled_caught
