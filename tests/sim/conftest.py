"""Shared by the simulation's tests: the modes, and scripts. Simulated nodes are quiet."""

from __future__ import annotations

from pathlib import Path

import pytest

from trikv.api import Strategy
from trikv.registry import load_registry
from trikv.testing.sim.script import Script, read

SCRIPTS = Path(__file__).parent / "scripts"


def read_script(file: Path) -> Script:
    return read(file.name, file.read_text())


@pytest.fixture(scope="session")
def strategies() -> dict[str, Strategy]:
    return dict(load_registry().strategies)


@pytest.fixture(autouse=True)
def _quiet(quiet: None) -> None:
    """In every test."""
