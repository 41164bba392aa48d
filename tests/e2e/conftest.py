"""What the end-to-end tests share: real processes, real sockets, real disks, and the command line as a user calls it.

Each process takes half a second of CPU to start. So clusters are no larger than a test needs, and tests that leave
their cluster as they found it share one.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from trikv.cli.main import main
from trikv.testing.processes.cluster import LocalCluster

CLI_DEADLINE_S = 60.0

Trikv = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="session")
def trikv_process() -> Trikv:
    """Run the command as a process of its own, without a terminal, and wait for it."""

    def run(*arguments: str | Path, url: str = "", stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TRIKV_")}
        return subprocess.run(
            [sys.executable, "-m", "trikv", *arguments],
            input=stdin,
            capture_output=True,
            timeout=CLI_DEADLINE_S,
            env={**clean, "TRIKV_URL": url} if url else clean,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def trikv() -> Trikv:
    """Run the command within this process, ten times as fast: `trikv("get", "k", url=cluster.url)`."""

    def run(*arguments: str | Path, url: str = "", stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        words = [str(argument) for argument in arguments]
        ended = CliRunner().invoke(main, words, input=stdin, env={"TRIKV_URL": url or None}, catch_exceptions=False)
        return subprocess.CompletedProcess(words, ended.exit_code, ended.stdout_bytes, ended.stderr_bytes)

    return run


@pytest.fixture(scope="session")
def quiet_cluster() -> Iterator[LocalCluster]:
    """A quorum of three, in memory, for tests that leave it whole and use keys of their own."""
    with LocalCluster(workers=3, timeout_s=20.0) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some packages of this machine's standard library: about 90 files, one of them beyond 256 KiB."""
    copy = tmp_path_factory.mktemp("library") / "sources"
    for package in ("asyncio", "email", "importlib", "pydoc_data"):
        source = Path(sysconfig.get_paths()["stdlib"], package)
        shutil.copytree(source, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    return copy
