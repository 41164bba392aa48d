"""Chain replication: a write walks from head to tail, and the tail answers every read.

The coordinator sends a write to the head alone. Each replica stores it and passes it to the next. The tail's copy is
the commit point, and the acknowledgement comes back along the chain. What the tail has, every replica has, so the tail
alone can answer reads.

Price: a write takes as many hops, one after the other, as there are replicas. If one replica is down, writes stop until
the cluster has replaced it; if the tail is down, reads stop too. The gain is that a write leaves the coordinator once,
however many replicas there are.

Source: van Renesse, Schneider, "Chain Replication for Supporting High Throughput and Availability", OSDI 2004. We
depart from it in two ways. Acknowledgements go back along the chain, not from the tail to the client. And several
writes of a key may be on their way at once: versions order them, and a replica that has something newer still passes an
older write on.
"""

from collections.abc import Sequence

from trikv.api import TAIL, Need, Needs, Promise, Record, ReplicaSet, Strategy, Write, hookimpl, newest


class Chain(Strategy):
    name = "chain"
    promise = Promise.CP
    protocol = "A write walks from replica to replica; once the tail has it, it is committed. The tail answers reads."
    gives_up = "A write waits for every hop in turn, and stops while any one replica is down."
    use_when = "The coordinator's network is the bottleneck, and reads must be cheap and current."
    paper = "van Renesse, Schneider: Chain Replication for Supporting High Throughput and Availability (2004)"

    def copies(self, n: int) -> int:
        return n

    def needs(self, n: int) -> Needs:
        return Needs(write=Need(n), read=TAIL)

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.head.store(write, onward=replicas.rest)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.tail.fetch(key))

    def listing(self, replicas: ReplicaSet) -> ReplicaSet:
        return replicas.tail


@hookimpl
def trikv_strategies() -> Sequence[Strategy]:
    return [Chain()]
