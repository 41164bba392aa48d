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


@pytest.fixture(scope="module", params=MODES)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    directory = tmp_path_factory.mktemp(request.param)
    with LocalCluster(mode=request.param, storage="rocksdb", directory=directory) as running:
        yield running


def files_of(directory: Path) -> dict[bytes, bytes]:
    return {
        os.fsencode(path.relative_to(directory).as_posix()): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_the_standard_library_comes_back_byte_for_byte_after_kill_9(
    cluster: LocalCluster, library: Path, trikv: Trikv, tmp_path: Path
) -> None:
    sources = files_of(library)
    assert len(sources) > 500
    assert max(map(len, sources.values())) > 256 * 1024

    loaded = trikv("load", library, "--prefix", "lib/", url=cluster.url)
    assert loaded.returncode == 0, loaded.stderr.decode()
    assert loaded.stdout.decode().startswith(f"{len(sources):,} files stored")
    assert_read_back(cluster, sources)
    dumped = trikv("dump", tmp_path / "dump", "--prefix", "lib/", url=cluster.url)
    assert dumped.returncode == 0, dumped.stderr.decode()
    assert_same(files_of(tmp_path / "dump"), sources)

    cluster.kill_all()
    cluster.start()

    assert_read_back(cluster, sources)
    with cluster.client() as client:
        entries = list(client.scan(b"lib/"))
    assert [entry.key for entry in entries] == sorted(b"lib/" + name for name in sources), "each once, in byte order"
    assert_same({entry.key.removeprefix(b"lib/"): entry.value for entry in entries}, sources)


def assert_read_back(cluster: LocalCluster, sources: dict[bytes, bytes]) -> None:
    """One by one, the way of a read: every seventh, and whichever is largest."""
    with cluster.client() as client:
        for name in [*sorted(sources)[::7], max(sources, key=lambda name: len(sources[name]))]:
            found = client.get(b"lib/" + name)
            assert found is not None, name
            assert found.value == sources[name], name


def assert_same(found: dict[bytes, bytes], sources: dict[bytes, bytes]) -> None:
    assert found.keys() == sources.keys()
    assert [name for name in sources if found[name] != sources[name]] == []


def test_one_dead_worker_of_five_costs_what_the_mode_says_and_no_refused_write_is_ever_read(
    cluster: LocalCluster,
) -> None:
    with cluster.client() as client:
        state = client.cluster()
        expected = Expectations(stale_reads=state["promise"] == "AP")
        spared = state["replicas"] - state["copies"]
        keys = [b"dead-%02d" % i for i in range(60)]
        assert [error for key in keys if (error := expected.put(client, key, b"first"))] == []

        victim = cluster.workers[2]
        victim.kill()
        for key in keys[:6]:  # before anybody knows that it is dead: any outcome, as long as it is the truth
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

    cluster.kill_all()
    cluster.start()
    with cluster.client() as client:
        assert_truthful(client, expected, all_answered=True)


def assert_truthful(client: Client, expected: Expectations, *, all_answered: bool) -> None:
    reads = expected.read_back(client)
    assert reads.lies == []
    if all_answered:
        assert reads.refused == []
    assert reads.answered


def state_of(client: Client, worker_id: str) -> str:
    return str(next(worker["state"] for worker in client.cluster()["workers"] if worker["id"] == worker_id))
