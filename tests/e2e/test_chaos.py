"""A cluster of real processes loses workers, is given others, switches its mode and loses its master, and heals.

Clients use it all the while. What they were told is judged at the end.
"""

import random
from collections import Counter

from trikv.core.errors import Outcome
from trikv.testing.judge.switched import judge
from trikv.testing.processes.clients import Load
from trikv.testing.processes.cluster import LocalCluster, wait_until
from trikv.testing.processes.nemesis import Nemesis

DOWN_AFTER_S = 2.0
SEED = 7


def await_writes(load: Load, cluster: LocalCluster) -> None:
    """Return when each partition can be written, and was."""
    with cluster.client() as client:

        def is_writable() -> bool:
            partitions = client.cluster()["partitions"]
            return bool(partitions["writable"] == partitions["total"])

        wait_until(is_writable, what="every partition can be written")
    commits = load.commits
    wait_until(lambda: load.commits >= commits + 20, what="writes are committed")


def test_the_cluster_heals_whatever_is_done_to_it() -> None:
    print(f"seed {SEED}")
    cluster = LocalCluster(mode="sync", workers=4, storage="rocksdb", down_after_s=DOWN_AFTER_S, proxied=True)
    load = Load(cluster.masters, seed=SEED, rate=40.0, keys=60)
    nemesis = Nemesis(cluster, load, random.Random(SEED), say=print)
    with cluster, load, cluster.client() as client:
        victim = cluster.workers[1]
        victim.kill()
        nemesis.await_whole()
        state = client.cluster()
        copies = {worker["id"]: worker["copies"] for worker in state["workers"]}
        assert copies.pop(victim.id) == 0
        assert all(count == state["partitions"]["total"] for count in copies.values()), "three replicas on three"
        await_writes(load, cluster)  # in a mode of which one silent replica stops every write

        victim.start()
        nemesis.await_whole()
        assert next(w["copies"] for w in client.cluster()["workers"] if w["id"] == victim.id) > 0

        certificate = nemesis.switch("chain").certificate
        assert certificate is not None
        assert (certificate["from"], certificate["mode"], certificate["partitions"]) == ("sync", "chain", 1024)
        nemesis.join()
        nemesis.switch("async", meanwhile=nemesis.kill_master)
        nemesis.cut(for_s=0.5)
        nemesis.drain()
        assert len(client.cluster()["workers"]) == 4
        nemesis.switch("quorum")
        nemesis.kill(for_s=0.0, wiped=True)
        await_writes(load, cluster)
        load.stop()
        assert load.read_all() == []
        nemesis.await_alike()

    verdict = judge(load.history, True, [switched.switch for switched in nemesis.switches])
    outcomes = Counter(operation.outcome for operation in load.history)
    print(outcomes, Counter(operation.code for operation in load.history))
    assert [str(finding) for finding in verdict.findings] == []
    assert verdict.undecided == []
    assert len(verdict.periods) == 2
    assert outcomes[Outcome.COMMITTED] > 300
