"""Quorum replication: a majority stores a write, a majority answers a read.

A write goes to every replica at once, and is committed when a majority has it on disk. The slowest minority never
delays it, and a minority may be down. A read asks a majority. Any two majorities share a replica, so a read always
meets the newest committed write. If the answers differ, the newest is put on a majority before it is returned
(`agree`). Otherwise the next read could meet two replicas that lack it, and return an older value.

Price: a read costs a majority of the replicas, where the other modes ask one. A minority of the cluster alone can
neither read nor write.

Source: Attiya, Bar-Noy, Dolev, "Sharing Memory Robustly in Message-Passing Systems", J. ACM 42(1), 1995, section 3.
Versions come from one coordinator here, so a write needs no first round to find the newest one.
"""

from collections.abc import Sequence

from trikv.api import Need, Needs, Promise, Record, ReplicaSet, Strategy, Write, hookimpl


class Quorum(Strategy):
    name = "quorum"
    promise = Promise.CP
    protocol = "A write is committed once a majority has it; a read asks a majority, and mends what differs first."
    gives_up = "Every read costs a majority of the replicas, and a minority of them alone serves nothing."
    use_when = "You want linearizable data that stays available while a minority of the replicas is down."
    paper = "Attiya, Bar-Noy, Dolev: Sharing Memory Robustly in Message-Passing Systems (1995)"

    def copies(self, n: int) -> int:
        return n // 2 + 1

    def needs(self, n: int) -> Needs:
        return Needs(write=Need(n // 2 + 1), read=Need(n // 2 + 1))

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=replicas.majority)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        answers = await replicas.fetch(key, need=replicas.majority)
        return await replicas.agree(key, answers)


@hookimpl
def trikv_strategies() -> Sequence[Strategy]:
    return [Quorum()]
