"""CRAQ, installed beside trikv: it is found, served, and keeps its promise when a worker dies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import run_trikv

ROOT = Path(__file__).resolve().parent.parent

Installed = dict[str, str]


@pytest.fixture
def craq(install_beside: Callable[[Path], dict[str, str]]) -> Installed:
    return install_beside(ROOT / "plugins" / "trikv-craq")


def test_it_is_served_and_keeps_its_promise_when_a_worker_dies(craq: Installed) -> None:
    tour = run_trikv("demo", "--once", "--mode", "craq", environment=craq)
    assert tour.returncode == 0, tour.stdout + tour.stderr
    assert "mode craq kept its promise" in tour.stdout
