"""Four machines on one ledger and one quota in PostgreSQL: killed, frozen and cut off at random, or left in peace.

    python benchmarks/many_machines.py [--seeds N [N ...]] [--jobs N] [--machines N] [--aimed SHARE] [--burners N]
    python benchmarks/many_machines.py --in-peace [--machines N [N ...]] [--delay S] [--quick]

Each machine is a process with network, pid and time namespaces of its own where the kernel allows it, and its clock on
the wall is up to ten minutes off. Database and service are processes beside them; the service counts the runs.

With faults, what takes a minute or two in the library is 15 times shorter: a lease of 4 s, a claim that is good for
2 s, usage rows that are 8 s late at most. Printed for each seed: jobs that were paid for twice, that have no outcome,
and that are unknown. Exits with 1 when there is one of the first two. `--aimed`: the share of the faults that strike
just after a submit has left, instead of at any time. `--burners`: processes that only use the cores.

In peace nothing is shortened: 100 submits a minute, by 1, 2 and 4 machines, begun half a minute before a window ends.
Printed: the share of the quota that was used while there were jobs, the refusals, and the seconds until the last submit
and the last end. Needs a PostgreSQL on this machine (Debian: postgresql).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import multiprocessing.connection
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import attrs
from namespaces import Isolated, Relay, are_allowed, python

from knouds_async import LedgerCounts
from knouds_async.postgres import Postgres
from knouds_async.testing import Emulator, Lognormal, faults, serve

ROOT: Final = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.postgres.server import Server  # noqa: E402  (of the tests, which start the same)

PROCESSES: Final = multiprocessing.get_context("spawn")
SLUG: Final = "my-thumbnail-pipeline"
SUBMIT: Final = "POST /api/workflows/:slug/run"
FACTOR: Final = 15.0
PROVABLE_AFTER: Final = 120 / FACTOR + 4
OFF: Final = (-600.0, 600.0, -45.0, 137.0)  # seconds
PATIENCE: Final = 120.0  # seconds in which machines must end by themselves once they are left in peace

# The service.


def run_service(pipe: multiprocessing.connection.Connection, settings: dict[str, Any]) -> None:
    """Serve until told to stop; then send what was run, and what was refused."""
    if "median" in settings:
        settings["duration"] = Lognormal(settings.pop("median"))
    answers_after = settings.pop("answers_after", 0.0)
    emulator = Emulator(**settings)
    if answers_after:  # half of the submits are carried out at the end of that, half at its beginning
        emulator.faults.add(faults.stalled(answers_after, after_run=True), route=SUBMIT, probability=0.5)
        emulator.faults.add(faults.stalled(answers_after), route=SUBMIT)

    async def run() -> None:
        async with serve(emulator) as url:
            pipe.send((url, emulator.api_key))
            while await anyio.to_thread.run_sync(pipe.recv) != "end":
                pass

    anyio.run(run)
    first = next(iter(emulator.requests)).at
    runs = [(str(run.inputs["product_name"]), run.started - first) for run in emulator.runs]
    pipe.send((runs, len(emulator.requests.refusals)))


@attrs.define
class Service:
    """The emulator in a process of its own."""

    url: str
    api_key: str
    pipe: multiprocessing.connection.Connection

    @classmethod
    def start(cls, **settings: Any) -> Service:
        """Start it."""
        here, there = PROCESSES.Pipe()
        PROCESSES.Process(target=run_service, args=(there, settings), daemon=True).start()
        url, api_key = here.recv()
        return cls(url, api_key, here)

    def stop(self) -> tuple[list[tuple[str, float]], int]:
        """Return the runs: their jobs, and seconds after the first request; and how many requests were refused."""
        self.pipe.send("end")
        runs, refused = self.pipe.recv()
        return runs, refused

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.url.rpartition(":")[2])


@contextmanager
def a_database() -> Iterator[Server]:
    """Run a PostgreSQL."""
    memory = Path("/dev/shm")  # noqa: S108  (where there is one: a busy disk would be measured too)
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        Path(folder).chmod(0o755)
        server = Server(Path(folder) / "data", idle_in_transaction_session_timeout="0")
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)


def _burn() -> None:
    while True:
        pass


@contextmanager
def burners(count: int) -> Iterator[None]:
    """Use the cores while the block runs."""
    running = [PROCESSES.Process(target=_burn, daemon=True) for _ in range(count)]
    for each in running:
        each.start()
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.join()


# The machines.


@attrs.define(eq=False)
class Fleet:
    """What the machines have in common."""

    service: Service
    database: Server
    name: str
    keys: list[str]
    factor: float = 1.0
    delay: float = 0.0
    aimed: float = 0.0

    def order(self, keys: list[str], clock: float) -> str:
        """Return what a machine is told when it starts."""
        known = {"api_key": self.service.api_key, "slug": SLUG, "factor": self.factor}
        return json.dumps({**known, "keys": keys, "clock": clock})

    async def counts(self) -> LedgerCounts:
        """Count the jobs in the ledger."""
        async with Postgres(self.database.url(self.name), name="renders") as ledger:
            return await ledger.counts()


class Machine:
    """One machine: its process, which is started again when it dies, and its ways out."""

    def __init__(self, fleet: Fleet, keys: list[str], *, clock: float, booted: int) -> None:
        self.fleet, self.keys, self.clock, self.booted = fleet, keys, clock, booted
        self.deaths = Counter[str]()
        self.is_over = False
        self.last_words: list[str] = []
        self.ports: list[int] = []
        self.isolated: Isolated | None = None
        self.relays: list[Relay] = []

    async def start(self) -> None:
        """Start its process, up to where it waits to begin."""
        order = self.fleet.order(self.keys, self.clock)
        command = python(Path(__file__).with_name("machine.py"), order)
        self.isolated = isolated = await asyncio.to_thread(Isolated, command, booted=self.booted)
        assert isolated.is_ready, isolated.process.communicate()[1]
        for relay in self.relays:
            relay.close()
        self.relays, self.ports = [], []
        fleet = self.fleet
        for port in (fleet.service.port, fleet.database.port):
            if port == fleet.service.port and not are_allowed():  # a ledger is of one service, at one address
                self.ports.append(port)
                continue
            listening = isolated.listen(port)
            self.ports.append(listening.getsockname()[1])
            self.relays.append(Relay(port, delay=fleet.delay))
            await self.relays[-1].start(listening)

    def begin(self) -> None:
        """Let it begin."""
        service, database = self.ports
        places = [f"http://127.0.0.1:{service}", self.fleet.database.url(self.fleet.name, port=database)]
        assert self.isolated is not None
        assert self.isolated.process.stdin is not None
        self.isolated.process.stdin.write(json.dumps(places) + "\n")
        self.isolated.process.stdin.flush()

    async def ended(self) -> dict[str, int] | None:
        """Wait until its process has ended; return the outcomes that it saw, None if it died."""
        assert self.isolated is not None
        process = self.isolated.process
        said, failed = await asyncio.to_thread(process.communicate)
        if process.returncode == 0:
            seen: dict[str, int] = json.loads(said)
            return seen
        last = failed.strip().splitlines()[-1:]
        if self.is_over:
            self.last_words.append(failed)
        self.deaths["killed" if not last or "Traceback" not in failed else last[0][:160]] += 1
        return None

    async def live(self, dice: random.Random) -> None:
        """Work until all jobs have an outcome: start again after a death, and once what is unknown can be proven."""
        while True:
            await self.start()
            self.begin()
            seen = await self.ended()
            if seen is not None and not seen.get("unknown"):
                return
            if seen is not None and self.is_over:
                return
            await asyncio.sleep(dice.uniform(0.2, 2.0) if seen is None else PROVABLE_AFTER)

    async def suffer(self, dice: random.Random) -> str:
        """Let something go wrong with it, and return what."""
        if self.isolated is None or self.isolated.process.poll() is not None or not self.ports:
            return "nothing"
        kind = dice.choice(("kill", "freeze", "freeze", "partition", "hold", "cut"))
        isolated = self.isolated
        if dice.random() < self.fleet.aimed:
            await self.relays[0].passes(b"POST ", within=3.0)
            await asyncio.sleep(dice.uniform(0.0, 0.3))
        match kind:
            case "kill":
                isolated.signal(signal.SIGKILL)
            case "freeze":
                isolated.signal(signal.SIGSTOP)
                await asyncio.sleep(dice.choice((0.5, 2.0, 5.0, 9.0, 14.0)))
                isolated.signal(signal.SIGCONT)
            case "partition":
                isolated.set_link(up=False)
                await asyncio.sleep(dice.choice((0.3, 1.0, 3.0, 6.0)))
                isolated.set_link(up=True)
            case (
                "hold"
            ):  # what was acknowledged arrives whatever the sender does: for less than a claim and its tolerance
                dice.choice(self.relays).hold(dice.uniform(0.3, 2.0))
            case _:
                dice.choice(self.relays).cut()
        return kind


# With faults.


@attrs.frozen
class Found:
    """What came of one seed."""

    seed: int
    seconds: list[float]  # with faults, until all had ended, and for the look after that
    events: Counter[str]
    deaths: Counter[str]
    twice: list[str]
    counts: LedgerCounts
    jobs: int
    hanging: int

    @property
    def without_outcome(self) -> int:
        """How many jobs are neither over nor known to be unknown."""
        counts = self.counts
        return self.jobs - counts.completed - counts.failed - counts.cancelled - counts.unknown

    @property
    def is_good(self) -> bool:
        """Whether nothing was paid twice or lost, and all ended by themselves."""
        return not self.twice and not self.without_outcome and not self.hanging


async def disturb(machines: list[Machine], dice: random.Random, until: float) -> Counter[str]:
    """Let something go wrong with a machine, again and again."""
    events = Counter[str]()

    async def strike(machine: Machine) -> None:
        while True:
            await asyncio.sleep(dice.uniform(0.1, 1.5))
            if time.monotonic() > until:
                return
            events[await machine.suffer(dice)] += 1

    async with asyncio.TaskGroup() as tasks:
        for machine in machines:
            tasks.create_task(strike(machine))
    del events["nothing"]
    return events


async def with_faults(database: Server, seed: int, *, jobs: int, count: int, aimed: float) -> Found:
    """Run the machines once, with faults for half a minute, and then in peace until all have ended."""
    dice, name = random.Random(seed), f"faults{seed}"
    database.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    limits: dict[str, Any] = {"tier": "pro", "limit": 45, "window_length": 3.0}
    slow = {"median": 1.5, "answers_after": 0.3}
    service = Service.start(**limits, **slow, polls_limited=False, usage_limited=False, seed=seed)
    keys = [f"job-{number}" for number in range(jobs)]
    fleet = Fleet(service, database, name, keys, FACTOR, delay=0.05, aimed=aimed)
    clocks = [off + dice.uniform(-5, 5) for off in OFF] * count
    machines = [Machine(fleet, keys, clock=clocks[at], booted=dice.randrange(100_000)) for at in range(count)]
    await fleet.counts()  # makes the tables
    lives = [asyncio.create_task(machine.live(random.Random(f"{seed} {at}"))) for at, machine in enumerate(machines)]
    times = [time.monotonic()]
    events = await disturb(machines, dice, time.monotonic() + 35.0)
    times.append(time.monotonic())
    for machine in machines:
        machine.is_over = True
    done, hanging = await asyncio.wait(lives, timeout=PATIENCE)
    for life in done:
        life.result()  # whatever failed of ours
    await end(machines, hanging)
    times.append(time.monotonic())
    await asyncio.sleep(PROVABLE_AFTER)
    last = Machine(fleet, keys, clock=0.0, booted=0)
    await last.start()
    last.begin()
    await last.ended()
    times.append(time.monotonic())
    counts = await fleet.counts()
    ran = Counter(key for key, _ in service.stop()[0])
    deaths = sum((machine.deaths for machine in machines), Counter[str]())
    twice = sorted(key for key, number in ran.items() if number > 1)
    seconds = [after - before for before, after in itertools.pairwise(times)]
    return Found(seed, seconds, events, deaths, twice, counts, jobs, len(hanging))


async def end(machines: list[Machine], hanging: set[asyncio.Task[None]]) -> None:
    """Kill what does not end, and print where it stands."""
    running = [each.isolated for each in machines if each.isolated is not None and each.isolated.process.poll() is None]
    for isolated in running:
        isolated.signal(signal.SIGUSR1)
        await asyncio.sleep(2.0)
        isolated.signal(signal.SIGKILL)
    if hanging:
        await asyncio.wait(hanging, timeout=5)
    for machine in machines:
        for said in machine.last_words:
            print(said)
    for task in hanging:
        task.cancel()


def show_faults(found: Found) -> None:
    """Print what came of a seed."""
    share = 100 * found.counts.unknown / found.jobs
    print(
        f"seed {found.seed}: {len(found.twice)} paid twice, {found.without_outcome} without an outcome, "
        f"{found.counts.unknown} unknown ({share:.1f} %), {found.counts.completed} completed; "
        f"{found.hanging} did not end by themselves; {' + '.join(f'{each:.0f}' for each in found.seconds)} s"
    )
    print(f"    {', '.join(f'{number} x {kind}' for kind, number in sorted(found.events.items()))}")
    for said, number in found.deaths.items():
        print(f"    {number} x ended by: {said}")
    for key in found.twice:
        print(f"    twice: {key}")
    sys.stdout.flush()


# In peace.


async def in_peace(database: Server, *, jobs: int, count: int, delay: float) -> tuple[float, int, float, float]:
    """Return the share of the quota, the refusals, and the seconds until the last submit and the last end."""
    name = f"peace{count}_{int(delay * 1000)}"
    database.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    service = Service.start(tier="pro", limit=100, window_phase=30.0, duration=5.0)
    keys = [f"job-{number}" for number in range(jobs)]
    fleet = Fleet(service, database, name, keys, 1.0, delay / 2)
    await fleet.counts()
    clocks = (OFF * count)[:count]
    machines = [Machine(fleet, keys[at::count], clock=clocks[at], booted=5000 * at) for at in range(count)]
    for machine in machines:
        await machine.start()
    began = time.monotonic()
    for machine in machines:
        machine.begin()
    seen = await asyncio.gather(*(machine.ended() for machine in machines))
    took = time.monotonic() - began
    assert all(each is not None and set(each) == {"completed"} for each in seen), [m.deaths for m in machines]
    runs, refused = service.stop()
    starts = sorted(started for _, started in runs)
    windows = Counter(int((start + 30.0) // 60) for start in starts)
    full = [windows[window] for window in range(max(windows))]  # while there were jobs left for the next
    for machine in machines:
        for relay in machine.relays:
            relay.close()
    return sum(full) / (100 * len(full)), refused, starts[-1], took


async def show_peace(given: argparse.Namespace) -> None:
    """Print the table of 1, 2 and 4 machines."""
    jobs = 130 if given.quick else 294  # 98 % of three windows
    with a_database() as database:
        print("machines   quota   429s   last submit   last end")
        for count in given.machines or [1, 2, 4]:
            share, refused, last, took = await in_peace(database, jobs=jobs, count=count, delay=given.delay)
            print(f"{count:8}   {share:.3f}   {refused:4}   {last:9.1f} s   {took:6.1f} s", flush=True)


async def show_all_faults(given: argparse.Namespace) -> bool:
    """Print what came of all seeds; return whether all is well."""
    is_good = True
    with a_database() as database, burners(given.burners):
        for seed in given.seeds:
            count = (given.machines or [4])[0]
            found = await with_faults(database, seed, jobs=given.jobs, count=count, aimed=given.aimed)
            show_faults(found)
            is_good = is_good and found.is_good
    return is_good


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--machines", type=int, nargs="+")
    parser.add_argument("--aimed", type=float, default=0.0)
    parser.add_argument("--burners", type=int, default=0)
    parser.add_argument("--in-peace", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds to the database and the service and back")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if shutil.which("unshare") is None or not are_allowed():
        print("namespaces are not allowed here: the machines are ordinary processes, and partitions are left out")
    if given.in_peace:
        asyncio.run(show_peace(given))
    elif not asyncio.run(show_all_faults(given)):
        sys.exit(1)


if __name__ == "__main__":
    main()
