"""`knouds run --save DIR`: the files of the result in a folder, and nothing lost when one cannot be had."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

PutUp = Callable[..., Any]
Here = Callable[..., Any]


def run_args(count: int) -> list[str]:
    """Write the arguments of a run that makes so many images."""
    return ["run", "my-thumbnail-pipeline", "-i", "product_name=Mug", "-i", f"count={count}"]


def test_saves_the_files_and_prints_their_paths(media_service: Any, here: Here, tmp_path: Path) -> None:
    """The folder is made, each file is in it under the run's name, and stdout has their paths."""
    folder = tmp_path / "a" / "b"
    done = here(media_service, *run_args(1), "--save", str(folder))
    run = media_service.emulator.runs[0].execution_id
    assert (done.code, done.out.split()) == (0, [str(folder / f"{run}-1.png")])
    assert (folder / f"{run}-1.png").read_bytes().startswith(b"\x89PNG")


def test_json_names_the_files(media_service: Any, here: Here, tmp_path: Path) -> None:
    """With --json the paths stand beside the result."""
    done = here(media_service, *run_args(1), "--save", str(tmp_path), "--json")
    told = json.loads(done.out)
    assert told["files"] == [str(path) for path in sorted(tmp_path.iterdir())]
    assert told["result"]["images"]


def test_a_file_that_cannot_be_had_leaves_the_result(media_service: Any, here: Here, tmp_path: Path) -> None:
    """When the host refuses, the addresses are printed, a line says why, and the exit code is 1."""
    media_service.emulator.media_url = "https://evil.example/media"
    done = here(media_service, *run_args(1), "--save", str(tmp_path))
    assert done.code == 1
    assert done.out.startswith("https://evil.example/")
    assert "media_hosts" in done.err
    assert len(media_service.emulator.runs) == 1


def test_a_folder_that_cannot_be_made_runs_nothing(media_service: Any, here: Here, tmp_path: Path) -> None:
    """A file in the folder's place is wrong usage, found out before anything is paid for."""
    (tmp_path / "file").write_bytes(b"")
    assert here(media_service, *run_args(1), "--save", str(tmp_path / "file")).code == 2
    assert not media_service.emulator.runs
