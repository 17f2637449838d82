"""Inputs on the command line and in files, and the jobs that `knouds batch` reads, from files and from streams."""

import csv
import io
import json
import os
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from knouds_async import Job, SchemaField, WorkflowSchema
from knouds_async._cli.input_files import (
    MAX_LINE_BYTES,
    FileFormat,
    FileJob,
    InvalidLineError,
    JobSource,
    JobStream,
    has_a_place,
    read_inputs,
    read_jobs,
    read_value,
    text_inputs,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-2.5", -2.5),
        ("true", True),
        ("null", None),
        ('"3"', "3"),
        ("[1, 2]", [1, 2]),
        ('{"a": 1}', {"a": 1}),
        ("photo", "photo"),
        ("", ""),
        ("a=b", "a=b"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_value_is_json_when_it_reads_as_json(text: str, value: object) -> None:
    """Numbers, switches, lists and objects are JSON; everything else is the text as it stands."""
    assert read_value(text) == value
    assert read_inputs([f"key={text}"], None).read() == {"key": value}


@given(st.text())
def test_no_text_is_refused_as_a_value(text: str) -> None:
    """Whatever the text, a value comes of it that JSON can say, or it would have lost something."""
    with suppress(ValueError):
        json.dumps(read_value(text), allow_nan=False)


INEXACT = [
    ('{"a": 1, "a": 2}', "'a' comes twice"),
    ('{"x": [{"a": 1, "b": 2, "a": 1}]}', "'a' comes twice"),
    ('{"x": 1e999}', "1e999 is too large"),
    ('{"x": ' + "9" * 5000 + "}", "is too large a number"),
]


@pytest.mark.parametrize(("text", "words"), INEXACT)
def test_what_would_lose_something_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """A name that comes twice at any depth, and a number that Python cannot hold, are refused wherever inputs stand."""
    (tmp_path / "inputs.json").write_text(text)
    for read_it in (
        lambda: read_inputs([], tmp_path / "inputs.json"),
        lambda: read_inputs([f"key={text}"], None).read(),
        lambda: read(text),
        lambda: read('a;b\n1;"' + text.replace('"', '""') + '"\n', CSV),
    ):
        with pytest.raises(Exception, match=words):
            read_it()


def test_the_schema_says_what_is_text() -> None:
    """A value under a text input is a string as it stands, but for one in quotes; others are read as JSON."""
    schema = WorkflowSchema(
        fields=(
            SchemaField(name="a", type="text"),
            SchemaField(name="b", type="number"),
            SchemaField(name="c", type="pills", options=("1", "2")),
            SchemaField(name="d", type="pills", options=(1, 2)),
            SchemaField(name="e", type="image"),
        )
    )
    given = read_inputs(["a=5", "b=5", "c=1", "d=1", "e=null", "f=true"], None)
    assert text_inputs(schema) == {"a", "c", "e"}
    assert given.read(text_inputs(schema)) == {"a": "5", "b": 5, "c": "1", "d": 1, "e": "null", "f": True}
    assert read_inputs(['a="5"', 'c={"x": 1, "x": 2}'], None).read({"a", "c"}) == {"a": "5", "c": '{"x": 1, "x": 2}'}


@pytest.mark.parametrize("text", ["[]", "3", "{", "NaN", "", "\x00"])
def test_a_file_that_holds_no_object_is_refused(tmp_path: Path, text: str) -> None:
    """A file of inputs must be a JSON object, and the file is named when it is not."""
    file = tmp_path / "inputs.json"
    file.write_text(text)
    with pytest.raises(Exception, match=r"inputs\.json"):
        read_inputs([], file)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """A file that an editor saved with a byte order mark is read."""
    file = tmp_path / "inputs.json"
    file.write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_inputs(["b=2"], file).read() == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": "\xfc"}', r"byte 8 \(0xfc\) is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16; save it as UTF-8"),
        (b'{"a": 1,\n}', "line 2 column 1|line 1 column|column 8"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_explained(tmp_path: Path, data: bytes, words: str) -> None:
    """What is wrong with a file of inputs is said by its place, and what to do about it."""
    (tmp_path / "inputs.json").write_bytes(data)
    with pytest.raises(Exception, match=words):
        read_inputs([], tmp_path / "inputs.json")


def test_a_pipe_is_a_file_of_inputs(tmp_path: Path) -> None:
    """What a shell gives for `<(command)` is read, once."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=('{"a": 1}',))
    writer.start()
    assert read_inputs([], tmp_path / "pipe").read() == {"a": 1}
    writer.join()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
INPUTS = st.dictionaries(st.text().filter(lambda name: name not in ("key", "inputs")), VALUES, max_size=4)


JSONL, CSV = FileFormat("jobs.jsonl"), FileFormat("jobs.csv", is_csv=True)


def read(data: bytes | str, form: FileFormat = JSONL) -> list[FileJob]:
    """Read all jobs of these bytes; the first line that is none raises what is wrong with it."""
    jobs = []
    for entry in read_jobs(io.BytesIO(data.encode() if isinstance(data, str) else data), form):
        if isinstance(entry, InvalidLineError):
            raise entry
        jobs.append(entry)
    return jobs


def fault(data: bytes | str, form: FileFormat = JSONL) -> str:
    """Return what is said of the first line that is no job."""
    with pytest.raises(InvalidLineError) as caught:
        read(data, form)
    return str(caught.value)


def test_a_job_has_a_key_and_inputs_or_is_its_inputs() -> None:
    """Both forms are read, in one file if need be; a whole number is a key by its text."""
    text = '{"key": "a", "inputs": {"x": 1}}\n{"x": [2]}\n{"inputs": {"key": 3}, "key": 17}\n{"inputs": {}}\n{}'
    assert read(text) == [
        FileJob(1, "a", {"x": 1}),
        FileJob(2, None, {"x": [2]}),
        FileJob(3, "17", {"key": 3}),
        FileJob(4, None, {}),
        FileJob(5, None, {}),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_marks_line_ends_and_empty_lines_are_no_matter(end: str, mark: bytes) -> None:
    """A byte order mark, CRLF and lines of nothing but space change neither the jobs nor the numbers of their lines."""
    assert read(mark + f'{end}{{"x": "ü"}}{end} \t{end}{{"x": 2}}'.encode()) == [
        FileJob(2, None, {"x": "ü"}),
        FileJob(4, None, {"x": 2}),
    ]
    assert read(mark + f"{end}x,key{end}ü,a{end}{end}2,{end}".encode(), CSV) == [
        FileJob(3, "a", {"x": "ü"}),
        FileJob(5, None, {"x": 2}),
    ]


@pytest.mark.parametrize("form", [JSONL, CSV])
def test_no_lines_are_no_jobs(form: FileFormat) -> None:
    """A file of nothing has no jobs, and that is no fault of a line."""
    assert read(b"", form) == read(b"\n\n", form) == read(b"\xef\xbb\xbf", form) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON: "),
        ('{"x": 1,}', "at column "),  # 9, or from Python 3.13 on 8
        ('{"x": NaN}', "it holds NaN, which is not JSON"),
        ('{"x": -Infinity}', "it holds -Infinity, which is not JSON"),
        ('{"x": ' + "[" * 100_000, "nested too deeply"),
        ('{"x": ' + "9" * 5000 + "}", "is too large a number"),
        ("[1]", "`jq -c '.[]'`"),
        ("[", "`jq -c '.[]'`"),
        ('{"x": 1e999}', "1e999 is too large"),
        ("3", "not a JSON object"),
        ('{"inputs": 3}', "no other names"),
        ('{"key": "a"}', "no other names"),
        ('{"key": "a", "x": 1}', "no other names"),
        ('{"key": "a", "inputs": {}, "note": 1}', "'note' beside 'inputs'"),
        ('{"key": "", "inputs": {}}', "'key' must be a string or an integer"),
        ('{"key": true, "inputs": {}}', "not True"),
        ('{"key": 1.5, "inputs": {}}', "not 1.5"),
        ('{"key": "a\\u001b[2J", "inputs": {}}', "printable"),
        ('{"key": "' + "x" * 201 + '", "inputs": {}}', "at most 200"),
    ],
)
def test_a_line_that_is_no_job_is_named(line: str, words: str) -> None:
    """What is wrong is said in one line with the file and the line's number, and nothing is passed over."""
    said = fault('{"x": 1}\n' + line + "\n")
    assert said.startswith("jobs.jsonl line 2: ")
    assert words in said
    assert len(said) < 300
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("text", "form", "lines"),
    [("{}\n{\n{}\n3\n{}\n", JSONL, [2, 4]), ("a\n1\n1,2\n1\n1,2\n", CSV, [3, 5])],
)
def test_faults_stand_among_the_jobs(text: str, form: FileFormat, lines: list[int]) -> None:
    """A line that is no job does not hide those after it."""
    found = list(read_jobs(io.BytesIO(text.encode()), form))
    assert [one.line for one in found if isinstance(one, InvalidLineError)] == lines
    assert len(found) - len(lines) in (2, 3)


def test_what_is_not_utf_8_is_named() -> None:
    """A byte that is no UTF-8 is named with its place, and UTF-16 is recognised."""
    assert "jobs.jsonl line 2: byte 8 (0xfc) is not UTF-8" in fault(b'{}\n{"x": "\xfc"}\n')
    assert "UTF-16" in fault('{"x": 1}\n'.encode("utf-16"))
    assert "UTF-16" in fault("x\n1\n".encode("utf-16"), CSV)


def test_a_line_without_end_is_refused_before_it_is_held() -> None:
    """A line is read up to a bound: what has no line ends is not taken into memory."""

    class Endless(io.RawIOBase):
        taken = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            self.taken += len(buffer)
            buffer[:] = b"x" * len(buffer)
            return len(buffer)

    endless = Endless()
    with pytest.raises(InvalidLineError, match="line 1: longer than 32 MiB"):
        next(read_jobs(io.BufferedReader(endless), JSONL))
    assert endless.taken <= MAX_LINE_BYTES + 1024**2


def test_a_long_line_is_a_job() -> None:
    """A job may hold a picture."""
    assert read(json.dumps({"x": "y" * 5_000_000}))[0].inputs == {"x": "y" * 5_000_000}


def test_cells_are_read_as_on_the_command_line() -> None:
    """A cell that reads as JSON is JSON, any other is text, an empty one is not given; cells of texts stay text."""
    text = 'a,b,key,c\n1,true,0017,007\n,"[1, 2]",,\n"x\ny","he said ""no""",k,1e3\n'
    assert read(text, CSV) == [
        FileJob(2, "0017", {"a": 1, "b": True, "c": "007"}),
        FileJob(3, None, {"b": [1, 2]}),
        FileJob(4, "k", {"a": "x\ny", "b": 'he said "no"', "c": 1000.0}),
    ]
    assert read("a,b\n1984,1984\n", FileFormat("x", is_csv=True, text_inputs={"a"})) == [
        FileJob(2, None, {"a": "1984", "b": 1984})
    ]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_first_line_shows_the_separator(separator: str) -> None:
    """Spreadsheets write commas, semicolons or tabs."""
    assert read(f"a{separator}b\n1{separator}x\n", CSV) == [FileJob(2, None, {"a": 1, "b": "x"})]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,\n1,2\n", "line 2: '2' is in a column without a name"),
        (",\n1,2\n", "line 1: no column has a name"),
        ("sep=x\na\n", "line 1: sep=x: must be a comma"),
        ("sep=\na\n", "line 1: sep=: must be a comma"),
        ("a,b\n1,x\0y\n", "line 2: a NUL byte"),
        ("a\0,b\n1,x\n", "line 1: a NUL byte"),
        ("a,a\n1,2\n", "line 1: two columns are named 'a'"),
        ("a,b\n1,2\n1\n", "line 3: 1 cells where the first line names 2"),
        ("a,b\n1,2,3\n", "line 2: 3 cells where the first line names 2"),
        ('a\n1\n"2\n3\n', "line 3: not CSV"),
        ('a\n"1"x\n', "line 2: not CSV"),
        ("a\n1\n\n3\rx\n", "line 4: a carriage return in a cell without quotes"),
        ("a,key\n1,\x07\n", "line 2: 'key' must be"),
    ],
)
def test_a_row_that_is_no_job_is_named(text: str, words: str) -> None:
    """What is wrong with a row is said with the number of its first line."""
    assert f"jobs.csv {words}" in fault(text, CSV)


