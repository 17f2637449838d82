"""The records: what a result gives, which states are final, and that all are frozen values that pickle."""

import copy
import inspect
import pickle
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knouds_async import types
from knouds_async.errors import InvalidArgumentError
from knouds_async.types import ExecutionState, Failure, Media, RunResult, Status, SubmissionSearch, Target, UsageRow

RECORDS = [
    kind
    for _, kind in inspect.getmembers(types, inspect.isclass)
    if attrs.has(kind) and kind.__module__ == types.__name__
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def made(kind: type[Any]) -> Any:
    """Make a record, its required fields filled."""
    required = {
        "kind": "workflows" if kind is Target else "image", "name": "a", "url": "https://x", "result": {"text": "x"},
        "execution_id": "run-1", "status": Status.COMPLETED, "slug": "a", "candidates": (), "is_conclusive": True,
    }  # fmt: skip
    return kind(**{f.name: required[f.name] for f in attrs.fields(kind) if f.default is attrs.NOTHING})


@pytest.mark.parametrize("kind", RECORDS)
def test_records_are_frozen_values(kind: type[Any]) -> None:
    """They compare by value, cannot be changed, and survive pickling and copying."""
    record = made(kind)
    for twin in (made(kind), pickle.loads(pickle.dumps(record)), copy.copy(record), copy.deepcopy(record)):  # noqa: S301
        assert twin == record
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(record, attrs.fields(kind)[0].name, "other")
    assert not hasattr(record, "__dict__") or kind is UsageRow  # 500 at a time are made faster without slots


def test_a_record_shows_its_fields_and_is_no_other_kind() -> None:
    """Each field by its name, but the JSON it was read from; equal fields of another kind are another record."""
    failure = Failure("OUT_OF_MEMORY", None, {"secret": "canary"})
    assert repr(failure) == "Failure(code='OUT_OF_MEMORY', message=None)"
    assert failure in {Failure("OUT_OF_MEMORY")}
    assert failure not in {Failure("OTHER")}
    assert types.Pricing() != types.Health()
    assert RunResult("x", 1.0) != RunResult("x", 2.0)


# As the library wrote it when the records were one file.
OLD = (
    b"\x80\x02cknouds_async.types\nExecutionState\n)\x81}(X\x0c\x00\x00\x00execution_idX\x05\x00\x00\x00run-1X\x06\x00\x00\x00"
    b"statuscknouds_async.types\nStatus\nX\x06\x00\x00\x00failed\x85RX\n\x00\x00\x00request_idNX\r\x00\x00\x00workflow_slugN"
    b"X\t\x00\x00\x00model_ids)X\x06\x00\x00\x00resultNX\x05\x00\x00\x00errorNX\x04\x00\x00\x00costNX\x02\x00\x00\x00msN"
    b"X\n\x00\x00\x00created_atNX\x0c\x00\x00\x00completed_atNX\x03\x00\x00\x00rawNub."
)


def test_a_record_loads_that_was_pickled_when_the_records_were_one_file() -> None:
    """What stands in a queue or a cache outlives how the files are cut, and what is written now names no file."""
    state = ExecutionState(execution_id="run-1", status=Status.FAILED)
    assert pickle.loads(OLD) == state  # noqa: S301  (our own)
    assert {kind.__module__ for kind in (*RECORDS, Status)} == {"knouds_async.types"}
    assert b"types._" not in pickle.dumps(state)


@pytest.mark.parametrize("kind", [kind for kind in RECORDS if hasattr(kind, "raw")])
def test_the_source_is_kept_but_does_not_count(kind: type[Any]) -> None:
    """`raw` is reachable, survives pickling, and two records with other sources are equal."""
    record = attrs.evolve(made(kind), raw={"x": 1})
    assert pickle.loads(pickle.dumps(record)).raw == {"x": 1}  # noqa: S301
    assert record == attrs.evolve(record, raw={"y": 2})
    if kind is not types.Pricing:
        assert "raw" not in repr(record)


def test_every_record_of_the_service_keeps_its_source() -> None:
    """Only what this library makes up itself has no source."""
    assert {kind.__name__ for kind in RECORDS if "raw" not in attrs.fields_dict(kind)} == {"Target", "SubmissionSearch"}


# Results.


@pytest.mark.parametrize(
    ("key", "kind", "name"),
    [("images", "image", "images"), ("videos", "video", "videos"), ("audios", "audio", "audios")],
)
def test_media_are_read_from_the_common_lists(key: str, kind: Any, name: str) -> None:
    """Lists of `{url}` and of plain URLs give media; odd items are left out (contract 3)."""
    items = [{"url": "https://m/1", "width": 5}, "https://m/2", {"url": None}, {}, 5, None, [], {"url": "https://m/3"}]
    found = getattr(RunResult({key: items, "other": 1}), name)
    assert found == (Media(kind, "https://m/1"), Media(kind, "https://m/2"), Media(kind, "https://m/3"))
    assert [media.raw for media in found] == [items[0], items[1], items[-1]]


@pytest.mark.parametrize(
    "result", [None, 5, "images", [], {}, {"images": None}, {"images": {"url": "x"}}, {"images": 5}]
)
def test_a_result_without_media_has_none(result: Any) -> None:
    """What is not such a list gives nothing, and never raises."""
    run = RunResult(result)
    assert (run.images, run.videos, run.audios) == ((), (), ())


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"text": "x"}, "x"),
        ({"text": ""}, ""),
        ({"text": ["x", "y"]}, "x\ny"),
        ({"text": ["x", 5, None, "y"]}, "x\ny"),
        ({"text": []}, None),
        ({"text": [5]}, None),
        ({"text": 5}, None),
        ({"text": {"text": "x"}}, None),
        ({}, None),
        ("x", "x"),
        (["x", "y"], "x\ny"),
        ([{"url": "https://m/1"}], None),
        ([""], ""),
        (None, None),
        (5, None),
    ],
)
def test_the_text_of_a_result(result: Any, text: str | None) -> None:
    """One text as it is, several joined by newlines, none as None (contract 3)."""
    assert RunResult(result).text == text


