"""Chain replication with apportioned queries (CRAQ): a write walks the chain, and any replica answers a read.

In chain replication the tail answers every read, since what the tail has, every replica has. So one replica carries all
reads of a key. CRAQ lets every replica answer:

    write    as in `chain`: from the head to the tail, whose copy is the commit point.
    read     one replica is asked, another one each time. What it holds is *clean* if it is known to be committed, and
             is then returned. Otherwise it is *dirty*, and the tail is asked for what is committed.

Why reads are right. A committed write is on every replica. So a replica never holds less than the newest write that was
committed before it was asked, and no read misses a write. It may hold more: a write that is still on its way. If that
were returned, the next read could meet a replica that lacks it. Such a write is dirty, and the tail decides: the value
that the tail holds is on every replica.

Price, beside that of `chain`: a read of a key that is just being written takes two rounds, and needs the tail. A key
that was not written since the master started or the configuration changed is dirty, too, until the replicas have been
compared, which takes a second or two.

Source: Terrace, Freedman, "Object Storage on CRAQ: High-Throughput Chain Replication for Read-Mostly Workloads", USENIX
ATC 2009, section 2.3. We depart from it in three ways.

- In the paper each replica marks its versions clean when the tail's acknowledgement comes back along the chain. Here
  the coordinator knows of each write whether it is committed, and it sees every read. So `ReplicaSet.is_committed`
  needs no message.
- In the paper a replica keeps several versions of a dirty key, asks the tail for a version number, and returns the
  version with that number. Here a replica keeps the newest alone, so the tail's answer is returned itself.
- Left out are the reads with weaker consistency of section 2.4.
"""

from collections.abc import Sequence

from trikv.api import Need, Needs, Promise, Record, ReplicaSet, Strategy, Write, hookimpl, newest


class Craq(Strategy):
    name = "craq"
    promise = Promise.CP
    protocol = "A write walks from replica to replica; any of them answers a read, and while it is in doubt, the tail."
    gives_up = "A write waits for every hop in turn, and stops while any one replica is down."
    use_when = "Reads are many, and those of one key are more than one replica can answer."
    paper = "Terrace, Freedman: Object Storage on CRAQ (2009)"

    def copies(self, n: int) -> int:
        return n

    def needs(self, n: int) -> Needs:
        return Needs(write=Need(n), read=Need(1))

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.head.store(write, onward=replicas.rest)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        first, *_ = await replicas.rotate().fetch(key, need=1)
        if replicas.is_committed(key, first):
            return first.record
        return newest(await replicas.tail.fetch(key))

    def listing(self, replicas: ReplicaSet) -> ReplicaSet:
        return replicas.tail


@hookimpl
def trikv_strategies() -> Sequence[Strategy]:
    return [Craq()]
