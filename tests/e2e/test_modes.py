"""Each mode on real disks: what it promises with all workers up, with one dead, and after everything was killed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Trikv
from trikv.client import Client
from trikv.core.errors import Outcome
from trikv.testing.judge.expectations import Expectations
from trikv.testing.processes.cluster import LocalCluster, wait_until

MODES = ("sync", "async", "chain", "quorum")
WORKERS = 4  # one more than replicas, so that some partitions need a worker and some do not


@pytest.fixture(params=MODES)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(
        mode=request.param, workers=WORKERS, storage="rocksdb", directory=tmp_path, timeout_s=20.0
    ) as running:
        yield running


def files_of(directory: Path) -> dict[bytes, bytes]:
    return {
        os.fsencode(path.relative_to(directory).as_posix()): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_a_mode_keeps_its_promise_with_one_worker_dead_and_after_kill_9(
    cluster: LocalCluster, library: Path, trikv: Trikv, tmp_path: Path
) -> None:
    sources = load_library(cluster, library, trikv, tmp_path / "dump")
    expected = lose_one_worker(cluster)

    cluster.kill_all()
    cluster.start()

    with cluster.client() as client:
        assert_truthful(client, expected, all_answered=True)
        entries = list(client.scan(b"lib/"))
    assert [entry.key for entry in entries] == sorted(b"lib/" + name for name in sources), "each once, in byte order"
    assert_same({entry.key.removeprefix(b"lib/"): entry.value for entry in entries}, sources)
    assert_read_back(cluster, sources)


def load_library(cluster: LocalCluster, library: Path, trikv: Trikv, dump: Path) -> dict[bytes, bytes]:
    """Load a tree of files, and see that it comes back byte for byte: read one by one, and dumped."""
    sources = files_of(library)
    assert len(sources) > 80
    assert max(map(len, sources.values())) > 256 * 1024

    loaded = trikv("load", library, "--prefix", "lib/", url=cluster.url)
    assert loaded.returncode == 0, loaded.stderr.decode()
    assert loaded.stdout.decode().startswith(f"{len(sources):,} files stored")
    assert_read_back(cluster, sources)
    dumped = trikv("dump", dump, "--prefix", "lib/", url=cluster.url)
    assert dumped.returncode == 0, dumped.stderr.decode()
    assert_same(files_of(dump), sources)
    return sources


def assert_read_back(cluster: LocalCluster, sources: dict[bytes, bytes]) -> None:
    """One by one, the way of a read: every third, and the largest."""
    with cluster.client() as client:
        for name in [*sorted(sources)[::3], max(sources, key=lambda name: len(sources[name]))]:
            found = client.get(b"lib/" + name)
            assert found is not None, name
            assert found.value == sources[name], name


def assert_same(found: dict[bytes, bytes], sources: dict[bytes, bytes]) -> None:
    assert found.keys() == sources.keys()
    assert [name for name in sources if found[name] != sources[name]] == []


def lose_one_worker(cluster: LocalCluster) -> Expectations:
    """One dead worker costs what the mode says, and no refused write is ever read. The worker is back at the end."""
    with cluster.client() as client:
        state = client.cluster()
        expected = Expectations(stale_reads=state["promise"] == "AP")
        spared = state["replicas"] - state["copies"]
        keys = [b"dead-%02d" % i for i in range(40)]
        assert [error for key in keys if (error := expected.put(client, key, b"first"))] == []

        victim = cluster.workers[2]
        victim.kill()
        for key in keys[:6]:  # before the master knows that it is dead: any outcome, as long as it is the truth
            expected.put(client, key, b"while nobody knows")
        wait_until(lambda: state_of(client, victim.id) == "down", what="the worker is known to be down")

        errors = [error for key in keys if (error := expected.put(client, key, b"second"))]
        if spared:
            assert errors == []
        else:
            assert {(error.kind.code, error.kind.outcome) for error in errors} == {("unavailable", Outcome.REFUSED)}
            assert 0 < len(errors) < len(keys), "some partitions need the dead worker, and some do not"
        assert_truthful(client, expected, all_answered=bool(spared))

        victim.start()
        cluster.await_up([victim])
        assert_truthful(client, expected, all_answered=True)
    return expected


def assert_truthful(client: Client, expected: Expectations, *, all_answered: bool) -> None:
    """No read is a lie. `all_answered`: every key can be read soon, since a key in doubt may need a repair first."""
    reads = expected.read_back(client)
    assert reads.lies == []
    assert reads.answered
    if all_answered:
        wait_until(lambda: not expected.read_back(client).refused, what="all keys can be read")
        assert expected.read_back(client).lies == []


def state_of(client: Client, worker_id: str) -> str:
    return str(next(worker["state"] for worker in client.cluster()["workers"] if worker["id"] == worker_id))
