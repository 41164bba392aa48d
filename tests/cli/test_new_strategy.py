"""`trikv new-strategy`: what it writes works as it is, and what it cannot write it refuses in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trikv.cli.main import main
from trikv.cli.newstrategy import NotWritten, write_starting_files
from trikv.registry import Registry

LONGEST = "an-example-of-the-longest-name-2"


def new_strategy(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["new-strategy", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize("arguments", [["mine"], [LONGEST], ["mine", "--storage"]], ids=str)
def test_what_it_writes_is_what_the_linters_want(tmp_path: Path, arguments: list[str]) -> None:
    package = tmp_path / "package"
    assert new_strategy(*arguments, "--directory", package).exit_code == 0
    for check in (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]):
        checked = subprocess.run(
            [sys.executable, "-m", *check], cwd=package, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(("arguments", "passed"), [(["mine"], 1), (["mine", "--storage"], 25)], ids=str)
def test_what_it_writes_passes_its_own_tests(
    tmp_path: Path, install_beside: Callable[[Path], dict[str, str]], arguments: list[str], passed: int
) -> None:
    package = tmp_path / "package"
    assert new_strategy(*arguments, "--directory", package).exit_code == 0
    tested = subprocess.run(
        [sys.executable, "-m", "pytest"],
        cwd=package,
        env=install_beside(package),
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert f"{passed} passed" in tested.stdout


def test_it_says_what_it_wrote_and_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = new_strategy("ring_read")
    assert told.exit_code == 0
    names = ["pyproject.toml", "trikv_ring_read.py", "test_trikv_ring_read.py", "README.md"]
    assert told.stdout.splitlines()[:-1] == [f"wrote trikv-ring_read/{name}" for name in names]
    assert "pip install -e 'trikv-ring_read[dev]'" in told.stdout
    assert "class RingReadStrategy(Strategy):" in Path("trikv-ring_read", "trikv_ring_read.py").read_text()
    assert not [file for file in Path("trikv-ring_read").iterdir() if "$" in file.read_text()]


@pytest.mark.parametrize("name", ["Mine", "2nd", "mine-", "mine_", "", "mi ne", "../mine", "é", f"{LONGEST}3"])
def test_a_name_that_no_mode_can_have_is_refused(tmp_path: Path, name: str) -> None:
    told = new_strategy("--directory", tmp_path / "package", "--", name)
    assert told.exit_code == 2
    (line,) = told.stderr.splitlines()
    assert f"{name!r} cannot be a replication strategy's name" in line
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize("name", ["quorum", "memory"])
def test_a_name_that_is_taken_is_refused(tmp_path: Path, name: str) -> None:
    told = new_strategy(name, "--directory", tmp_path / "package")
    assert told.exit_code == 2
    (line,) = told.stderr.splitlines()
    assert f"the name {name!r} is taken by trikv " in line


def test_a_name_whose_module_is_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trikv_other_one.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotWritten, match="trikv_other_one"):
        write_starting_files("other-one", tmp_path / "package", Registry())


def test_a_directory_that_exists_is_left_alone(tmp_path: Path) -> None:
    told = new_strategy("mine", "--directory", tmp_path)
    assert told.exit_code == 2
    (line,) = told.stderr.splitlines()
    assert f"{tmp_path} exists already" in line
    assert list(tmp_path.iterdir()) == []
