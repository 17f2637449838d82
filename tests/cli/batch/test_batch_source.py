"""The file of jobs as a whole: looked through before anything is run, read lazily, with keys that stay."""

import os
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from knouds_async._cli.batch_jobs import InvalidLineError, JobSource, JobStream
from knouds_async._cli.errors import UsageError
from knouds_async.batch.jobs import Job

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give a place for jobs."""
    return tmp_path / "jobs.jsonl"


def test_jobs_are_counted_then_read(path: Path) -> None:
    """A file can be read twice, and lines that come meanwhile are left for the next time."""
    path.write_text('{"key": "a", "inputs": {"x": 1}}\n\n{"x": 2}\n')
    source = JobSource(path)
    assert source.count() == 2
    with path.open("a") as file:
        file.write('{"key": "late", "inputs": {}}\n')
    assert list(source.jobs(limit=2)) == [Job("a", {"x": 1}), {"x": 2}]
    assert len(list(source.jobs())) == 3


def test_csv_is_known_by_its_name(tmp_path: Path) -> None:
    """Names that end in .csv or .tsv, in any case, are read as CSV."""
    for name, separator in (("jobs.csv", ","), ("JOBS.TSV", "\t")):
        (tmp_path / name).write_text(f"key{separator}x\na{separator}1\n")
        assert list(JobSource(tmp_path / name).jobs({"x"})) == [Job("a", {"x": "1"})]


def test_every_faulty_line_is_said_at_once(path: Path) -> None:
    """The first fault is explained, the others are named, keys that come twice among them."""
    lines = ['{"key": "a", "inputs": {}}', "{", '{"key": "b", "inputs": {}}', '{"key": "a", "inputs": {}}', "3"]
    path.write_text("\n".join([*lines, '{"key": "a", "inputs": {"x": 1}}']))
    with pytest.raises(UsageError, match=r"jobs\.jsonl line 2: not JSON: .*; 3 more invalid lines: 4, 5, 6$"):
        JobSource(path).count()
    path.write_text("\n".join([lines[0], lines[2], lines[3]]))
    with pytest.raises(UsageError, match=r"line 3: duplicate key 'a', first in line 1$"):
        JobSource(path).count()
    path.write_text("3\n" * 30)
    with pytest.raises(UsageError, match=r"29 more invalid lines: 2, 3, 4, 5, 6, \.\.\.$"):
        JobSource(path).count()


def test_equal_jobs_without_keys_are_two_jobs(path: Path) -> None:
    """The same inputs twice are two runs that are wanted."""
    path.write_text('{"x": 1}\n{"x": 1}\n')
    source = JobSource(path)
    assert source.count() == 2
    assert list(source.jobs()) == [{"x": 1}, {"x": 1}]


def test_a_file_that_became_faulty_raises_where_it_is(path: Path) -> None:
    """What was overwritten after it was looked through gives the jobs before the fault, then the fault."""
    path.write_text("{}\n3\n")
    jobs = JobSource(path).jobs()
    assert next(jobs) == {}
    with pytest.raises(InvalidLineError, match="line 2"):
        next(jobs)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    """A file that is not there and a folder are wrong usage, by their names."""
    with pytest.raises(UsageError, match=r"none\.jsonl: No such file"):
        JobSource(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="Is a directory"):
        JobSource(tmp_path)


def test_memory_is_flat(path: Path) -> None:
    """Jobs are counted and read without being held."""
    with path.open("w") as file:
        file.writelines(f'{{"key": {number}, "inputs": {{"x": "{"y" * 1000}"}}}}\n' for number in range(8_000))
    source = JobSource(path)
    tracemalloc.start()
    assert source.count() == sum(1 for _ in source.jobs()) == 8_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000  # of 8 MB


@on_asyncio
async def test_a_stream_is_read_one_job_at_a_time(anyio_backend: str) -> None:
    """Nothing is read ahead of what is asked for, and the end is told to whoever asks again."""
    taken = []

    def jobs() -> Iterator[Job]:
        for number in range(3):
            taken.append(number)
            yield Job(str(number), {})

    stream = JobStream(jobs())
    assert taken == []
    assert [await anext(stream), len(taken)] == [Job("0", {}), 1]
    assert [job async for job in stream] == [Job("1", {}), Job("2", {})]
    assert [job async for job in stream] == []


@on_asyncio
async def test_a_fault_in_a_stream_is_raised_after_the_jobs_before_it(anyio_backend: str) -> None:
    """What the reader raises comes out where the job would have."""

    def jobs() -> Iterator[Job]:
        yield Job("a", {})
        raise InvalidLineError("stdin", 2, "no")

    stream = JobStream(jobs())
    assert await anext(stream) == Job("a", {})
    with pytest.raises(InvalidLineError, match="line 2"):
        await anext(stream)


@on_asyncio
async def test_a_stream_that_stalls_can_be_stopped(anyio_backend: str) -> None:
    """Who waits for a job that does not come is told that there are no more."""
    ours, theirs = os.pipe()
    is_reading = threading.Event()

    def jobs() -> Iterator[Job]:
        is_reading.set()
        os.read(ours, 1)
        yield Job("a", {})

    stream, got = JobStream(jobs()), []

    async def read() -> None:
        got.extend([job async for job in stream])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.to_thread.run_sync(is_reading.wait, 30)
        stream.stop()
    assert got == []
    os.close(theirs)
