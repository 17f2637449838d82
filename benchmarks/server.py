"""A server that speaks enough of Knouds, replicate, fal and openai to be polled, as cheaply as Python can.

Rule of the file: a run takes the seconds that its inputs ask for and says when it finished, so that a client knows how
soon it noticed. A key that ends in `limited` gets the headers of a rate limit that is never reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["BIG", "FOREVER", "LIMITED_KEY", "PLAIN_KEY", "ROWS", "serving"]

PLAIN_KEY = "knouds_live_plain"
LIMITED_KEY = "knouds_live_limited"
FOREVER = 1e6
BIG = "big"
ROWS = 500

Answer = dict[str, Any] | bytes | list[Any]

_STEP = re.compile(r"/+")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_DATE = b"Date: Wed, 25 Nov 2026 10:00:00 GMT\r\n"
_LIMIT = b"X-RateLimit-Limit: 1000000\r\nX-RateLimit-Remaining: 900000\r\nX-RateLimit-Reset: 1795601000\r\n"


def _result_of_5_mb() -> bytes:
    tiles = [{"url": f"https://m.test/{n}.png", "w": n, "score": n / 7, "tag": "x" * 30} for n in range(54_000)]
    return json.dumps({"status": "completed", "cost": 12, "ms": 8420, "result": {"tiles": tiles}}).encode()


class Runs:
    """The runs of all protocols, by their id, newest last."""

    def __init__(self) -> None:
        self.ends: dict[str, float] = {}
        self.rows: dict[str, tuple[str, float]] = {}
        self._number = itertools.count(1)
        self.big = _result_of_5_mb()

    def begin(self, seconds: float) -> str:
        """Start a run that takes so long, and return its id."""
        number = next(self._number)
        run = f"00000000-0000-4000-8000-{number:012d}"
        self.ends[run] = time.time() + seconds
        row = (
            f'"id": {number}, "userId": "u", "workflowSlug": "bench", "modelIds": [], "source": "api-workflow", '
            f'"cost": 0.12, "userCost": 0.255, "creditsCost": 255, "durationMs": 1, "errorCode": null, '
            f'"requestId": "kie_{number:012d}", "createdAt": "2026-05-08T19:29:55.000Z"'
        )
        self.rows[run] = (row, self.ends[run])
        return run

    def ended(self, run: str) -> float | None:
        """Return when a run finished, None while it is running."""
        at = self.ends.get(run, FOREVER * 1e6)
        return at if at <= time.time() else None

    def page(self, offset: int, limit: int) -> bytes:
        """Return a page of the account's usage, newest first."""
        now = time.time()
        rows = itertools.islice(reversed(self.rows.values()), offset, offset + limit)
        shown = [f'{{"status": "{"completed" if end <= now else "processing"}", {row}}}' for row, end in rows]
        text = f'{{"rows": [{", ".join(shown)}], "page": 0, "pageSize": {limit}, "total": {len(self.rows)}}}'
        return text.encode()


def _knouds(runs: Runs, method: str, steps: list[str], query: str, body: Any) -> Answer:
    match method, steps:
        case "POST", ["api", "workflows", _, "run"]:
            run = runs.begin(float(body["inputs"]["seconds"]))
            return {
                "_async": True,
                "executionId": run,
                "requestId": f"kie_{run[-12:]}",
                "status": "processing",
                "webhookDelivery": {"configured": False},
                "pollUrl": f"/api/executions/{run}",
            }
        case "GET", ["api", "executions", "big"]:
            return runs.big
        case "GET", ["api", "executions", run]:
            ended = runs.ended(run)
            shown = {
                "executionId": run,
                "requestId": f"kie_{run[-12:]}",
                "status": "processing",
                "workflowSlug": "bench",
            }
            return shown if ended is None else {**shown, "status": "completed", "result": {"ended": ended}, "cost": 12}
        case "GET", ["api", "usage"]:
            asked = dict(part.split("=") for part in query.split("&") if part)
            return runs.page(int(asked.get("offset", 0)), int(asked.get("limit", 50)))
    raise LookupError(steps)