@given(JSON | st.dictionaries(st.sampled_from(["images", "videos", "audios", "text", "url"]), JSON))
def test_no_result_raises(result: Any) -> None:
    """Whatever JSON a workflow gives, its media and text can be asked for."""
    run = RunResult(result)
    assert all(isinstance(media.url, str) for media in (*run.images, *run.videos, *run.audios))
    assert run.text is None or isinstance(run.text, str)


@pytest.mark.parametrize(
    ("kind", "url", "extension"),
    [
        ("image", "https://m/abc.png", ".png"),
        ("image", "https://m/abc.JPEG?x=.exe#.gif", ".jpeg"),
        ("image", "https://m/abc", ".png"),
        ("image", "https://m/abc.exe", ".png"),
        ("image", "https://m/abc.mp4", ".png"),
        ("image", "https://m/a.png/b", ".png"),
        ("video", "https://m/abc.webm", ".webm"),
        ("video", "https://m/..%2f", ".mp4"),
        ("audio", "https://m/abc.tar.flac", ".flac"),
        ("audio", "", ".mp3"),
        ("audio", "http://[::1", ".mp3"),
    ],
)
def test_a_file_has_an_extension_of_its_kind(kind: Any, url: str, extension: str) -> None:
    """The address's own extension where such a file may have it, else the usual one of the kind (traps, files)."""
    media = Media(kind, url)
    assert media.extension == extension
    assert media.url_extension in (extension, None)


@given(st.sampled_from(["image", "video", "audio"]), st.text())
def test_no_address_gives_another_extension(kind: Any, url: str) -> None:
    """Whatever the address, the extension is one of the kind's."""
    assert Media(kind, url).extension in types.EXTENSIONS[kind]


# States.


