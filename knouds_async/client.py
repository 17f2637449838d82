"""AsyncKnouds: owns the HTTP client, the limiter and the poller, and hands `send` to the resources."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn

import anyio

from knouds_async import config
from knouds_async._batch.client import BatchClient
from knouds_async._io.concurrency import native_cancellation
from knouds_async._io.exchange import checked_client
from knouds_async._io.limiter import Limiter
from knouds_async._io.pipeline import Pipeline
from knouds_async._io.poller import Poller
from knouds_async._io.shared_limiter import SharedLimiter
from knouds_async._resources import Models, Usage, Workflows
from knouds_async._sansio import endpoints
from knouds_async._sansio.durations import LearnedDurations
from knouds_async.config import MOST_BYTES, MOST_IN_MEMORY, OnBytes, Polling, Retries, Secret, Timeouts
from knouds_async.errors import ConfigurationError, safe_repr
from knouds_async.execution import ExecutionFactory, Executions
from knouds_async.telemetry import MeterProvider, Telemetry, TracerProvider
from knouds_async.types import Account, Health, Media, Pricing, RunResult

if TYPE_CHECKING:
    import ssl

    import httpx
    import httpx2  # type: ignore[import-not-found,unused-ignore]  # pyright: ignore[reportMissingImports]

_CLOSING: Final = 5.0  # seconds that closing waits for submits under way


class AsyncKnouds:
    """An asyncio and trio client of the Knouds API.

    Use it in `async with`, or call `aclose()`, or neither. It belongs to the event loop of its first request. An option
    that cannot be used raises ConfigurationError, before any request.

    `api_key`: else `$KNOUDS_KEY`.
    `tier`: first guess of the rate limit (`"pro"`, `"business"`, `"enterprise"`, `"free"`, or an old scope), None to
    learn it.
    `base_url`: else `$KNOUDS_BASE_URL`, else https://knouds.ai; plain http only to this machine, or with
    `allow_insecure_http`.
    `polling`, `retries`, `timeouts`: see their classes.
    `limiter`: share one among clients of one account (`SharedLimiter`: among processes).
    `http_client`: your own `httpx.AsyncClient` or `httpx2.AsyncClient`; it is used as it is and never closed here.
    `ssl_context`: how certificates are verified, where no client is lent. `max_connections`: connections at once; those
    of a lent client are limited by its own limit, where it shows one.
    `media_hosts`: where files of results may be downloaded from, by default the vendor's bucket (`*.example.com` is
    any host below).
    `durations`: what another client has learned (its `durations`), so that this one need not learn it anew.
    `telemetry`: spans and metrics through OpenTelemetry, where its API is installed and the application has an SDK
    (`docs/observability.md`); `tracer_provider`, `meter_provider`: else the global ones, also when they are set later.
    """

    def __init__(
        self,
        api_key: str | Secret | None = None,
        *,
        tier: str | None = None,
        base_url: str | None = None,
        polling: Polling | None = None,
        retries: Retries | None = None,
        timeouts: Timeouts | None = None,
        limiter: Limiter | SharedLimiter | None = None,
        http_client: httpx.AsyncClient | httpx2.AsyncClient | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int = 100,
        media_hosts: Iterable[str] | None = None,
        durations: Mapping[str, object] | None = None,
        allow_insecure_http: bool = False,
        telemetry: bool = True,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        given, api_key = Secret.of(api_key), None  # so that no frame of ours shows it in a traceback with locals
        address, base_url = Secret.of(base_url), None  # a key may have got into it
        # Only these two load httpx and httpcore, which take as long to import as everything else together.
        from knouds_async._io.download import Downloads
        from knouds_async._io.pool import exchange_for

        self._base_url = url = config.base_url(address, allow_insecure_http=allow_insecure_http)
        key = config.api_key(given)
        _check(tier, limiter, max_connections, telemetry=telemetry, allow_insecure_http=allow_insecure_http)
        http = checked_client(http_client)
        if http is not None and ssl_context is not None:
            raise ConfigurationError("ssl_context= has no effect beside http_client=: give it to that client")
        timeouts = config.option("timeouts", timeouts, Timeouts)
        retries = config.option("retries", retries, Retries)
        polling = config.option("polling", polling, Polling)
        self._limiter = (limiter if limiter is not None else Limiter(tier)).for_key(key)
        self._durations = _load_durations(durations)

        self._downloads = Downloads(media_hosts, url, http, ssl_context)
        self._exchange = exchange_for(http, url, key, timeouts, ssl_context=ssl_context, connections=max_connections)
        report = Telemetry(url, tracer_provider=tracer_provider, meter_provider=meter_provider, enabled=telemetry)
        report.observe(self._limiter.quotas)
        self._pipeline = Pipeline(self._exchange, self._limiter, retries, report)
        send = self._pipeline.send
        self._poller = Poller(send, polling, self._durations, self._limiter, report)

        time, recent = self._pipeline.time, self._pipeline.recent
        factory = ExecutionFactory(send, self._poller, url, time, recent)
        self.executions: Final = Executions(send, factory, self._poller, url)
        self.usage: Final = Usage(send, time, recent)
        parts = BatchClient(self._pipeline, factory, self._limiter, url, timeouts, retries, self._downloads.save)
        self.workflows: Final = Workflows(send, factory, parts)
        self.models: Final = Models(send, factory, parts)

    def __repr__(self) -> str:
        """Return the service's URL, never the key; also while it is being built, for tracebacks that show locals."""
        return f"<AsyncKnouds {getattr(self, '_base_url', 'unfinished')}>"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError(
            "an AsyncKnouds is not pickled or copied, for it holds connections and the key: build one in each process; "
            "handles of runs can be pickled, and attached there"
        )

    @property
    def durations(self) -> dict[str, object]:
        """How long runs have taken, by target, as plain JSON: `AsyncKnouds(durations=...)` starts from it."""
        return self._durations.to_dict()

    @property
    def limiter(self) -> Limiter:
        """The limiter: its `stats(route)` has the present state of a quota."""
        return self._limiter

    @property
    def telemetry(self) -> Telemetry:
        """What reports this client's spans and metrics; a `WebhookReceiver` reports its own there too."""
        return self._pipeline.telemetry

    async def whoami(self) -> Account:
        """Return the account that the key belongs to: role, tier, whether it is approved."""
        return await self._pipeline.send(endpoints.whoami())

    async def pricing(self) -> Pricing:
        """Return the public prices and tiers; no key is sent."""
        return await self._pipeline.send(endpoints.pricing())

    async def health(self) -> Health:
        """Return the service's health; no key is sent."""
        return await self._pipeline.send(endpoints.health())

    async def download(
        self,
        media: Media,
        path_or_dir: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        max_bytes: int = MOST_BYTES,
        on_progress: OnBytes | None = None,
    ) -> Path:
        """Download one file of a result, such as `run.images[0]`, and return its path.

        In a folder (one that exists, or a path that ends in a slash) it is named `<execution>-<n>.<ext>`; no name that
        the server sends is used. The file is there whole or not at all, and none is overwritten unless asked for.
        After a dropped connection the download continues where it was. No key and no cookie is sent.
        `max_bytes`: 2 GiB by default. `on_progress`: called after each piece with the bytes so far, and the total where
        it is known. Raises DownloadError, with a `reason`. When cancelled, it leaves nothing behind. Contract 12.
        """
        return await self._downloads.one(
            media, path_or_dir, overwrite=overwrite, max_bytes=max_bytes, on_progress=on_progress
        )

    async def read(self, media: Media, *, max_bytes: int = MOST_IN_MEMORY) -> bytes:
        """Return the bytes of one file of a result, such as `run.images[0]`; see `download`.

        `max_bytes`: 256 MiB by default; for what is larger there are `stream` and `download`.
        """
        return await self._downloads.read(media, max_bytes=max_bytes)

    def stream(self, media: Media, *, max_bytes: int = MOST_BYTES) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Read one file of a result in pieces: `async with knouds.stream(media) as pieces: async for piece in pieces`.

        After a dropped connection it continues where it was. Raises DownloadError as `download` does, when the block is
        entered and at each piece: the file is whole where the loop ends without one. Leaving the block early closes the
        connection.
        """
        return self._downloads.stream(media, max_bytes=max_bytes)

    async def download_all(
        self,
        run: RunResult,
        folder: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        max_bytes: int = MOST_BYTES,
    ) -> tuple[Path, ...]:
        """Download all files of a run into a folder, which is created if needed, and return their paths in order.

        See `download`. The first failure ends it with its error, in no group; files that are complete by then stay.
        """
        return await self._downloads.all(run, folder, overwrite=overwrite, max_bytes=max_bytes)

    async def aclose(self) -> None:
        """Close the client: waits end with ClientClosedError, runs keep running.

        Submits in flight are waited for, for five seconds at most, so that no id is lost. Idempotent; safe in
        `finally` and when cancelled. A client of another event loop raises WrongEventLoopError.
        """
        self._pipeline.close()
        self._poller.close()
        try:
            with native_cancellation(), anyio.move_on_after(_CLOSING, shield=True):
                await self._pipeline.drain()
        finally:
            await self._downloads.aclose()
            await self._exchange.aclose()

    async def __aenter__(self) -> AsyncKnouds:
        """Enter nothing that outlives a call: no task, no cancel scope."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the client."""
        await self.aclose()


def _check(tier: str | None, limiter: object, max_connections: int, **switches: object) -> None:
    """Raise ConfigurationError for an argument that cannot be used."""
    for name, switch in switches.items():
        if not isinstance(switch, bool):  # the text of an environment variable, say
            raise ConfigurationError(f"{name}={safe_repr(switch)}: must be True or False")
    if not (config.is_integer(max_connections) and max_connections >= 1):
        raise ConfigurationError(f"max_connections={safe_repr(max_connections)}: must be an integer of at least 1")
    config.requests_per_minute(tier)  # an unknown tier is an error also beside a limiter
    if limiter is not None and not isinstance(limiter, (Limiter, SharedLimiter)):
        raise ConfigurationError(f"limiter={safe_repr(limiter)}: must be a Limiter or SharedLimiter; a tier is `tier=`")


def _load_durations(saved: Mapping[str, object] | None) -> LearnedDurations:
    """Begin with the durations that were saved."""
    learned = LearnedDurations()
    if saved is not None:
        try:
            learned.load(saved)
        except ValueError as fault:
            raise ConfigurationError(f"durations: {fault}") from None
    return learned