def _replicate(runs: Runs, method: str, steps: list[str], query: str, body: Any) -> Answer:  # noqa: ARG001
    run = runs.begin(float(body["input"]["seconds"])) if method == "POST" else steps[-1]
    ended = runs.ended(run)
    return {
        "id": run,
        "model": "a/b",
        "version": "v",
        "status": "processing" if ended is None else "succeeded",
        "input": {},
        "output": None if ended is None else {"ended": ended},
        "logs": "",
        "error": None,
        "created_at": "2026-05-08T19:29:55.000Z",
        "urls": {"get": f"/v1/predictions/{run}", "cancel": f"/v1/predictions/{run}/cancel"},
    }


def _fal(runs: Runs, method: str, steps: list[str], host: str, body: Any) -> Answer:
    if method == "POST":
        run = runs.begin(float(body["seconds"]))
        url = f"http://{host}/a/b/requests/{run}"
        links = {"response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}
        return {"request_id": run, "status": "IN_QUEUE", "queue_position": 0, **links}
    ended = runs.ended(steps[3])
    if steps[-1] != "status":
        return {"ended": ended}
    return {"status": "IN_PROGRESS" if ended is None else "COMPLETED", "logs": None, "metrics": {}}


def _openai(runs: Runs, method: str, steps: list[str], query: str, body: Any) -> Answer:  # noqa: ARG001
    run = runs.begin(float(body["input"])) if method == "POST" else steps[-1]
    ended = runs.ended(run)
    said = [{"type": "output_text", "text": str(ended), "annotations": []}]
    message = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": said}
    return {
        "id": run,
        "object": "response",
        "created_at": 1,
        "status": "in_progress" if ended is None else "completed",
        "background": True,
        "model": "bench",
        "output": [] if ended is None else [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "metadata": {},
    }


class _Server(asyncio.Protocol):
    """One connection; requests come whole or in pieces, and are answered in order."""

    def __init__(self, runs: Runs, seen: Counter[str]) -> None:
        self._runs, self._seen, self._left = runs, seen, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self._left += data
        while (end := self._left.find(b"\r\n\r\n") + 4) >= 4:
            head = self._left[:end]
            length = int(found[1]) if (found := _LENGTH.search(head)) else 0
            if len(self._left) < end + length:
                return
            body, self._left = self._left[end : end + length], self._left[end + length :]
            self._transport.write(self._answer(head, body))

    def _answer(self, head: bytes, body: bytes) -> bytes:
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        path, _, query = target.partition("?")
        steps = _STEP.split(path.strip("/"))
        parsed = json.loads(body) if body else None
        self._seen[steps[0]] += 1
        if steps[0] == "seen":
            answer: Answer = dict(self._seen)
            self._seen.clear()
        elif steps[0] == "api":
            answer = _knouds(self._runs, method, steps, query, parsed)
        elif steps[0] == "openai":
            answer = _openai(self._runs, method, steps, query, parsed)
        elif steps[0] == "v1":
            answer = _replicate(self._runs, method, steps, query, parsed)
        else:
            host = head.lower().partition(b"host: ")[2].split(b"\r\n")[0].decode()
            answer = _fal(self._runs, method, steps, host, parsed)
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        limit = _LIMIT if LIMITED_KEY.encode() in head else b""
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b%b\r\n%b" % (
            len(content),
            _DATE,
            limit,
            content,
        )


def _serve(ready: multiprocessing.connection.Connection) -> None:
    async def run() -> None:
        runs, seen = Runs(), Counter[str]()
        make: Callable[[], _Server] = lambda: _Server(runs, seen)  # noqa: E731
        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0, backlog=4096)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Run the server in a process of its own for the block, and yield its URL."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()
