"""`trikv demo`: the tour's verdict, and that nothing is left behind, however it ends."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import Trikv
from tests.processes_of import children_of, is_alive
from trikv.cli.demo import FURTHER_WORKERS
from trikv.client import Client
from trikv.testing.processes.cluster import wait_until


@pytest.mark.parametrize("mode", ["chain", "async"])
def test_the_tour_finds_the_promise_kept(trikv_process: Trikv, mode: str) -> None:
    tour = trikv_process("demo", "--once", "--mode", mode)
    told = tour.stdout.decode()
    assert tour.returncode == 0, told + tour.stderr.decode()
    assert f"mode {mode} kept its promise" in told
    assert re.search(r"writes: \d+ committed, \d+ refused, 0 unknown", told), told


def test_the_demo_killed_with_9_leaves_no_process_and_no_file_not_even_a_paused_one() -> None:
    with running_demo() as (demo, processes, directory, url):
        with Client(url) as client:
            client.inject("pause", client.faults()["workers"][0]["id"])
        demo.kill()
        demo.wait()
        wait_until(lambda: not any(map(is_alive, processes)), what="its children are gone")
        wait_until(lambda: not directory.exists(), what="its directory is gone")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_the_demo_ends_cleanly_when_asked(number: signal.Signals) -> None:
    with running_demo() as (demo, processes, directory, _):
        demo.send_signal(number)
        assert demo.wait(timeout=60) == 0
        assert not any(map(is_alive, processes))
        assert not directory.exists()


def test_the_demo_scales_and_can_be_broken() -> None:
    with running_demo() as demo, Client(demo.url) as client:
        faults, state = client.faults(), client.cluster()
        assert faults["allowed"]
        assert {worker["pid"] for worker in faults["workers"]} <= set(demo.children)
        assert [worker["process"] for worker in faults["workers"]] == ["running", "running"]
        assert (state["autoscale"]["fewest"], state["autoscale"]["most"]) == (2, 2 + FURTHER_WORKERS)


def test_a_demo_whose_data_is_kept_goes_on_in_the_mode_that_it_was_switched_to(tmp_path: Path) -> None:
    seen = []
    for mode in ("quorum", "chain"):
        with (
            running_demo("--data-dir", str(tmp_path), workers=1, storage="rocksdb") as demo,
            Client(demo.url) as client,
        ):
            assert client.mode()["mode"] == mode
            seen.append([worker["id"] for worker in client.cluster()["workers"]])
            if mode == "quorum":
                client.put(b"color", b"blue")
                client.set_mode("chain")
            found = client.get(b"color")
            assert found is not None
            assert found.value == b"blue"
            demo.process.send_signal(signal.SIGTERM)
            assert demo.process.wait(timeout=60) == 0
    assert len(seen[0]) == 1
    assert seen[0] == seen[1]
    with running_demo("--data-dir", str(tmp_path), "--mode", "sync", workers=1, storage="rocksdb") as demo:
        with Client(demo.url) as client:
            assert client.mode()["mode"] == "chain"
        assert demo.process.stdout is not None
        assert any(b"mode is chain, not sync" in line for line in demo.process.stdout)


def test_two_demos_that_start_at_once_both_serve() -> None:
    command = [sys.executable, "-m", "trikv", "demo", "--workers", "1", "--storage", "memory"]
    demos = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for demo in demos:
            assert demo.stdout is not None
            assert any(b"the page is" in line for line in demo.stdout)
    finally:
        for demo in demos:
            demo.terminate()
        codes = [demo.wait(timeout=60) for demo in demos]
        for demo in demos:
            assert demo.stdout is not None
            demo.stdout.close()
    assert codes == [0, 0]


class Demo(NamedTuple):
    """One that serves, the pids of its children and theirs, where its data is, and its page."""

    process: "subprocess.Popen[bytes]"
    children: list[int]
    directory: Path
    url: str


@contextmanager
def running_demo(*arguments: str, workers: int = 2, storage: str = "memory") -> Iterator[Demo]:
    options = ["--workers", str(workers), "--storage", storage, *arguments]
    command = [sys.executable, "-m", "trikv", "demo", *options]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
    try:
        starting = subprocess.Popen(command, stdout=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, handler)
    with starting as demo:
        try:
            assert demo.stdout is not None
            told = ""
            while "the page is" not in told:
                line = demo.stdout.readline().decode()
                assert line, f"it ended after saying: {told}"
                told += line
            directory = re.search(r" in (/\S+) \.\.\.", told)
            assert directory is not None, told
            children = children_of(demo.pid)
            janitors = 0 if "--data-dir" in arguments else 1  # of what is not kept
            assert len(children) == 1 + janitors
            workers_started = [child for parent in children for child in children_of(parent)]
            assert len(workers_started) == workers
            url = re.search(r"the page is (http://[^,]+),", told)
            assert url is not None, told
            yield Demo(demo, [*children, *workers_started], Path(directory[1]), url[1])
        finally:
            demo.kill()
