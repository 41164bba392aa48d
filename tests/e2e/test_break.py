"""A master of real workers that it started: whatever becomes of it, they end with it, and start with the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import Trikv
from tests.processes_of import children_of, family_of, is_alive
from trikv.client import Client
from trikv.testing.processes.cluster import LocalCluster, wait_until

WORKERS = 2
OPTIONS = ("--start-workers", str(WORKERS), "--replicas", "2", "--break-it")


class Running(NamedTuple):
    process: subprocess.Popen[bytes]
    url: str


@contextmanager
def running_master(directory: Path, *options: str) -> Iterator[Running]:
    """One that serves; its workers may still be starting."""
    command = [sys.executable, "-m", "trikv", "master", "0", "--http", "127.0.0.1:0", "--data-dir", str(directory)]
    environ = {**os.environ, "TRIKV_CONFIG": os.devnull}
    with subprocess.Popen(
        [*command, "--exit-with-stdin", *OPTIONS, *options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            said = process.stdout.readline().decode()
            yield Running(process, "http://" + said.rpartition("http://")[2].strip())
        finally:
            process.kill()


def end(process: subprocess.Popen[bytes], how: str) -> None:
    if how == "end of stdin":
        assert process.stdin is not None
        process.stdin.close()
    else:
        process.send_signal(signal.SIGKILL if how == "kill -9" else signal.SIGTERM)
    assert process.wait(timeout=60) == (-signal.SIGKILL if how == "kill -9" else 0)


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
def test_nothing_outlives_the_master_not_even_a_paused_worker(how: str, tmp_path: Path) -> None:
    with running_master(tmp_path, "--worker-storage", "memory") as master:
        with Client(master.url) as client:
            wait_until(lambda: len(client.faults()["workers"]) == WORKERS, what="the workers have enlisted")
            client.inject("pause", client.faults()["workers"][0]["id"])
        family = family_of(master.process.pid)
        assert len(family) == WORKERS + 1  # and a shell that waits for our end
        end(master.process, how)
        wait_until(lambda: not any(map(is_alive, family)), what="its processes are gone")


@pytest.mark.parametrize("how", ["kill -9", "end of stdin"])
def test_nothing_outlives_a_master_that_is_starting_its_workers(how: str, tmp_path: Path) -> None:
    with running_master(tmp_path) as master:
        wait_until(lambda: children_of(master.process.pid), what="it has begun")
        family = family_of(master.process.pid)
        end(master.process, how)
        wait_until(lambda: not any(map(is_alive, family)), what="its processes are gone")


def test_the_next_master_has_the_same_workers(tmp_path: Path) -> None:
    seen: list[set[str]] = []
    for run in range(2):
        with running_master(tmp_path, "--worker-storage", "rocksdb") as master:
            with Client(master.url) as client:
                wait_until(lambda: len(up(client) & own(client)) == WORKERS, what="they are up")
                seen.append({worker["id"] for worker in client.cluster()["workers"]})
                if run == 0:
                    client.put(b"color", b"blue")
                else:
                    found = client.get(b"color")
                    assert found is not None
                    assert found.value == b"blue"
            end(master.process, "SIGTERM")
    assert seen[0] == seen[1]


def test_a_directory_that_is_none_is_reported_and_the_others_start(tmp_path: Path) -> None:
    with running_master(tmp_path, "--worker-storage", "memory", "--start-workers", "1") as master:
        end(master.process, "SIGTERM")
    (tmp_path / "workers").mkdir(exist_ok=True)
    (tmp_path / "workers" / "2").symlink_to(tmp_path / "elsewhere")
    with running_master(tmp_path, "--worker-storage", "memory") as master, Client(master.url) as client:
        wait_until(lambda: client.cluster()["fleet"]["failed"], what="it is told")
        [failed] = client.cluster()["fleet"]["failed"]
        assert (failed["number"], "must be a directory" in failed["why"]) == (2, True)
        wait_until(lambda: len(client.cluster()["workers"]) == WORKERS - 1, what="the other has enlisted")
    assert not (tmp_path / "elsewhere").exists()


def own(client: Client) -> set[str]:
    return set(client.cluster()["fleet"]["own"])


def up(client: Client) -> set[str]:
    return {worker["id"] for worker in client.cluster()["workers"] if worker["state"] == "up"}


def test_the_command_line_breaks_and_mends(trikv: Trikv) -> None:
    options = ("--start-workers", "3", "--worker-storage", "memory", "--break-it")
    with LocalCluster(workers=0, master_options=options) as cluster, cluster.client() as client:
        wait_until(lambda: len(client.faults()["workers"]) == 3, what="the workers have enlisted")
        worker = client.faults()["workers"][0]["id"]
        slowed = trikv("break", "slow", worker, "--delay-ms", "20", url=cluster.url)
        assert (slowed.returncode, slowed.stdout.decode()) == (
            0,
            f"worker {worker}: its link to the master was slowed by 20 ms\n",
        )
        assert "slow: 20 ms" in trikv("break", url=cluster.url).stdout.decode()
        assert "slowed on purpose, by 20 ms" in trikv("status", url=cluster.url).stdout.decode()
        assert trikv("break", "mend", worker, url=cluster.url).returncode == 0
        assert trikv("break", "kill", worker, url=cluster.url).returncode == 0
        again = trikv("break", "kill", worker, url=cluster.url)
        assert (again.returncode, b"start it" in again.stderr or b"is gone" in again.stderr) == (4, True)
        assert trikv("break", "start", worker, url=cluster.url).returncode == 0
        assert trikv("break", "kill", "w-nobody", url=cluster.url).returncode == 2
        for wrong in (["slow", worker], ["cut", worker, "--delay-ms", "5"], ["cut"], ["melt", worker]):
            assert trikv("break", *wrong, url=cluster.url).returncode == 2
        told = trikv("events", "--no-follow", url=cluster.url).stdout.decode()
        assert f"a fault was injected into worker {worker}: its process was killed" in told
