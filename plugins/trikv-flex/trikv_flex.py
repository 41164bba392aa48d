"""Flexible quorums: a write waits for w of n replicas, a read asks r of them, and r + w > n.

Majorities are one choice among many. A read only has to meet every committed write: the r replicas that it asks and the
w replicas that store a write share one. So w may be small, and writes cheap, if r is large, and the reverse. Each
choice is a mode of its own:

    flex       w is half of n, rounded up; r just meets it. With n odd both are the majority. With n even a write needs
               one replica fewer than a majority: 2 of 4, where `quorum` waits for 3.
    flex-w1    w = 1, r = n: the first copy on disk commits a write.
    flex-r1    w = n, r = 1.
    flex-rRwW  R and W of your own, named in TRIKV_FLEX: `TRIKV_FLEX="r4w2 r3w3"` offers flex-r4w2 and flex-r3w3.

If there are fewer than W replicas, a write waits for all of them. A read asks more than R if R would not meet W.

Why the parameters are in the name. A cluster keeps the name of its mode, and finds its data by the mode's w. If the
parameters came from settings, another setting at the next start would make it look in too few places. So TRIKV_FLEX,
which is read once, when the module is imported, only adds modes. A master that is started again without it says which
mode is missing.

Why reads are right. The r replicas that a read asks hold every committed write between them. So the newest of their
answers is no older than any write that had been committed when the read began. It may belong to a write that is still
under way, or that never ended. So `agree` puts it on w replicas before it is returned, and from then on every other
read meets it, whichever r replicas that read asks. This holds for r below w and above it; only the price differs.

Price, in messages between the coordinator and the replicas, each with its answer:

    write    n sent, w awaited.
    read     r >= w: r, in one round, if w of them hold the newest record, as usual. If fewer do: a second
             round, to those that are missing.
             r < w: r, and always the second round to w - r more, since r answers cannot show that w hold the record.
             It costs no disk where they do. So r < w saves messages for absent keys alone: with many reads choose
             r >= w, or, for w = n, the mode `sync`, which reads one replica because it writes that one last.
    down     writes go on while w replicas are up, reads while max(r, w) are.
    lost     no committed write is lost while at most w - 1 of its replicas lose their disks. With w = 1 that is none.

What trikv does with w. It counts n - w + 1 of a key's replicas as enough to find everything that was committed there,
after a restart of the coordinator and wherever else it has to search. That is the least r that meets w. In the terms of
Flexible Paxos, it is the quorum of the first phase, and w that of the second. A read may ask more; mending needs no
more.

Sources: Gifford, "Weighted Voting for Replicated Data", SOSP 1979, section 2 (r + w > N; here each replica has one
vote); Howard, Malkhi, Spiegelman, "Flexible Paxos: Quorum Intersection Revisited", OPODIS 2016, sections 3 and 5;
Attiya, Bar-Noy, Dolev, "Sharing Memory Robustly in Message-Passing Systems", J. ACM 42(1), 1995, for the second round
of a read. Gifford asks for 2w > n as well, to tell versions apart; here one coordinator gives them. Where several
masters share a cluster, the next one first has n - w + 1 replicas of each key refuse the one before.
"""

import os
import re
from collections.abc import Sequence

from trikv.api import Need, Needs, Promise, Record, ReplicaSet, Strategy, Write, hookimpl

VARIABLE = "TRIKV_FLEX"


class Flex(Strategy):
    """The balanced choice, and the base of the others: they give w in `copies`, and r in `asked` if it is larger."""

    name = "flex"
    promise = Promise.CP
    protocol = "A write is committed once w of n replicas have it; a read asks r, with r + w > n, and mends first."
    gives_up = "Reads need more replicas where writes need fewer; with an even number of them, one more."
    use_when = "The number of replicas is even: writes then need one replica fewer than a majority."
    paper = "Howard, Malkhi, Spiegelman: Flexible Paxos (2016); Gifford: Weighted Voting for Replicated Data (1979)"

    def copies(self, n: int) -> int:
        return (n + 1) // 2

    def asked(self, n: int) -> int:
        """r: how many of `n` replicas a read asks."""
        return n - self.copies(n) + 1

    def needs(self, n: int) -> Needs:
        w = self.copies(n)
        return Needs(write=Need(w), read=Need(max(self.asked(n), w)))  # what a read returns is put on w

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=self.copies(len(replicas)))

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        answers = await replicas.fetch(key, need=self.asked(len(replicas)))
        return await replicas.agree(key, answers)


class FlexW1(Flex):
    name = "flex-w1"
    gives_up = "A read asks every replica and stops while one is down; one lost disk may take committed writes with it."
    use_when = "Writes are many and must never wait for a second disk, reads are few, and disks are dependable."

    def copies(self, n: int) -> int:
        return 1


class FlexR1(Flex):
    name = "flex-r1"
    gives_up = "A write waits for every replica, and a read, which asks one, then makes sure of all the others."
    use_when = "You want a committed write to outlive all disks but one; where reads are many, sync has them cheaper."

    def copies(self, n: int) -> int:
        return n


def flex(r: int, w: int) -> Flex:
    """The mode flex-rRwW: a read asks at least `r` replicas, and a write waits for `w` (all, if there are fewer).

    Raises:
      ValueError: one of them is 0.
    """
    if r < 1 or w < 1:
        raise ValueError(f"r{r}w{w}: both are at least 1")

    class Chosen(Flex):
        name = f"flex-r{r}w{w}"
        gives_up = f"A write waits for {w} replicas; a read asks {r}, or as many as it takes to meet every write."
        use_when = f"You chose it: {VARIABLE} names r{r}w{w}."

        def copies(self, n: int) -> int:
            return min(w, n)

        def asked(self, n: int) -> int:
            return max(min(r, n), super().asked(n))

    return Chosen()


def chosen(words: str) -> list[Flex]:
    """The modes of a list such as `r4w2 r3w3`, each once.

    Raises:
      ValueError: a word does not have that form.
    """
    strategies = {}
    for word in words.replace(",", " ").split():
        numbers = re.fullmatch(r"r(\d{1,2})w(\d{1,2})", word)
        if numbers is None:
            raise ValueError(f"{VARIABLE}: {word!r} should look like r4w2: a read asks 4, a write waits for 2")
        strategy = flex(int(numbers[1]), int(numbers[2]))
        strategies[strategy.name] = strategy
    return list(strategies.values())


_STRATEGIES = [Flex(), FlexW1(), FlexR1(), *chosen(os.environ.get(VARIABLE, ""))]


@hookimpl
def trikv_strategies() -> Sequence[Strategy]:
    return _STRATEGIES
