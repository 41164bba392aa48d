"""Asynchronous replication: one replica stores a write, and the others follow later.

The primary, the head of the preference list, acknowledges a write. If it is down or late, the next replica that answers
does. The write is then sent to the others, and the client does not wait for them. A read asks the primary, or the next
replica that answers. So a key can be read and written as long as one of its replicas is up. Anti-entropy later brings
replicas together that missed something: the newest version wins everywhere.

Price: an acknowledged write may be on one disk only, and is lost with it. A read may return an older value, above all
after a failure. And since a read may be out of date, there is no compare-and-set.

Source: Terry et al., "Managing Update Conflicts in Bayou, a Weakly Connected Replicated Storage System", SOSP 1995, for
convergence by version; Vogels, "Eventually Consistent", CACM 52(1), 2009, for what a client can then expect.
"""

from collections.abc import Sequence

from trikv.api import Need, Needs, Promise, Record, ReplicaSet, Strategy, Write, hookimpl, newest


class Async(Strategy):
    name = "async"
    promise = Promise.AP
    compare_and_set = False
    protocol = "A write is acknowledged by the first replica that has it, the others follow; a read asks one replica."
    gives_up = "An acknowledged write can be lost with the one disk that holds it, and a read can be out of date."
    use_when = "An answer matters more than the newest one: caches, counters of likes, sensor readings."
    paper = "Vogels: Eventually Consistent (2009)"

    def copies(self, n: int) -> int:
        return 1

    def needs(self, n: int) -> Needs:
        return Needs(write=Need(1), read=Need(1))

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=1, in_order=True)
        replicas.store_later(write)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return newest(await replicas.fetch(key, need=1))

    def listing(self, replicas: ReplicaSet) -> ReplicaSet:
        return replicas.head


@hookimpl
def trikv_strategies() -> Sequence[Strategy]:
    return [Async()]
