"""What operators ask for and must not get: one clear line, the right exit code, and nothing is lost."""

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.e2e.conftest import CLI_DEADLINE_S, Trikv
from trikv.client import Client, TrikvError
from trikv.core.errors import Outcome
from trikv.testing.processes.cluster import LocalCluster, NodeProcess, wait_until

KEYS = [b"key-%02d" % number for number in range(30)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three workers, three replicas. No worker is evicted while a test lasts, and each test leaves all of it up."""
    directory = tmp_path_factory.mktemp("mine")
    running = LocalCluster(workers=3, storage="rocksdb", directory=directory, down_after_s=600.0, timeout_s=20.0)
    with running, running.client() as client:
        for key in KEYS:
            client.put(key, b"value of " + key)
        yield running


def assert_nothing_lost(client: Client) -> None:
    assert [entry.value for entry in client.scan()] == [b"value of " + key for key in KEYS]


def assert_refused(ended: "CompletedProcess[bytes]", code: int, *words: str) -> None:
    lines = ended.stderr.decode().splitlines()
    assert (ended.returncode, ended.stdout, len(lines)) == (code, b"", 1), lines
    for word in words:
        assert word in lines[0]


def test_the_last_replicas_are_not_drained(cluster: LocalCluster, trikv: Trikv) -> None:
    node = cluster.workers[0]
    for words in (("drain", node.id), ("drain", node.id, "--dry-run")):
        assert_refused(trikv("workers", *words, url=cluster.url), 4, node.id, "3 replicas", "trikv worker PORT")
    node.kill()
    assert_refused(trikv("workers", "remove", node.id, url=cluster.url), 4, f"drain {node.id}")
    node.start()
    cluster.await_up([node])
    with cluster.client() as client:
        assert {worker["place"] for worker in client.cluster()["workers"]} == {"member"}
        assert_nothing_lost(client)


def test_there_is_one_switch_at_a_time(cluster: LocalCluster, trikv: Trikv) -> None:
    paused = cluster.workers[2]
    paused.pause()  # sync writes to all three, so the switch has to wait for it
    with cluster.client() as client, ThreadPoolExecutor() as pool:
        try:
            wait_until(lambda: "up" not in states_of(client, paused), what="it is suspect")
            asked = [pool.submit(client.set_mode, "sync")]
            wait_until(lambda: client.mode()["progress"]["operation"], what="the switch has begun")
            assert_refused(trikv("mode", "chain", url=cluster.url), 4, "mode sync", "under way")
            assert client.mode()["mode"] == "sync"
            asked.append(pool.submit(client.set_mode, "sync"))  # the same again is the same switch
        finally:
            paused.resume()
        assert [each.result(CLI_DEADLINE_S)["mode"] for each in asked] == ["sync", "sync"]
        assert client.mode()["progress"]["operation"] is None
        assert_nothing_lost(client)


def states_of(client: Client, node: NodeProcess) -> list[str]:
    return [worker["state"] for worker in client.cluster()["workers"] if worker["id"] == node.id]


def test_a_worker_of_another_cluster_is_told_what_to_do(cluster: LocalCluster, tmp_path: Path) -> None:
    with LocalCluster(workers=1, replicas=1, storage="rocksdb", directory=tmp_path / "theirs") as theirs:
        with theirs.client() as client:
            client.put(b"theirs", b"as it was")
        stranger = theirs.workers[0]
        with cluster.client() as client:
            with pytest.raises(TrikvError, match=r"belongs to cluster .* start it with another --data-dir") as refusal:
                client.enlist(stranger.address)
            assert refusal.value.kind.outcome is Outcome.REFUSED
            assert stranger.id not in {worker["id"] for worker in client.cluster()["workers"]}
        with theirs.client() as client:
            found = client.get(b"theirs")
            assert found is not None
            assert found.value == b"as it was"
        stranger.stop()

        lost = worker_of(cluster, theirs.data_dir(stranger), tmp_path / "stranger.log")
        try:  # started by hand, with the wrong --master: it says why nothing comes of it
            lost.start()
            wait_until(lambda: re.search(r"belongs to cluster .* --data-dir", lost.log.read_text()), what="it is told")
        finally:
            lost.stop()
    with cluster.client() as client:
        assert len(client.cluster()["workers"]) == 3
        assert_nothing_lost(client)


def test_a_worker_with_a_copied_data_directory_is_refused(cluster: LocalCluster, tmp_path: Path) -> None:
    node = cluster.workers[1]
    node.stop()
    shutil.copytree(cluster.data_dir(node), tmp_path / "copy")
    node.start()
    cluster.await_up([node])
    twin = worker_of(cluster, tmp_path / "copy", tmp_path / "twin.log")
    try:
        twin.start()
        assert twin.id == node.id
        with cluster.client() as client:
            wait_until(lambda: "a copy of its data directory" in twin.log.read_text(), what="the second is told")
            assert f"worker {node.id} already serves at {node.address}" in twin.log.read_text()
            with pytest.raises(TrikvError, match="give it one of its own"):
                client.enlist(twin.address)
            assert [w["address"] for w in client.cluster()["workers"] if w["id"] == node.id] == [node.address]
            assert_nothing_lost(client)
            client.delete(KEYS[0])
            client.put(KEYS[0], b"value of " + KEYS[0])
            assert_nothing_lost(client)
    finally:
        twin.stop()


def worker_of(cluster: LocalCluster, data_dir: Path, log: Path) -> NodeProcess:
    """One that is started by hand, to enlist with this cluster's master."""
    arguments = ["worker", "0", "--master", cluster.master.address, "--data-dir", str(data_dir)]
    return NodeProcess("by hand", lambda node: arguments, log=log)
