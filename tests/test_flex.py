"""A stranger's strategy, installed beside trikv: it is found, listed, served and certified by its name alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import run_trikv

ROOT = Path(__file__).resolve().parent.parent

Installed = dict[str, str]


@pytest.fixture
def flex(install_beside: Callable[[Path], dict[str, str]]) -> Installed:
    return install_beside(ROOT / "plugins" / "trikv-flex")


def test_its_modes_are_listed_and_whose_they_are(flex: Installed) -> None:
    listed = run_trikv("plugins", "--json", environment={**flex, "TRIKV_FLEX": "r3w2"})
    assert listed.returncode == 0, listed.stderr
    ours = {row["name"] for row in json.loads(listed.stdout) if row["from"] == "trikv-flex 0.1.0"}
    assert ours == {"flex", "flex-w1", "flex-r1", "flex-r3w2"}


def test_parameters_that_are_none_are_one_clear_line(flex: Installed) -> None:
    listed = run_trikv("plugins", "--json", environment={**flex, "TRIKV_FLEX": "3 of 5"})
    assert listed.returncode == 0, listed.stderr
    (line,) = (row["about"] for row in json.loads(listed.stdout) if row["kind"] == "unusable")
    assert line.startswith("the plugin 'flex' of trikv-flex 0.1.0")
    assert "should look like r4w2" in line


def test_it_is_served_and_keeps_its_promise_when_a_worker_dies(flex: Installed) -> None:
    tour = run_trikv("demo", "--once", "--mode", "flex-w1", environment=flex)
    assert tour.returncode == 0, tour.stdout + tour.stderr
    assert "mode flex-w1 kept its promise" in tour.stdout


def test_it_is_certified(flex: Installed) -> None:
    certified = run_trikv("certify", "flex", "--seeds", "5", environment=flex)
    assert certified.returncode == 0, certified.stdout + certified.stderr
