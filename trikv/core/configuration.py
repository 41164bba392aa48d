"""Who holds a partition, under which mode, and what may still be hidden where.

A *member* is a worker in one of its lives: a worker that lost its store comes back under another incarnation, and is
another member that never counts for what it lost.

A *configuration* is an ordered set of members, a mode, and W (`copies`): the number of copies that a committed write
is on. From W follows R = n - W + 1 (`recovery`): any R members hold every committed write between them, because the
n - R = W - 1 others are too few to hold one alone.

A partition's *history* lists the configurations that may still hold a committed write, the active one last. Of length
one it is settled: the active configuration holds everything. `document` values are plain CBOR-ready lists and dicts;
the whole cluster document (`Cluster`) goes through the config store as one value, under compare-and-set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from trikv.core.lineage import Start
from trikv.core.record import GENERATION_MAX, TERM_MAX

DOCUMENT_FORMAT: Final = 3
_FORMATS_READ: Final = (1, 2, 3)  # 1: before workers could be drained; 2: before their starts were noted


class Member(NamedTuple):
    worker: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class Configuration:
    members: tuple[Member, ...]
    mode: str
    copies: int

    def __post_init__(self) -> None:
        assert 1 <= self.copies <= len(self.members), self
        assert len({m.worker for m in self.members}) == len(self.members), self

    @property
    def recovery(self) -> int:
        """R: any this many members hold every committed write between them."""
        return len(self.members) - self.copies + 1


@dataclass(frozen=True, slots=True)
class Partition:
    """The durable state of one partition. An empty history: it was never formed.

    `forgot`: the newest generation in which tombstones were forgotten, 0 if never. What a worker holds from before it
    may have been deleted since, so that it must not be merged.
    """

    generation: int = 0
    history: tuple[Configuration, ...] = ()
    forgot: int = 0

    @property
    def active(self) -> Configuration:
        return self.history[-1]

    @property
    def settled(self) -> bool:
        return len(self.history) == 1

    def changed_to(self, configuration: Configuration, *, replaces: bool = False) -> Partition:
        """The next generation, under `configuration`. `replaces`: under the active one nothing was ever committed."""
        assert not (replaces and self.settled), self
        kept = self.history[:-1] if replaces else self.history
        return replace(self, generation=self.generation + 1, history=(*kept, configuration))

    def renewed(self) -> Partition:
        """The next generation under the same configurations, in which tombstones may be forgotten."""
        return replace(self, generation=self.generation + 1, forgot=self.generation + 1)

    def as_settled(self) -> Partition:
        """The same generation, with all that was committed in the active configuration alone."""
        return replace(self, history=self.history[-1:])


@dataclass(frozen=True, slots=True)
class WorkerEntry:
    """A worker that the master knows. Its address may change; its id and its incarnation tell who it is."""

    worker: str
    incarnation: str
    address: str
    storage: str
    max_keys: int | None = None
    draining: bool = False  # an operator wants it empty

    @property
    def member(self) -> Member:
        return Member(self.worker, self.incarnation)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster's document: everything about it that must survive, but for the records."""

    cluster: str
    mode: str
    replicas: int
    partition_count: int
    term: int = 0
    stored: bool = False  # set, durably, before the first store: from then on a newcomer is spare
    workers: dict[str, WorkerEntry] = field(default_factory=dict)
    partitions: tuple[Partition, ...] = ()
    starts: dict[Member, Start] = field(default_factory=dict)  # the last one that is known of each member

    @property
    def formed(self) -> bool:
        return bool(self.partitions and self.partitions[0].history)

    def partitions_of(self, member: Member) -> int:
        """In how many partitions may the member still hold what counts?"""
        return sum(any(member in c.members for c in partition.history) for partition in self.partitions)

    def with_partitions(self, changed: Mapping[int, Partition]) -> Cluster:
        """With these partitions in the place of those of the same index."""
        return replace(self, partitions=tuple(changed.get(index, p) for index, p in enumerate(self.partitions)))

    def with_term(self, term: int) -> Cluster:
        assert term > self.term, (term, self.term)
        return replace(self, term=term)

    def check(self) -> None:
        """
        Raises:
          ValueError: a number in it is one that no epoch can have, so that nobody could read the document.
        """
        if not 0 <= self.term <= TERM_MAX:
            raise ValueError(f"term {self.term} is beyond {TERM_MAX}")
        for index, partition in enumerate(self.partitions):
            if not 0 <= partition.generation <= GENERATION_MAX:
                raise ValueError(f"generation {partition.generation} of partition {index} is beyond {GENERATION_MAX}")

    def with_start(self, member: Member, start: Start) -> Cluster:
        """With this start of that member; those of members that can be of no use any more are forgotten."""
        of_use = {m for partition in self.partitions for c in partition.history for m in c.members}
        of_use |= {worker.member for worker in self.workers.values()}
        return replace(self, starts={m: known for m, known in self.starts.items() if m in of_use} | {member: start})

    def to_document(self) -> dict[str, Any]:
        """CBOR-ready. Configurations repeat often, so each distinct one is written once and named by its index.

        Raises:
          ValueError: as `check`.
        """
        self.check()
        table: dict[Configuration, int] = {}
        rows = [[p.generation, [table.setdefault(c, len(table)) for c in p.history], p.forgot] for p in self.partitions]
        return {
            "format": DOCUMENT_FORMAT,
            "cluster": self.cluster,
            "mode": self.mode,
            "replicas": self.replicas,
            "partition_count": self.partition_count,
            "term": self.term,
            "stored": self.stored,
            "workers": [
                [w.worker, w.incarnation, w.address, w.storage, w.max_keys, w.draining] for w in self.workers.values()
            ],
            "configurations": [[[list(m) for m in c.members], c.mode, c.copies] for c in table],
            "partitions": rows,
            "starts": [[*member, str(start)] for member, start in self.starts.items()],
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Cluster:
        """The cluster that `to_document` wrote down.

        Raises:
          ValueError: the document is of another format, or no master can serve it.
        """
        if (found := document.get("format")) not in _FORMATS_READ:
            raise ValueError(f"the cluster's document is of format {found}; this trikv reads format {DOCUMENT_FORMAT}")
        table = [
            Configuration(tuple(Member(*m) for m in members), mode, copies)
            for members, mode, copies in document["configurations"]
        ]
        cluster = cls(
            cluster=document["cluster"],
            mode=document["mode"],
            replicas=document["replicas"],
            partition_count=document["partition_count"],
            term=document["term"],
            stored=document["stored"],
            workers={row[0]: WorkerEntry(*row) for row in document["workers"]},
            partitions=tuple(
                Partition(generation, tuple(table[i] for i in history), *forgot)
                for generation, history, *forgot in document["partitions"]
            ),
            starts={Member(w, i): Start.parse(start) for w, i, start in document.get("starts", [])},
        )
        cluster.check()
        return cluster
