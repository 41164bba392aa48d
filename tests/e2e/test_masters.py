"""Three masters, an etcd of three members and real workers: what clients see when a master or etcd fails.

Each test does one thing to the cluster while clients ask all three masters, and judges what they were answered. The
tests run in the order of the file, on one cluster.
"""

from __future__ import annotations

import base64
import random
import shutil
from collections.abc import Iterator

import pytest

from trikv.client import Client
from trikv.core.errors import Outcome, TrikvError
from trikv.testing.judge.history import Operation
from trikv.testing.judge.switched import judge
from trikv.testing.processes.clients import Load
from trikv.testing.processes.cluster import LocalCluster, wait_until
from trikv.testing.processes.etcd import etcd_missing
from trikv.testing.processes.nemesis import Nemesis

SEED = 14
COMMITS = 20  # so many more show that the cluster writes

pytestmark = pytest.mark.skipif(etcd_missing() is not None, reason=str(etcd_missing()))


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(mode="quorum", workers=3, masters=3, etcd_members=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def nemesis(cluster: LocalCluster) -> Iterator[Nemesis]:
    """With one load for all tests, which is judged at the end."""
    load = Load(cluster.masters, seed=SEED, clients=6, rate=60.0, keys=40)
    with load:
        yield Nemesis(cluster, load, random.Random(SEED))
        load.stop()
        assert not load.read_all(), "every key can be read once all is whole again"
    verdict = judge(load.history, True, [])
    assert [str(finding) for finding in verdict.findings] == []
    assert verdict.undecided == []


def await_commits(nemesis: Nemesis) -> None:
    seen = nemesis.load.commits
    wait_until(lambda: nemesis.load.commits >= seen + COMMITS, what=f"{COMMITS} writes are committed")


def failed(nemesis: Nemesis) -> list[Operation]:
    """The operations that have ended uncommitted, other than for their precondition."""
    ended = [op for op in nemesis.load.history if op.returned_s is not None or op.code is not None]
    return [op for op in ended if op.outcome is not Outcome.COMMITTED and op.code != "precondition_failed"]


def leader_of(nemesis: Nemesis) -> str:
    leader = wait_until(nemesis.cluster.leader, what="a master leads")
    assert leader is not None
    return leader.name


def test_all_masters_answer_alike_and_name_the_same_leader(cluster: LocalCluster) -> None:
    leader = wait_until(cluster.leader, what="a master leads")
    assert leader is not None
    for number, url in enumerate(cluster.url.split(",")):
        with Client(url) as client:
            client.put(b"key", b"%d" % number)
            found = client.get(b"key")
            assert found is not None
            assert found.value == b"%d" % number
            masters = client.cluster()["masters"]
            assert masters["leader"]["address"] == leader.address
            assert sorted(m["address"] for m in masters["masters"]) == sorted(m.address for m in cluster.masters)
            assert [m["role"] for m in masters["masters"]].count("leader") == 1


def test_a_leader_that_is_killed_is_followed(nemesis: Nemesis) -> None:
    await_commits(nemesis)
    former = leader_of(nemesis)
    nemesis.kill_master()
    await_commits(nemesis)
    assert leader_of(nemesis) != former


def test_a_leader_that_is_stopped_hands_over(nemesis: Nemesis) -> None:
    former = leader_of(nemesis)
    nemesis.hand_over()
    await_commits(nemesis)
    assert leader_of(nemesis) != former


def test_a_leader_that_was_paused_wakes_up_deposed_and_lies_to_nobody(nemesis: Nemesis) -> None:
    former = wait_until(nemesis.cluster.leader, what="a master leads")
    assert former is not None
    former.pause()
    try:
        others = [url for url in nemesis.cluster.url.split(",") if not url.endswith(f":{former.http_port}")]
        with Client(others[0]) as client:
            wait_until(
                lambda: client.cluster()["masters"]["leader"]["address"] != former.address, what="another one leads"
            )
            client.put(b"while-it-was-paused", b"v")
    finally:
        former.resume()
    with Client(f"http://127.0.0.1:{former.http_port}") as client:
        found = wait_until(lambda: client.get(b"while-it-was-paused"), what="it knows its successor")
    assert found is not None
    assert found.value == b"v"
    nemesis.await_whole()
    await_commits(nemesis)


def test_a_member_of_etcd_that_is_killed_stops_nothing(nemesis: Nemesis) -> None:
    nemesis.kill_etcd_member(for_s=1.0)
    await_commits(nemesis)


def test_without_etcd_quorum_goes_on(nemesis: Nemesis) -> None:
    """Nothing fails while etcd is away. When it is back, a standby may be quicker than the leader to take the lead."""
    etcd = nemesis.cluster.etcd
    assert etcd is not None
    leader_of(nemesis)
    await_commits(nemesis)
    before = len(failed(nemesis))
    etcd.pause()
    try:
        with nemesis.cluster.client() as client:
            wait_until(lambda: client.cluster()["masters"]["config_store"]["error"], what="etcd is missed")
        await_commits(nemesis)
        assert failed(nemesis)[before:] == []
    finally:
        etcd.resume()
    etcd.await_healthy()
    nemesis.await_whole()
    await_commits(nemesis)


@pytest.mark.parametrize("mode", ["sync", "chain"])
def test_without_etcd_a_mode_that_reads_one_replica_refuses_reads_and_goes_on_writing(
    nemesis: Nemesis, mode: str
) -> None:
    cluster = nemesis.cluster
    assert cluster.etcd is not None
    with cluster.client() as client:
        client.set_mode(mode)
        client.put(b"key", b"before")
        cluster.etcd.pause()
        try:

            def is_refused() -> bool:
                try:
                    client.get(b"key")
                except TrikvError as error:
                    return error.kind.outcome is Outcome.REFUSED
                return False

            wait_until(is_refused, what="reads are refused")
            client.put(b"key", b"meanwhile")
            with pytest.raises(TrikvError, match="the cluster's document cannot be changed") as refused:
                client.set_mode("quorum")
            assert refused.value.kind.code == "no_store"
            assert client.cluster()["partitions"]["readable"] == 0
        finally:
            cluster.etcd.resume()
        cluster.etcd.await_healthy()
        found = wait_until(lambda: client.get(b"key"), what="reads are answered again")
        assert found is not None
        assert found.value == b"meanwhile"


def test_masters_whose_document_is_gone_found_no_other_cluster() -> None:
    with LocalCluster(mode="quorum", workers=1, replicas=1, masters=2, etcd_members=1) as cluster:
        assert cluster.etcd is not None
        [etcd] = cluster.etcd.members
        with cluster.client() as client:
            name = client.cluster()["cluster"]
        etcd.kill()
        shutil.rmtree(etcd.directory / etcd.name)
        etcd.start()
        cluster.etcd.await_healthy()
        says = f"the document of cluster {name} is gone"
        logs = [master.log for master in cluster.masters]
        wait_until(lambda: all(says in log.read_text() for log in logs), what="both masters miss it")
        everything = etcd.call("/v3/kv/range", {"key": "AA==", "range_end": "AA=="})["kvs"]
        keys = [base64.b64decode(found["key"]) for found in everything]
        assert any(b"/masters/" in key for key in keys)
        assert not any(key.endswith(b"/document") for key in keys)
