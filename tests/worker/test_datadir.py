"""A data directory: who may have it, and what everyone else is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trikv.worker.datadir import DataDirError, Role, open_data_dir

HOLD = """
import sys
from pathlib import Path
from trikv.worker.datadir import open_data_dir
held = open_data_dir(Path(sys.argv[1]), "worker")
print("held", flush=True)
sys.stdin.read()
"""


def refusal(path: Path, role: Role = "worker") -> str:
    """The one line with which the directory is refused."""
    with pytest.raises(DataDirError) as error:
        open_data_dir(path, role)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_new_directory_is_made_and_opens_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down"
    for _ in range(2):
        with open_data_dir(path, "worker") as data_dir:
            assert data_dir.path == path
            assert (path / "LOCK").read_text() == f"{os.getpid()}\n"
    assert (path / "FORMAT").read_text() == "trikv worker 1\n"


def test_a_directory_in_use_names_the_process(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            assert f"in use by process {process.pid};" in refusal(tmp_path)
        finally:
            process.kill()
    with open_data_dir(tmp_path, "worker"):  # the lock went with the process
        pass


def test_closing_gives_it_free_and_may_be_repeated(tmp_path: Path) -> None:
    data_dir = open_data_dir(tmp_path, "worker")
    assert "in use" in refusal(tmp_path)
    data_dir.close()
    data_dir.close()
    open_data_dir(tmp_path, "worker").close()


def test_the_other_role_is_refused_and_leaves_it_free(tmp_path: Path) -> None:
    open_data_dir(tmp_path, "worker").close()
    assert "belongs to a worker, not to a master" in refusal(tmp_path, "master")
    open_data_dir(tmp_path, "worker").close()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("trikv worker 2\n", "is a worker's of format 2, and this trikv reads format 1; use the trikv that wrote it"),
        ("", "FORMAT is not as trikv wrote it"),
        ("somebody else's file", "FORMAT is not as trikv wrote it"),
    ],
)
def test_another_format_is_refused_untouched(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "FORMAT").write_text(text)
    assert complaint in refusal(tmp_path)
    assert (tmp_path / "FORMAT").read_text() == text


def test_a_directory_with_files_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert "holds files that are not trikv's" in refusal(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_a_crash_in_the_first_moment_leaves_behind_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_text("123\n")
    (tmp_path / "FORMAT.new").write_text("tri")
    open_data_dir(tmp_path, "master").close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["FORMAT", "LOCK"]


def test_a_directory_that_one_file_makes_what_it_is_counts_as_new_until_that_is_there(tmp_path: Path) -> None:
    for _ in range(2):  # a crash in between is no obstacle
        with open_data_dir(tmp_path, "master", founding="cluster.sqlite") as data_dir:
            assert not data_dir.founded
            (tmp_path / "cluster.sqlite").touch()
            (tmp_path / "cluster.sqlite-wal").touch()
    with open_data_dir(tmp_path, "master", founding="cluster.sqlite") as data_dir:
        data_dir.note_founded()
    assert (tmp_path / "FORMAT").read_text() == "trikv master 1\n"
    with open_data_dir(tmp_path, "master", founding="cluster.sqlite") as data_dir:
        assert data_dir.founded
    assert "belongs to a master" in refusal(tmp_path)


def test_a_directory_that_is_made_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down"
    open_data_dir(path, "worker").close()
    assert path.stat().st_mode & 0o777 == 0o700
    assert {entry.name: entry.stat().st_mode & 0o777 for entry in path.iterdir()} == {"LOCK": 0o600, "FORMAT": 0o600}
    made_by_others = tmp_path / "volume"
    made_by_others.mkdir()
    made_by_others.chmod(0o770)
    open_data_dir(made_by_others, "worker").close()
    assert made_by_others.stat().st_mode & 0o777 == 0o770


@pytest.mark.parametrize("name", ["LOCK", "FORMAT"])
def test_what_stands_in_the_place_of_a_file_is_not_followed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "data"
    open_data_dir(path, "worker").close()
    precious = tmp_path / "precious"
    place = path / name

    def is_refused() -> None:
        assert f"{name} is not a regular file" in refusal(path)
        place.unlink()

    precious.write_text("trikv worker 1\n")
    place.unlink()
    place.symlink_to(precious)
    is_refused()
    assert precious.read_text() == "trikv worker 1\n"
    os.mkfifo(place)
    is_refused()
    place.mkdir()
    assert f"{name} is not a regular file" in refusal(path)


def test_a_draft_of_the_format_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    path = tmp_path / "data"
    path.mkdir()
    (path / "FORMAT.new").symlink_to(precious)
    open_data_dir(path, "worker").close()
    assert precious.read_text() == "precious"
    assert (path / "FORMAT").read_text() == "trikv worker 1\n"


def test_a_fresh_volume_is_as_good_as_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    open_data_dir(tmp_path, "master").close()
    open_data_dir(tmp_path, "master").close()


def test_a_place_that_cannot_hold_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be used" in refusal(tmp_path / "file")
    assert "cannot be used: Not a directory" in refusal(tmp_path / "file" / "below")
    assert "cannot be used" in refusal(Path("/proc/trikv"))  # nobody can write there, not even root
