"""Shared by the tests of certification: what a search for broken strategies found, at the end of the report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

_FOUND = "broken strategy"


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Simulated nodes that die by design say much about it."""
    caplog.set_level(logging.CRITICAL, logger="trikv")  # and back, after the test


@pytest.fixture
def found(record_property: Callable[[str, object], None]) -> Iterator[list[str]]:
    """Lines for the end of the report: which broken strategy which seed showed."""
    lines: list[str] = []
    yield lines
    for line in lines:
        record_property(_FOUND, line)  # so it travels with the test's report, from whatever process ran it


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    lines = [
        line
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
        for name, line in report.user_properties
        if name == _FOUND
    ]
    if lines:
        terminalreporter.section("broken strategies found by search")
        for line in lines:
            terminalreporter.line(str(line))
