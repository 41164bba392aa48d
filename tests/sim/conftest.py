"""Shared by the simulation's tests: the modes, how far the search goes, and at the end what it took to find mutants."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trikv.api import Strategy
from trikv.registry import load_registry
from trikv.testing.sim.script import Script, read

SCRIPTS = Path(__file__).parent / "scripts"
_CAUGHT = "mutant"


def read_script(file: Path) -> Script:
    return read(file.name, file.read_text())


@pytest.fixture(scope="session")
def strategies() -> dict[str, Strategy]:
    return dict(load_registry().strategies)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Nodes that die by design say much about it."""
    caplog.set_level(logging.CRITICAL, logger="trikv")  # and back, after the test


@pytest.fixture
def caught(record_property: Callable[[str, object], None]) -> Iterator[list[str]]:
    """Lines for the end of the report: which mutant was caught how."""
    lines: list[str] = []
    yield lines
    for line in lines:
        record_property(_CAUGHT, line)  # so it travels with the test's report, from whatever process ran it


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    caught = [
        line
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
        for name, line in report.user_properties
        if name == _CAUGHT
    ]
    if caught:
        terminalreporter.section("mutants caught by search")
        for line in caught:
            terminalreporter.line(str(line))
