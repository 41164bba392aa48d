"""Synchronous primary-backup: every replica stores a write, the primary answers every read.

The primary is the head of the preference list, and its copy is the commit point. A write goes to all the others first,
at once, and to the head only when each of them has it on disk. So what a read finds at the head is already on every
replica, and no failure can take back a value that a read has returned. (If the head came first, or at the same time, a
read could see a value that never reaches the others.)

Price: a write takes two rounds. If one replica is down, writes to its keys stop until the cluster has replaced it; if
the head is down, reads stop too.

Source: Alsberg, Day, "A Principle for Resilient Sharing of Distributed Resources", ICSE 1976; Budhiraja, Marzullo,
Schneider, Toueg, "The Primary-Backup Approach", 1993, section 8.3. The order (head last) is our addition.
"""

from collections.abc import Sequence

from trikv.api import HEAD, Need, Needs, Promise, Record, ReplicaSet, Strategy, Write, hookimpl, newest


class Sync(Strategy):
    name = "sync"
    promise = Promise.CP
    protocol = "A write goes to all other replicas and then to the primary; a read asks the primary alone."
    gives_up = "A write waits for its slowest replica, and stops while any one of them is down."
    use_when = "Reads are many and must be cheap and current, and a pause in writes is better than a second-best copy."
    paper = "Alsberg, Day: A Principle for Resilient Sharing of Distributed Resources (1976)"

    def copies(self, n: int) -> int:
        return n

    def needs(self, n: int) -> Needs:
        return Needs(write=Need(n), read=HEAD)

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.rest.store(write)
        await replicas.head.store(write)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.head.fetch(key))

    def listing(self, replicas: ReplicaSet) -> ReplicaSet:
        return replicas.head


@hookimpl
def trikv_strategies() -> Sequence[Strategy]:
    return [Sync()]
