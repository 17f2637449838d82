"""`knouds batch` on a ledger in a database, and `knouds ledger`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from knouds_async._cli.ledgers import place_of
from knouds_async.ledgers import Claim
from knouds_async.postgres import Postgres
from knouds_async.testing import Emulator, serve
from tests.cli.conftest import Service, run_knouds
from tests.postgres.frames import frames_that_show
from tests.postgres.server import PASSWORD, Server
from tests.postgres.test_ledger import MISSPELLED, claim

pytestmark = pytest.mark.slow

SLUG = "my-thumbnail-pipeline"


@pytest.fixture
def service() -> Iterator[Service]:
    """Return a service whose runs take a tenth of a second."""
    emulator = Emulator(tier="business", duration=0.1)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serve(emulator)) as base_url:
        yield Service(emulator, base_url)


def test_a_batch_on_a_database(service: Service, url: str, tmp_path: Path) -> None:
    """`--ledger` takes the URL: run again nothing is paid for twice, and nothing that is printed shows the password."""
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("".join(json.dumps({"key": f"k{n}", "inputs": {"product_name": f"{n}"}}) + "\n" for n in range(5)))
    for _ in range(2):
        ended = service.knouds(
            "batch", SLUG, str(jobs), "--ledger", url, "--out", str(tmp_path / "out.jsonl"), "--json"
        )
        assert ended.code == 0, ended.err
        assert PASSWORD not in ended.out + ended.err
        assert json.loads(ended.out)["completed"] == 5
    assert len(service.emulator.runs) == 5
    status = service.knouds("batch", "--status", url, "--json")
    assert (status.code, json.loads(status.out)["completed"], json.loads(status.out)["owners"]) == (0, 5, [])
    assert PASSWORD not in status.out


def wanted(key: str, owner: str) -> Claim:
    """Return a claim of another machine on a job."""
    return claim(key, owner)


def test_status_names_batches_and_leases_and_resolve_decides(
    service: Service, server: Server, database: str, url: str
) -> None:
    """`--status` shows who has jobs, and for how long; once a lease has run out its jobs are unknown, and decided."""

    async def claim_one() -> None:
        shared = Postgres(f"{url}?application_name=other")
        await shared.claim(wanted("k1", await shared.join()))
        await shared.aclose()

    anyio.run(claim_one)
    status = service.knouds("batch", "--status", url)
    assert "1 job, lease of" in status.out
    server.execute("UPDATE knouds_owner SET until = now() - interval '1 s'", database=database)
    status = service.knouds("batch", "--status", url)
    assert (status.code, "k1" in status.out) == (5, True)
    assert f"--resolve postgresql://127.0.0.1:{server.port}/{database} KEY" in status.err
    decided = service.knouds("batch", "--resolve", url, "k1", "abandon")
    assert (decided.code, "0 runs unknown" in decided.err) == (0, True)
    assert service.knouds("batch", "--rebind", url).code == 0


def test_status_shows_a_ledger_in_doubt(service: Service, server: Server, database: str, url: str) -> None:
    """After a failover or a restored backup it says why nothing is submitted and what to do; it records nothing."""
    assert json.loads(service.knouds("batch", "--status", url, "--json").out)["doubt"] is None
    for timeline in ("another", json.dumps({"id": "noticed by a batch", "timeline": "1/00000001"})):
        server.execute("DELETE FROM knouds_ledger", database=database)
        insert = "INSERT INTO knouds_ledger (name, timeline) VALUES ('default', %s)"
        server.execute(insert, database=database, values=(timeline,))
        status = service.knouds("batch", "--status", url)
        assert "In doubt: the ledger 'default' in" in status.err
        assert f"`knouds ledger trust postgresql://127.0.0.1:{server.port}/{database}`" in status.err
        found = json.loads(service.knouds("batch", "--status", url, "--json").out)
        assert "may lack runs: it is on another database" in found["doubt"]
    assert run_knouds("ledger", "trust", url).code == 0
    assert "In doubt" not in service.knouds("batch", "--status", url).err


def test_migrate_and_trust(server: Server, database: str, url: str) -> None:
    """`knouds ledger` makes the tables, trusts a ledger after a failover, and refuses what is no database."""
    ended = run_knouds("ledger", "migrate", url)
    assert (ended.code, PASSWORD in ended.out + ended.err) == (0, False)
    assert server.execute("SELECT version FROM knouds_schema", database=database) == [(1,)]
    server.execute("INSERT INTO knouds_ledger (name, timeline) VALUES ('default', 'another')", database=database)
    assert run_knouds("ledger", "trust", url).code == 0
    assert server.execute("SELECT timeline <> 'another' FROM knouds_ledger", database=database) == [(True,)]
    assert run_knouds("ledger", "trust", "renders.db").code == 2
    assert run_knouds("ledger", "drop", url).code == 2


def test_a_path_is_a_file() -> None:
    """What has not the scheme of a database is the path of a file, as ever."""
    assert place_of("renders.db") == Path("renders.db")


def test_a_dry_run_makes_no_tables(service: Service, server: Server, database: str, url: str, tmp_path: Path) -> None:
    """`--dry-run` with a database leaves it as it is."""
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text(json.dumps({"key": "k", "inputs": {"product_name": "1"}}) + "\n")
    ended = service.knouds("batch", SLUG, str(jobs), "--ledger", url, "--dry-run", "--json")
    assert (ended.code, json.loads(ended.out)["jobs"]) == (0, 1)
    assert server.execute("SELECT to_regclass('knouds_schema')", database=database) == [(None,)]
    assert not service.emulator.runs


def test_no_frame_holds_a_password(service: Service, url: str, tmp_path: Path) -> None:
    """Neither ours nor the parser's, whatever is asked for, and no message shows it: not even one of the parser."""
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text(json.dumps({"key": "k", "inputs": {"product_name": "1"}}) + "\n")
    malformed = f"postgresql://u:{PASSWORD}@b@h/d"
    given = (url, malformed, MISSPELLED[1])
    lines = [
        ["batch", SLUG, str(jobs), *ledger, "--out", str(tmp_path / "out"), *more]
        for more in ([], ["--dry-run"])
        for ledger in (["--ledger", url], [f"--ledger={url}"], ["--ledger", malformed], [f"--ledger={MISSPELLED[0]}"])
    ]
    lines += [["batch", option, each] for option in ("--status", "--rebind") for each in given]
    lines += [["batch", "--resolve", each, "k", "abandon"] for each in given]
    lines += [["ledger", action, each] for action in ("migrate", "trust", "drop") for each in given]
    lines += [["batch", "--status", url, "--no-such-option"], ["ledger", "migrate", url, url, url]]
    lines += [[url], ["run", url], ["status", url], ["wait", url], ["--status", url], [f"--ledger={url}", "batch"]]
    with frames_that_show(PASSWORD) as found:
        printed = [(line, ended) for line in lines if PASSWORD in (ended := service.knouds(*line)).out + ended.err]
    assert (found, printed) == (set(), [])
    assert len(service.emulator.runs) == 1
