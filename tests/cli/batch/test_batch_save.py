"""`knouds batch --save DIR`: the files of all results in a folder, and nothing lost when one is not to be had."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from knouds_async.testing import faults

PutUp = Callable[..., Any]
Here = Callable[..., Any]
MEDIA = "GET /media/:name"
SAVING = ("batch", "my-thumbnail-pipeline", "jobs.jsonl", "--out", "out.jsonl", "--save", "files")


def fetches(media_service: Any) -> int:
    """Count the requests for files."""
    return sum(request.route == MEDIA for request in media_service.emulator.requests)


def test_each_result_names_its_files(media_service: Any, here: Here, folder: Any) -> None:
    """Every file is in the folder under its run's name, and its path in the line of its job."""
    folder.write_jobs(6, count=2)
    assert here(media_service, *SAVING).code == 0
    for line in folder.results().values():
        run = line["execution_id"]
        assert line["files"] == [str(Path("files") / f"{run}-{n}.png") for n in (1, 2)]
        assert all(Path(file).read_bytes().startswith(b"\x89PNG") for file in line["files"])
    assert len(list(Path("files").iterdir())) == 12


def test_a_rerun_fetches_what_is_missing(media_service: Any, here: Here, folder: Any) -> None:
    """A batch that ran without --save gets its files by a rerun with it, which runs nothing and fetches each once."""
    folder.write_jobs(3)
    assert here(media_service, *SAVING[:-2]).code == 0
    assert all("files" not in line for line in folder.lines())
    assert here(media_service, *SAVING).code == 0
    lines = folder.results()
    assert all(len(line["files"]) == 1 for line in lines.values())
    Path(lines["j1"]["files"][0]).unlink()
    kept = Path(lines["j0"]["files"][0])
    kept.write_bytes(b"cropped by hand")
    assert here(media_service, *SAVING).code == 0
    assert folder.results() == lines
    assert len(list(Path("files").iterdir())) == 3
    assert kept.read_bytes() == b"cropped by hand"
    assert fetches(media_service) == 4
    assert len(media_service.emulator.runs) == 3


def test_a_file_that_cannot_be_had_is_tried_again(media_service: Any, here: Here, folder: Any) -> None:
    """When a host refuses, the result is kept with null for its files and the code is 1; the rerun fetches them."""
    for nth in (1, 2):
        media_service.emulator.faults.add(faults.not_found(), route=MEDIA, nth=nth)
    folder.write_jobs(2, count=2)
    done = here(media_service, *SAVING, "--max-in-flight", "1")
    assert done.code == 1
    assert [line["files"] for line in folder.lines()].count(None) >= 1
    assert all(line["result"]["images"] for line in folder.lines())
    assert "could not be downloaded; the same command tries again" in done.err
    assert "knouds: files of j" in done.err
    assert here(media_service, *SAVING).code == 0
    assert all(len(line["files"]) == 2 for line in folder.results().values())
    assert len(media_service.emulator.runs) == 2


def test_results_without_files_have_none(media_service: Any, here: Here, folder: Any) -> None:
    """A run that gave text alone has an empty list."""
    Path("jobs.jsonl").write_text('{"prompt": "x"}\n')
    done = here(media_service, "batch", "claude-sonnet", *SAVING[2:], "--model")
    assert (done.code, [line["files"] for line in folder.lines()]) == (0, [[]])


def test_the_lines_on_stdout_name_the_files(media_service: Any, here: Here, folder: Any) -> None:
    """Without --out the paths are in the lines on stdout."""
    folder.write_jobs(1)
    done = here(media_service, *SAVING[:3], "--save", "files")
    assert Path(json.loads(done.out)["files"][0]).exists()
