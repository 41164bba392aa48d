"""What the end-to-end tests share: real processes, real sockets, real disks, and the command line as a user calls it.

A cluster takes two seconds to start, so tests that leave theirs as they found it share one.
"""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from trikv.cli import main
from trikv.testing.cluster import LocalCluster

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
    """A quorum of three, in memory, for tests that harm nothing and keep to keys of their own."""
    with LocalCluster(mode="quorum", workers=3) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of this machine's standard library without its tests: some 600 files, a few beyond 256 KiB."""
    copy = tmp_path_factory.mktemp("library") / "sources"

    def unwanted(directory: str, names: list[str]) -> list[str]:
        paths = {name: Path(directory, name) for name in names}
        foreign = ("site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3")
        return [name for name, p in paths.items() if name in foreign or not (p.is_dir() or name.endswith(".py"))]

    shutil.copytree(sysconfig.get_paths()["stdlib"], copy, ignore=unwanted)
    return copy


@pytest.fixture
def free_port() -> int:
    """A port that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
