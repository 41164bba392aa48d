"""Which members hold a partition, under which mode, and where committed writes may still be.

A *member* is a worker in one of its lives. A worker that lost its store comes back under another incarnation. It is
then another member, and never counts for what it lost.

A *configuration* is an ordered set of members, a mode, and W (`copies`): a committed write is on at least W of the
members. From W follows R = n - W + 1 (`recovery`): any R members hold every committed write between them, because the
other n - R = W - 1 members are too few to hold one alone.

A partition's *history* lists the configurations that may still hold a committed write, the active one last. A history
of length one is settled: the active configuration holds everything.

The whole cluster document (`Cluster`) goes through the config store as one value, under compare-and-set. `to_document`
writes it as lists and dicts that CBOR can carry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from trikv.core.labels import ZONE, Labels
from trikv.core.lineage import Start
from trikv.core.record import GENERATION_MAX, TERM_MAX

DOCUMENT_FORMAT: Final = 4
WORKERS_MAX: Final = 1_000  # each is in every document that is written, and has a link and a heartbeat
# 1: before workers could be drained; 2: before their starts were noted; 3: before they had labels
_FORMATS_READ: Final = (1, 2, 3, 4)


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
    """The durable state of one partition. An empty history means that the partition was never formed.

    `forgot` is the newest generation in which tombstones were forgotten, 0 if never. A record that a worker holds from
    before that generation may have been deleted since, so it must not be merged.
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
        """The next generation, under `configuration`. `replaces`: nothing was ever committed under the active one."""
        assert not (replaces and self.settled), self
        kept = self.history[:-1] if replaces else self.history
        return replace(self, generation=self.generation + 1, history=(*kept, configuration))

    def renewed(self) -> Partition:
        """The next generation under the same configurations, in which tombstones may be forgotten."""
        return replace(self, generation=self.generation + 1, forgot=self.generation + 1)

    def as_settled(self) -> Partition:
        """The same generation, once the active configuration alone holds all that was committed."""
        return replace(self, history=self.history[-1:])


@dataclass(frozen=True, slots=True)
class WorkerEntry:
    """A worker in the document. Its id and its incarnation identify it; its address may change."""

    worker: str
    incarnation: str
    address: str
    storage: str
    max_keys: int | None = None
    draining: bool = False  # an operator is emptying it
    labels: Labels = field(default_factory=dict, hash=False)  # what it was started with, `--label zone=a`

    @property
    def member(self) -> Member:
        return Member(self.worker, self.incarnation)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster's document: everything that must survive, except the records."""

    cluster: str
    mode: str
    replicas: int
    partition_count: int
    term: int = 0
    stored: bool = False  # set, durably, before the first store: from then on a new worker is a spare
    workers: dict[str, WorkerEntry] = field(default_factory=dict)
    partitions: tuple[Partition, ...] = ()
    starts: dict[Member, Start] = field(default_factory=dict)  # the last start that is known of each member

    @property
    def zones(self) -> dict[str, str]:
        """The zone of each worker that has one (`core/labels.py`)."""
        return {entry.worker: entry.labels[ZONE] for entry in self.workers.values() if ZONE in entry.labels}

    @property
    def formed(self) -> bool:
        return bool(self.partitions and self.partitions[0].history)

    def partitions_of(self, member: Member) -> int:
        """In how many partitions may the member still hold a committed write?"""
        return sum(any(member in c.members for c in partition.history) for partition in self.partitions)

    def with_partitions(self, changed: Mapping[int, Partition]) -> Cluster:
        """The cluster with these partitions in place of those of the same index."""
        return replace(self, partitions=tuple(changed.get(index, p) for index, p in enumerate(self.partitions)))

    def with_term(self, term: int) -> Cluster:
        assert term > self.term, (term, self.term)
        return replace(self, term=term)

    def check(self) -> None:
        """Raises:
        ValueError: a number in it is one that no epoch can have, so that no node could read the document."""
        if not 0 <= self.term <= TERM_MAX:
            raise ValueError(f"term {self.term} is beyond {TERM_MAX}")
        for index, partition in enumerate(self.partitions):
            if not 0 <= partition.generation <= GENERATION_MAX:
                raise ValueError(f"generation {partition.generation} of partition {index} is beyond {GENERATION_MAX}")

    def with_start(self, member: Member, start: Start) -> Cluster:
        """The cluster with this start of that member. Starts of members that are no longer of use are dropped."""
        of_use = {m for partition in self.partitions for c in partition.history for m in c.members}
        of_use |= {worker.member for worker in self.workers.values()}
        return replace(self, starts={m: known for m, known in self.starts.items() if m in of_use} | {member: start})

    def to_document(self) -> dict[str, Any]:
        """The document, ready for CBOR. Each distinct configuration is written once and named by its index.

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
                [w.worker, w.incarnation, w.address, w.storage, w.max_keys, w.draining, dict(w.labels)]
                for w in self.workers.values()
            ],
            "configurations": [[[list(m) for m in c.members], c.mode, c.copies] for c in table],
            "partitions": rows,
            "starts": [[*member, str(start)] for member, start in self.starts.items()],
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Cluster:
        """The cluster that `to_document` wrote down.

        Raises:
          ValueError: the document is of another format or damaged, or no master can serve it.
        """
        if (found := document.get("format")) not in _FORMATS_READ:
            raise ValueError(f"the cluster's document is of format {found}; this trikv reads format {DOCUMENT_FORMAT}")
        try:
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
        except (TypeError, KeyError, IndexError, AttributeError, AssertionError) as error:
            raise ValueError(f"the cluster's document is damaged: {error!r}") from error
        return cluster