def test_what_spreadsheets_leave_behind_is_passed_over() -> None:
    """Empty rows and columns, rows of spaces and cells beyond the last name are no inputs."""
    assert read("a,b\n,\n1,\n,\n", CSV) == [FileJob(3, None, {"a": 1})]
    assert read("a,,b,\n1,,2,\n , ,,\n3,,4,,,\n", CSV) == [
        FileJob(2, None, {"a": 1, "b": 2}),
        FileJob(4, None, {"a": 3, "b": 4}),
    ]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_first_line_may_name_the_separator(separator: str, end: str) -> None:
    """What spreadsheets write for each other is no row: the separator is taken as it says."""
    text = end.join([f"sep={separator}", f"a{separator}b", f'1{separator}",;|x"', ""])
    assert read(text, CSV) == [FileJob(3, None, {"a": 1, "b": ",;|x"})]


def test_lines_may_end_in_cr_alone() -> None:
    """Files of old spreadsheets are read, with the numbers of their lines, in CSV and in JSON Lines."""
    assert read('a,b\r1,"x\ry"\r\r2,z\r', CSV) == [
        FileJob(2, None, {"a": 1, "b": "x\ry"}),
        FileJob(5, None, {"a": 2, "b": "z"}),
    ]
    assert read('{"a": 1}\r\r{"a": 2}', JSONL) == [FileJob(1, None, {"a": 1}), FileJob(3, None, {"a": 2})]
    assert "line 3" in fault('{"a": 1}\r\r{', JSONL)


