"""What the coordinator keeps of one partition in one epoch, in memory.

A new epoch gets a new slot. Operations in flight finish under the slot that they began with, so they commit under the
old epoch or end unknown; nothing of the old state leaks into the new.

`pending` holds, for each key, the newest record that was sent and is not known to be committed. It is what a
compare-and-set or a repair must finish before it looks: such a record may still be on its way to the very replica that
is about to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from trikv.api import Promise, Strategy
from trikv.coordinator.locks import KeyLocks
from trikv.coordinator.replicas import Copies, NotEnough, Standing, Target
from trikv.core.configuration import Configuration, Partition
from trikv.core.record import Record, Version, make_epoch, make_seq
from trikv.core.ring import PARTITION_COUNT, partition_of

PENDING_MAX: Final = 4_096  # keys in doubt in one partition; beyond it, writes of further keys are refused
SENT_KEYS_MAX: Final = 65_536  # that are remembered while tombstones are forgotten; beyond it, that has to wait
PENDING_BYTES_MAX: Final = 256 * 1024 * 1024  # in all partitions together; beyond it, every write is

_OVERHEAD_BYTES: Final = 512  # of a key in a dictionary, a record, its two versions and their numbers


class Past(NamedTuple):
    """A configuration of the history with its members made callable. `lenient`: its mode promises convergence only."""

    configuration: Configuration
    targets: Sequence[Target]
    lenient: bool

    def recovery_need(self) -> int:
        """How many members must answer for all: R; in a lenient mode all that can be reached, at least one."""
        if self.lenient:
            return max(1, sum(target.standing is not Standing.DOWN for target in self.targets))
        return self.configuration.recovery


class Doubt:
    """What the writes in doubt of all partitions weigh together: keys and values, in bytes."""

    __slots__ = ("size_bytes",)

    def __init__(self) -> None:
        self.size_bytes = 0


class Slot:
    __slots__ = (
        "_copies", "_count", "_doubt", "_mark", "_partitions", "anchored", "blocked", "closed", "epoch", "history",
        "index", "locks", "missed", "partition", "pending", "promised", "replaceable", "sent_keys", "strategy",
        "targets", "untouched",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        term: int,
        partition: Partition,
        strategy_of: Callable[[str], Strategy],
        targets_of: Callable[[Configuration], Sequence[Target]],
        doubt: Doubt,
        mark: int,
        *,
        replaceable: bool = False,
        partitions: int = PARTITION_COUNT,
    ) -> None:
        self._partitions = partitions  # in how many the keys are divided
        self._doubt = doubt
        self._mark = mark  # the master's, in every version that is given here (`core/record.py`)
        self._count = 0  # versions that were given here
        self.index = index
        self.epoch = make_epoch(term, partition.generation)
        self.partition = partition
        self.history = [
            Past(configuration, targets_of(configuration), strategy_of(configuration.mode).promise is Promise.AP)
            for configuration in partition.history
        ]
        self.targets = self.history[-1].targets  # of the active configuration, as is the strategy
        self.strategy = strategy_of(partition.active.mode)
        self.locks = KeyLocks()
        self.anchored: set[bytes] = set()  # keys with a committed version of this epoch; kept only while unsettled
        self.pending: dict[bytes, Record] = {}
        self._copies = [Copies()]  # those that are sent now count in the last; the others are of earlier times
        self.missed = 0  # copies that did not arrive, and are not kept as hints, since all replicas were alike
        self.blocked = ""  # why nothing can be served until an operator decides
        self.promised = 0  # where blocked: the epoch that a worker has promised, and the document does not know
        # This coordinator made the active configuration, and nothing was committed under it: the next one may take its
        # place, and what was sent under it ends unknown.
        self.replaceable = replaceable and not partition.settled
        self.untouched = True  # nothing was sent to its members to be stored, in this epoch
        self.sent_keys: set[bytes] | None = None  # of which something was; kept only while tombstones are forgotten
        self.closed = False  # it is being replaced: nothing may be stored under it any more

    @property
    def configuration(self) -> Configuration:
        return self.partition.active

    def is_of(self, key: bytes) -> bool:
        """Does the key lie in this partition?"""
        return partition_of(key, self._partitions) == self.index

    def is_current(self, term: int, partition: Partition) -> bool:
        """Is this still the slot of that document?"""
        return self.partition == partition and self.epoch == make_epoch(term, partition.generation)

    def next_version(self) -> Version:
        self._count += 1
        return Version(self.epoch, make_seq(self._count, self._mark))

    def reads_directly(self, key: bytes) -> bool:
        """Does the active configuration hold everything that was ever committed of this key?"""
        return self.partition.settled or key in self.anchored

    def note_store(self, key: bytes) -> None:
        """A store of the key is about to be sent under the active configuration.

        Raises:
          NotEnough: it is too late for that.
        """
        self._check_open()
        self.untouched = False
        if self.sent_keys is not None:
            self.sent_keys.add(key)
            if len(self.sent_keys) > SENT_KEYS_MAX:
                self.sent_keys = None

    def note_sent(self, key: bytes, record: Record) -> None:
        self.note_store(key)
        pending = self.pending.get(key)
        if pending is None or record.version > pending.version:
            self.pending[key] = record
            self._doubt.size_bytes += _weight(key, record) - (_weight(key, pending) if pending else 0)

    def note_committed(self, key: bytes, record: Record) -> None:
        """
        Raises:
          NotEnough: it is too late for that, and nobody may be told of it.
        """
        self.anchor(key)
        pending = self.pending.get(key)
        if pending is not None and pending.version <= record.version:
            del self.pending[key]
            self._doubt.size_bytes -= _weight(key, pending)

    def anchor(self, key: bytes) -> None:
        """The active configuration holds what was ever committed of the key: from now on reads ask it alone.

        Raises:
          NotEnough: it was replaced, in the belief that nobody has been told of anything in it.
        """
        self._check_open()
        self.replaceable = False
        if not self.partition.settled:
            self.anchored.add(key)

    def _check_open(self) -> None:
        if self.closed:
            raise NotEnough("its configuration was replaced before anything was committed under it")

    def settle(self, partition: Partition) -> None:
        """The active configuration holds everything that was ever committed, and the document says so."""
        assert partition == self.partition.as_settled(), (partition, self.partition)
        self.partition = partition
        self.history = self.history[-1:]
        self.anchored = set()
        self.replaceable = False  # it holds everything now

    def retire(self) -> None:
        """A new slot has taken its place; what is still under way here weighs no more."""
        self._doubt.size_bytes -= sum(_weight(key, record) for key, record in self.pending.items())
        self._doubt = Doubt()

    def count_copies(self) -> Copies:
        """Where a copy that is sent now counts, until it is acknowledged or known to be missed."""
        return self._copies[-1]

    def copies_under_way(self) -> list[Copies]:
        """Where all copies count that are under way now, and none that is sent later."""
        earlier = [copies for copies in self._copies if copies.under_way]
        if earlier:
            self._copies = [*earlier, Copies()]
        return earlier

    def note_missed(self) -> None:
        self.missed += 1


def _weight(key: bytes, record: Record) -> int:
    """What a write in doubt takes of the memory, in bytes."""
    return _OVERHEAD_BYTES + len(key) + len(record.value or b"")
