"""How clusters come up: in any order, with too few workers, with a worker that lost its data."""

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Trikv
from trikv.client import TrikvError
from trikv.core.errors import Outcome
from trikv.testing.processes.cluster import LocalCluster, NodeProcess, wait_until


def test_workers_may_start_before_their_master(tmp_path: Path, free_tcp_port: int) -> None:
    cluster = LocalCluster(workers=2, replicas=2, storage="rocksdb", directory=tmp_path, master_port=free_tcp_port)
    try:
        for node in cluster.workers:
            node.start()
        cluster.master.start()
        cluster.await_up(cluster.workers)
        with cluster.client() as client:
            client.put(b"key", b"value")

        cluster.kill_all()
        for node in reversed(cluster.workers):
            node.start()
        cluster.master.start()
        with cluster.client() as client:
            found = wait_until(lambda: client.get(b"key"), what="the key can be read")
        assert found is not None
        assert found.value == b"value"
    finally:
        cluster.stop()


def test_a_master_that_starts_beside_its_workers_answers_late_rather_than_wrongly(tmp_path: Path) -> None:
    with LocalCluster(workers=3, storage="rocksdb", directory=tmp_path, timeout_s=30.0) as cluster:
        with cluster.client() as client:
            client.put(b"key", b"value")
        cluster.kill_all()
        for node in (cluster.master, *cluster.workers):
            node.spawn()
        cluster.master.await_listening()
        with cluster.client(patience_s=60.0) as client:  # it cannot have heard of a majority yet
            found = client.get(b"key")
        assert found is not None
        assert found.value == b"value"
        for node in cluster.workers:
            node.await_listening()


def test_a_master_enlists_the_workers_that_its_command_line_names(tmp_path: Path) -> None:
    def worker_command(node: NodeProcess) -> list[str]:
        return ["worker", str(node.port), "--master", "none", "--storage", "memory"]

    def master_command(node: NodeProcess) -> list[str]:
        data = ["--data-dir", str(tmp_path / "master"), "--http", f"127.0.0.1:{node.http_port}", "--replicas", "2"]
        return ["master", *data, str(node.port), *(worker.address for worker in cluster.workers)]

    cluster = LocalCluster(workers=0, directory=tmp_path)
    cluster.masters = [NodeProcess("master", master_command, log=tmp_path / "master.log")]
    cluster.workers = [NodeProcess(f"worker-{i}", worker_command, log=tmp_path / f"worker-{i}.log") for i in range(2)]
    try:
        for node in cluster.workers:
            node.start()
        cluster.start()
        with cluster.client() as client:
            client.put(b"key", b"value")
    finally:
        cluster.stop()


def test_too_few_workers_refuse_writes_and_say_how_many_are_missing(trikv: Trikv) -> None:
    cluster = LocalCluster(workers=2, replicas=2)
    late = cluster.workers[1]
    try:
        cluster.master.start()
        cluster.workers[0].start()
        with cluster.client() as client:
            wait_until(lambda: (client.cluster()["forming"] or {}).get("missing") == 1, what="one worker is missing")
            with pytest.raises(TrikvError) as refusal:
                client.put(b"key", b"too early")
            assert refusal.value.kind.code == "forming"
            assert refusal.value.kind.outcome is Outcome.REFUSED
            assert "1 more" in refusal.value.detail
            shown = trikv("status", url=cluster.url)
            assert shown.returncode == 0
            assert "forming\t" in shown.stdout.decode()
            assert trikv("put", "key", "too early", url=cluster.url).returncode == 4

            late.start()
            cluster.await_up(cluster.workers)
            assert client.get(b"key") is None, "a refused write is never read"
            client.put(b"key", b"value")
    finally:
        cluster.stop()


def test_a_memory_worker_that_restarts_is_another_member_and_is_filled_again(trikv: Trikv) -> None:
    with LocalCluster(workers=3, timeout_s=20.0) as cluster, cluster.client() as client:
        client.put(b"key", b"value")
        victim = cluster.workers[0]

        def seen() -> dict[str, Any]:
            return next(w for w in client.cluster()["workers"] if w["id"] == victim.id)

        former = seen()["incarnation"]
        victim.kill()
        victim.start()
        wait_until(lambda: seen()["incarnation"] != former, what="the worker is known as another member")
        wait_until(
            lambda: seen()["place"] == "member" and not client.cluster()["unsettled"], what="it has a share again"
        )
        line = next(line for line in trikv("status", url=cluster.url).stdout.decode().splitlines() if victim.id in line)
        assert "\tup\tmember\t" in line
        told = trikv("events", "--no-follow", url=cluster.url).stdout.decode()
        assert told.count(f"worker {victim.id} enlisted") == 2
        assert told.count("without the data that it had") == 1
        cluster.workers[1].kill()
        found = client.get(b"key")  # of the two that are left, one came back empty
        assert found is not None
        assert found.value == b"value"


def test_a_worker_tells_its_labels(trikv: Trikv) -> None:
    with LocalCluster(workers=1, replicas=1, labels=["zone=a", "disk=ssd"]) as cluster:
        assert b"disk=ssd, zone=a" in trikv("status", url=cluster.url).stdout
    wrong = trikv("worker", "0", "--label", "zone=a", "--label", "Disk=ssd")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith(b"error: --label: a label's name is a small letter")