@settings(max_examples=40)
@given(st.lists(INPUTS))
def test_what_json_wrote_is_read(inputs: list[dict[str, Any]]) -> None:
    """Any inputs that JSON can say come out as they went in, with or without keys."""
    bare = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in inputs)
    keyed = "".join(json.dumps({"key": number, "inputs": one}) + "\n" for number, one in enumerate(inputs))
    assert [entry.inputs for entry in read(bare)] == inputs
    assert [(entry.key, entry.inputs) for entry in read(keyed)] == [(str(n), one) for n, one in enumerate(inputs)]


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_are_more_than_a_faulty_line(data: bytes, is_csv: bool) -> None:
    """Whatever a file holds, it is read or refused with the number of a line."""
    with suppress(InvalidLineError):
        read(data, CSV if is_csv else JSONL)


@given(st.lists(st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_what_a_spreadsheet_wrote_is_read(cells: list[str]) -> None:
    """Any text that the csv module wrote comes out as it went in, but for a row of blanks, which is no job."""
    assume(any(cell.strip() for cell in cells))
    names = [f"n{number}" for number, _ in enumerate(cells)]
    file = io.StringIO()
    csv.writer(file).writerows([names, cells])
    form = FileFormat("jobs.csv", is_csv=True, text_inputs=set(names))
    assert [entry.inputs for entry in read(file.getvalue(), form)] == [dict(zip(names, cells, strict=True))]


on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a place for jobs."""
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


@pytest.mark.parametrize(("text", "first"), [('{"x": 1}\n', {"x": 1}), ("x;y\n1;2\n", {"x": 1, "y": 2})])
def test_a_named_pipe_is_read_once_and_known_by_its_beginning(tmp_path: Path, text: str, first: dict[str, int]) -> None:
    """A pipe cannot be read twice, and its name does not say what comes through it."""
    os.mkfifo(tmp_path / "pipe")
    source = JobSource(tmp_path / "pipe")
    assert not source.is_file
    assert source.may_be_csv
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(text,))
    writer.start()
    assert list(source.jobs()) == [first]
    writer.join()


def test_a_ledger_stands_beside_what_is_there_again(tmp_path: Path) -> None:
    """A file has a place for a ledger; stdin, a pipe and what a shell opens for a command have none."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "jobs.jsonl").touch()
    assert has_a_place(tmp_path / "jobs.jsonl")
    assert has_a_place(Path("none.jsonl"))
    for path in ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", tmp_path / "pipe"):
        assert not has_a_place(Path(path)), path


def test_every_faulty_line_is_said_at_once(path: Path) -> None:
    """The first fault is explained, the others are named, keys that come twice among them."""
    lines = ['{"key": "a", "inputs": {}}', "{", '{"key": "b", "inputs": {}}', '{"key": "a", "inputs": {}}', "3"]
    path.write_text("\n".join([*lines, '{"key": "a", "inputs": {"x": 1}}']))
    with pytest.raises(Exception, match=r"jobs\.jsonl line 2: not JSON: .*; 3 more invalid lines: 4, 5, 6$"):
        JobSource(path).count()
    path.write_text("\n".join([lines[0], lines[2], lines[3]]))
    with pytest.raises(Exception, match=r"line 3: duplicate key 'a', first in line 1$"):
        JobSource(path).count()
    path.write_text("3\n" * 30)
    with pytest.raises(Exception, match=r"29 more invalid lines: 2, 3, 4, 5, 6, \.\.\.$"):
        JobSource(path).count()


def test_equal_jobs_without_keys_are_two_jobs(path: Path) -> None:
    """The same inputs twice are two runs that are wanted."""
    path.write_text('{"x": 1}\n{"x": 1}\n')
    source = JobSource(path)
    assert source.count() == 2
    assert list(source.jobs()) == [{"x": 1}, {"x": 1}]


def test_a_file_that_became_faulty_raises_where_it_is(path: Path) -> None:
    """A file that was overwritten after the check yields the jobs before the fault, then the fault."""
    path.write_text("{}\n3\n")
    jobs = JobSource(path).jobs()
    assert next(jobs) == {}
    with pytest.raises(InvalidLineError, match="line 2"):
        next(jobs)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    """A file that is not there and a folder are wrong usage, by their names."""
    with pytest.raises(Exception, match=r"none\.jsonl: No such file"):
        JobSource(tmp_path / "none.jsonl")
    with pytest.raises(Exception, match="Is a directory"):
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
    """Nothing is read ahead of demand, and the end is reported again on every further call."""
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
    """A reader that waits for a job that does not come learns that there are no more."""
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
