"""A cluster of real processes grows under load, and the workers that it started end and start with its master."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.processes_of import children_of, is_alive
from trikv.client import Client, TrikvError
from trikv.testing.processes.cluster import LocalCluster, wait_until

PATIENCE_S = 90.0
OPTIONS = ("--autoscale", "3..4", "--max-load", "40")


@contextmanager
def load(cluster: LocalCluster) -> Iterator[list[str]]:
    """Three clients that put and get as fast as they can; yields what failed."""
    failures: list[str] = []
    ended = threading.Event()

    def ask(number: int) -> None:
        with cluster.client() as client:
            count = 0
            while not ended.is_set():
                key = b"%d-%d" % (number, count % 50)
                try:
                    client.put(key, b"v")
                    if client.get(key) is None:
                        failures.append(f"{key!r} is lost")
                except TrikvError as error:
                    failures.append(f"{error.kind.code}: {error.detail}")
                count += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def scaling_of(client: Client) -> dict[str, Any]:
    scaling: dict[str, Any] = client.cluster()["autoscale"]
    return scaling


def members_of(client: Client) -> int:
    return sum(worker["place"] == "member" and worker["state"] == "up" for worker in client.cluster()["workers"])


def test_it_grows_under_load_and_its_workers_end_and_start_with_the_master(tmp_path: Path) -> None:
    with LocalCluster(workers=3, directory=tmp_path, timeout_s=20.0, master_options=OPTIONS) as cluster:
        with cluster.client() as client:
            with load(cluster) as failures:
                wait_until(lambda: members_of(client) == 4, what="there are four members", deadline_s=PATIENCE_S)
            assert failures == []
            own = scaling_of(client)["own"]
            assert len(own) == 1

            pid = cluster.master.pid
            assert pid is not None
            children = children_of(pid)
            assert len(children) == 1
            cluster.master.kill()
            wait_until(lambda: not any(map(is_alive, children)), what="its workers end with it")
            cluster.master.start()
            wait_until(
                lambda: len(scaling_of(client)["own"]) == 1, what="they are started again", deadline_s=PATIENCE_S
            )

            assert client.get(b"0-0") is not None
