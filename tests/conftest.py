"""What all tests share: how properties are tested, packages that lie beside trikv, and workers to ask.

Properties are tested with the same examples at every run, so that a red run is red again.

`HYPOTHESIS_PROFILE=explore python3 scripts/dev.py test tests/core` looks further afield: new examples at each run, from
a seed that the head of the report names, so that `--hypothesis-seed` brings them back. No example has a deadline: a
test says nothing about time.
"""

import logging
import os
import random
import shutil
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import settings

from tests.helpers import GatedStorage, WorkerHarness
from trikv.api import Storage
from trikv.storage.memory import MemoryStorage
from trikv.storage.rocksdb import RocksEngine

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, print_blob=True)
settings.register_profile("explore", max_examples=2000, database=None, deadline=None, print_blob=True)
FOUND = "found by search"
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "repeatable")
settings.load_profile(PROFILE)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed before Hypothesis looks for one."""
    if PROFILE != "repeatable" and config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = random.getrandbits(32)


def pytest_report_header(config: pytest.Config) -> str:
    seed = config.getoption("--hypothesis-seed")
    return f"examples: {PROFILE}" + (f", --hypothesis-seed={seed}" if seed is not None else "")


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Simulated nodes that die by design say much about it."""
    caplog.set_level(logging.CRITICAL, logger="trikv")  # and back, after the test


@pytest.fixture
def found(record_property: Callable[[str, object], None]) -> Iterator[list[str]]:
    """Lines for the end of the report: what a search found, with which seed."""
    lines: list[str] = []
    yield lines
    for line in lines:
        record_property(FOUND, line)  # so it travels with the test's report, from whatever process ran it


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    lines = [
        line
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
        for name, line in report.user_properties
        if name == FOUND
    ]
    if lines:
        terminalreporter.section(FOUND)
        for line in lines:
            terminalreporter.line(str(line))


@pytest.fixture
def install_beside(tmp_path: Path) -> Callable[[Path], dict[str, str]]:
    """Install the package in a directory beside trikv, as far as trikv can tell; the environment that has it.

    The modules and the metadata lie on the path, as pip would leave them. pip itself would need an index.
    """

    def install(package: Path) -> dict[str, str]:
        written = tomllib.loads((package / "pyproject.toml").read_text())
        project = written["project"]
        site = tmp_path / "site-packages"
        information = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        information.mkdir(parents=True)
        for module in written["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]:
            shutil.copy(package / module, site)
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        offers = "".join(f"{name} = {module}\n" for name, module in project["entry-points"]["trikv"].items())
        (information / "entry_points.txt").write_text(f"[trikv]\n{offers}")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TRIKV_")}
        return {**clean, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, [clean.get("PYTHONPATH")])])}

    return install


@pytest.fixture(params=["memory", "rocksdb"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    opened = MemoryStorage() if request.param == "memory" else await RocksEngine().open(tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
async def harness(storage: Storage, nursery: trio.Nursery) -> AsyncIterator[WorkerHarness]:
    harness = await WorkerHarness(nursery, storage).start()
    yield harness
    await harness.stop()


@pytest.fixture
async def gated(nursery: trio.Nursery) -> WorkerHarness:
    return await WorkerHarness(nursery, GatedStorage()).start()
