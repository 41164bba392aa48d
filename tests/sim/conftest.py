"""Shared by the simulation's tests: the modes, how far the search goes, and at the end what it took to find mutants."""

from __future__ import annotations

import logging

import pytest

from trikv.api import Strategy
from trikv.registry import load_registry

_CAUGHT = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def strategies() -> dict[str, Strategy]:
    return dict(load_registry().strategies)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Nodes that die by design say much about it."""
    caplog.set_level(logging.CRITICAL, logger="trikv")  # and back, after the test


@pytest.fixture
def caught(request: pytest.FixtureRequest) -> list[str]:
    """Lines for the end of the report: which mutant was caught how."""
    return request.config.stash.setdefault(_CAUGHT, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if caught := config.stash.get(_CAUGHT, []):
        terminalreporter.section("mutants caught by search")
        for line in caught:
            terminalreporter.line(line)