@pytest.mark.parametrize(
    ("status", "is_final"),
    [("processing", False), ("cancel_requested", False), ("completed", True), ("failed", True), ("cancelled", True),
     ("queued", False), ("COMPLETED", False), ("", False)],
)  # fmt: skip
def test_only_known_ends_are_final(status: str, is_final: bool) -> None:
    """A state is final when it is completed, failed or cancelled; an unknown one never is (contract 5)."""
    state = ExecutionState(execution_id="run-1", status=status)
    assert state.is_final is is_final
    if status in list(Status):
        assert ExecutionState(execution_id="run-1", status=Status(status)).is_final is is_final


def test_the_statuses_are_the_contract_s() -> None:
    """There are five of them, and each is its text."""
    assert [f"{status}" for status in Status] == ["processing", "completed", "failed", "cancelled", "cancel_requested"]


# Targets.


@pytest.mark.parametrize("text", ["workflows/my-pipeline", "models/gpt-image-2"])
def test_a_target_is_its_text(text: str) -> None:
    """A target that is written and read is the same; it can be a key of a dictionary."""
    target = Target.parse(text)
    assert str(target) == text
    assert {target: 1}[Target(target.kind, target.name)] == 1


@pytest.mark.parametrize(
    "text", ["", "/", "workflows", "workflows/", "/a", "workflow/a", "Models/a", "executions/a", " models/a"]
)
def test_what_is_no_target_says_how_to_write_one(text: str) -> None:
    """A text without kind and name is refused by name."""
    with pytest.raises(InvalidArgumentError, match="write workflows/<slug> or models/<name>") as caught:
        Target.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("kind", ["executions", "", "../..", None, ["workflows"]])
def test_a_target_is_a_workflow_or_a_model(kind: Any) -> None:
    """Nothing else can be run, so nothing else gets into a path."""
    with pytest.raises(InvalidArgumentError, match="must be 'workflows' or 'models'"):
        Target(kind, "a")


# Searches.


@pytest.mark.parametrize(
    ("rows", "is_conclusive", "is_certainly_none"),
    [(0, True, True), (0, False, False), (1, True, False), (1, False, False)],
)
def test_only_a_conclusive_search_that_found_nothing_says_so(
    rows: int, is_conclusive: bool, is_certainly_none: bool
) -> None:
    """It is safe to submit anew only when enough time had passed and no row could be the run."""
    found = (UsageRow(id=1, created_at=datetime(2026, 5, 8, tzinfo=UTC)),) * rows
    assert SubmissionSearch(candidates=found, is_conclusive=is_conclusive).is_certainly_none is is_certainly_none


@pytest.mark.parametrize(
    ("media", "shown"),
    [
        (Media("image", "https://a.b/c.png?x=1&y=2"), '<img src="https://a.b/c.png?x=1&amp;y=2"'),
        (Media("video", "https://a.b/c.mp4"), '<video src="https://a.b/c.mp4" controls'),
        (Media("audio", "https://a.b/c.mp3"), '<audio src="https://a.b/c.mp3" controls'),
        (Media("image", 'https://a.b/"><script>alert(1)</script>'), "&quot;&gt;&lt;script&gt;"),
        (Media("image", "http://a.b/c.png"), "<code>http://a.b/c.png</code>"),
        (Media("image", "javascript:alert('1')"), "<code>javascript:alert(&#x27;1&#x27;)</code>"),
        (Media("image", "data:image/svg+xml,<svg onload=alert(1)>"), "<code>data:image/svg+xml,&lt;svg"),
    ],
)
def test_a_file_shows_itself_in_a_notebook(media: Media, shown: str) -> None:
    """Images, videos and sounds of https addresses are shown; nothing of an address gets out of its place."""
    page = media._repr_html_()
    assert shown in page
    assert "<script" not in page
    assert page.count("<") == page.count(">") <= 2


def test_a_result_shows_its_files_in_a_notebook() -> None:
    """All of them; a result without files is left to its repr."""
    run = RunResult({"images": [{"url": "https://a.b/1.png"}], "videos": ["https://a.b/2.mp4"]})
    page = run._repr_html_()
    assert page is not None
    assert "<img" in page
    assert "<video" in page
    assert RunResult({"text": "x"})._repr_html_() is None
