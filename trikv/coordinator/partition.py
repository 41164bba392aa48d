"""What the coordinator keeps of one partition in one epoch, in memory.

A new epoch gets a new `PartitionState`. Operations in flight finish under the state that they began with, so they
commit under the old epoch or end unknown; nothing of the old state leaks into the new.

*Its life* is the table `LIFE`. A state begins settled, settling or unused, as the document says; it is replaced when
the partition gets another epoch. An unused configuration is one that this coordinator made itself and under which
nothing was committed: the next one takes its place, and it is not kept in the history. It is closed before that, so
that nothing is stored under it any more. A blocked partition is refused until an operator decides. Only the methods
here move a state from one stage to the next, and no other module assigns its fields.

*The fence.* A master that was deposed may still serve under an earlier configuration. So nothing is served under a
changed one before R members of every earlier configuration have promised its epoch: from then on nothing can be
committed, or read by a quorum, under theirs. Configurations of an AP mode promise nothing that this would keep. Where
the configuration is unchanged, any two writes meet, and so nothing is needed. But if W is half of its members or less,
they need not meet, and the later one may have the lower version: then the active configuration is fenced as well, in
each new term.

`pending` holds, for each key, the newest record that was sent and is not known to be committed. A compare-and-set or a
repair must finish it before it looks: such a record may still be on its way to the replica that is about to be read.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple

from trikv.api import Strategy, Write
from trikv.coordinator.locks import KeyLocks
from trikv.coordinator.marks import Marks
from trikv.coordinator.replicas import Copies, NotEnough, Replicas, ServedRequest, Target
from trikv.coordinator.trace import Traces
from trikv.core import quorums
from trikv.core.configuration import Configuration, Member, Partition
from trikv.core.errors import Refused
from trikv.core.quorums import Availability, Electorate
from trikv.core.record import Record, Version, generation_of, make_epoch, make_seq, size_of
from trikv.core.ring import PARTITION_COUNT, partition_of
from trikv.core.tally import TallyVerdict
from trikv.registry import needs_of

PENDING_MAX: Final = 4_096  # keys in doubt in one partition; beyond it, writes of further keys are refused
SENT_KEYS_MAX: Final = 65_536  # that are remembered while tombstones are forgotten; beyond it, that has to wait
PENDING_BYTES_MAX: Final = 256 * 1024 * 1024  # in all partitions together; beyond it, every write is

MAY_RAISE: Final = (Exception, SystemExit)  # a strategy, a stranger's code that it is; cancellation is what is left
_OVERHEAD_BYTES: Final = 512  # of a key in a dictionary, a record, its two versions and their numbers

_log = logging.getLogger(__name__)


class Stage(Enum):
    """Where a partition is in its life."""

    SETTLED = "settled"  # the active configuration holds everything that was ever committed
    SETTLING = "settling"  # a former configuration may hold something that the active one does not
    UNUSED = "unused"  # settling, and nothing was committed under the active configuration, which was made here
    CLOSED = "closed"  # unused, and about to be replaced: nothing may be stored or committed any more
    BLOCKED = "blocked"  # a worker has promised a generation that the document does not know
    REPLACED = "replaced"  # the partition has another epoch; what is under way finishes here


class Step(Enum):
    """What moves a partition from one stage to the next."""

    COMMIT = "commit"  # something was committed under the active configuration, or is about to be told
    SETTLE = "settle"  # the document says that the active configuration holds everything
    CLOSE = "close"  # an unused configuration is about to be replaced
    REOPEN = "reopen"  # it was not replaced after all
    BLOCK = "block"
    REPLACE = "replace"


# A step that is not in the table leaves the stage as it is. REOPEN leads back to UNUSED, since only an unused one is
# closed. BLOCK leaves a closed one closed, so that nothing is stored under it; the reason is kept, and blocks it
# if it is reopened or settled.
LIFE: Final[Mapping[tuple[Stage, Step], Stage]] = {
    (Stage.UNUSED, Step.COMMIT): Stage.SETTLING,
    (Stage.UNUSED, Step.SETTLE): Stage.SETTLED,
    (Stage.UNUSED, Step.CLOSE): Stage.CLOSED,
    (Stage.CLOSED, Step.REOPEN): Stage.UNUSED,
    (Stage.SETTLING, Step.SETTLE): Stage.SETTLED,
    (Stage.CLOSED, Step.SETTLE): Stage.SETTLED,
    (Stage.UNUSED, Step.BLOCK): Stage.BLOCKED,
    (Stage.SETTLING, Step.BLOCK): Stage.BLOCKED,
    (Stage.SETTLED, Step.BLOCK): Stage.BLOCKED,
    (Stage.UNUSED, Step.REPLACE): Stage.REPLACED,
    (Stage.SETTLING, Step.REPLACE): Stage.REPLACED,
    (Stage.SETTLED, Step.REPLACE): Stage.REPLACED,
    (Stage.BLOCKED, Step.REPLACE): Stage.REPLACED,
}


# Looking up a member of an enumeration takes five times as long as a name of this module, and operations do it often.
_UP, _SETTLED, _CLOSED, _BLOCKED = Availability.UP, Stage.SETTLED, Stage.CLOSED, Stage.BLOCKED


class Doubt:
    """What the writes in doubt of all partitions weigh together: keys and values, in bytes."""

    __slots__ = ("size_bytes",)

    def __init__(self) -> None:
        self.size_bytes = 0


class Surroundings(NamedTuple):
    """What all partitions of one coordinator share.

    `on_stale` hears when a member has promised a newer epoch of a partition, `on_missed` of each copy of a client's
    write that did not arrive, and when it was sent. `mark` is the master's, in every version that is given here
    (`core/record.py`).
    """

    strategy_of: Callable[[str], Strategy]
    targets_of: Callable[[Configuration], Sequence[Target]]
    on_stale: Callable[[PartitionState, int], None]
    on_missed: Callable[[PartitionState, Target, Write, float], None]
    doubt: Doubt
    mark: int
    partitions: int = PARTITION_COUNT  # in how many the keys are divided
    traces: Traces | None = None


class PartitionState:
    """One partition in one epoch.

    Args:
      made_here: its active configuration is of this coordinator's making.
      rivalled: another master may still write under the same active configuration, in an earlier term.
    """

    __slots__ = (
        "_copies", "_count", "_doubt", "_marks", "_promised_by", "_sent_keys", "_surroundings", "_to_retire",
        "anchored", "blocked_because", "copies", "epoch", "history", "index", "is_fenced", "locks", "missed", "needs",
        "partition", "pending", "promised", "stage", "strategy", "targets", "untouched", "up_to_write",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        term: int,
        partition: Partition,
        surroundings: Surroundings,
        *,
        made_here: bool = False,
        rivalled: bool = False,
    ) -> None:
        self._surroundings = surroundings
        self._doubt = surroundings.doubt
        self._count = 0  # versions that were given here
        self.index = index
        self.epoch = make_epoch(term, partition.generation)
        self.partition = partition
        self.history = [
            Electorate(c, surroundings.strategy_of(c.mode).promise, surroundings.targets_of(c))
            for c in partition.history
        ]
        self.targets = self.history[-1].voters  # of the active configuration, as are `copies` and the strategy
        self.copies = partition.active.copies
        self.strategy = surroundings.strategy_of(partition.active.mode)
        self.needs = needs_of(self.strategy, len(self.targets), self.copies)
        # So many members that are up commit a write, whichever they are.
        self.up_to_write = len(self.targets) if self.needs.write.places else self.needs.write.count
        self.locks = KeyLocks()
        self.anchored: set[bytes] = set()  # keys with a committed version of this epoch; kept only while unsettled
        self.pending: dict[bytes, Record] = {}
        self._copies = [Copies()]  # those that are sent now count in the last; the others are of earlier times
        self.missed = 0  # copies that did not arrive, and are not kept as hints, since all replicas were alike
        self.blocked_because = ""  # why nothing can be served until an operator decides
        self.promised = 0  # where blocked: the epoch that a worker has promised, and the document does not know
        self.stage = _SETTLED if partition.settled else Stage.UNUSED if made_here else Stage.SETTLING
        self._marks = Marks(self.epoch, self.pending, alike=False)
        writes_meet = 2 * self.copies > len(self.targets)
        retired = self.history if rivalled and not writes_meet else self.history[:-1]
        self._to_retire = [electorate for electorate in retired if not electorate.is_ap]
        self._promised_by: set[Member] = set()  # members of those configurations that have promised this epoch
        self.is_fenced = not self.to_fence()  # may anything be served under its active configuration?
        self.untouched = True  # nothing was sent to its members to be stored, in this epoch
        self._sent_keys: set[bytes] | None = (
            None  # keys of which something was sent; kept only while tombstones are forgotten
        )

    @property
    def configuration(self) -> Configuration:
        return self.partition.active

    @property
    def is_ap(self) -> bool:
        """Does its active mode promise availability?"""
        return self.history[-1].is_ap

    @property
    def is_blocked(self) -> bool:
        return self.stage is _BLOCKED

    @property
    def is_unused(self) -> bool:
        """Was nothing committed under its active configuration, which was made here?"""
        return self.stage in (Stage.UNUSED, _CLOSED)

    @property
    def is_served(self) -> bool:
        """May its keys be moved and mended? Not where it is blocked, about to be replaced, or replaced."""
        return self.stage in (_SETTLED, Stage.SETTLING, Stage.UNUSED)

    @property
    def is_writable(self) -> bool:
        """Would those that are up commit a write, whichever they are? `judge_write` says more where this does not."""
        up = 0
        for target in self.targets:
            if target.availability is _UP:
                up += 1
        return up >= self.up_to_write and self.is_fenced and self.stage is not _CLOSED

    def judge_write(self) -> TallyVerdict:
        """Would those that are up commit a write, or may they, once it is clear which of the others answer?"""
        return quorums.judge(self.history[-1], self.needs.write)

    @property
    def is_readable(self) -> bool:
        """Would those that are up answer a read?"""
        return quorums.judge(self.history[-1], self.needs.read) is TallyVerdict.WON

    def is_of(self, key: bytes) -> bool:
        """Does the key lie in this partition?"""
        return partition_of(key, self._surroundings.partitions) == self.index

    def is_current(self, term: int, partition: Partition) -> bool:
        """Is this still the state of that document?"""
        return self.partition == partition and self.epoch == make_epoch(term, partition.generation)

    def next_version(self) -> Version:
        self._count += 1
        return Version(self.epoch, make_seq(self._count, self._surroundings.mark))

    def reads_directly(self, key: bytes) -> bool:
        """Does the active configuration hold everything that was ever committed of this key?"""
        return self.partition.settled or key in self.anchored

    def named_to_list(self) -> Collection[Member] | None:
        """The members whose listing equals a read, where the strategy names them.

        Raises:
          Refused: the strategy failed over it.
        """
        try:
            alone = self.strategy.listing(self.request(0.0).replicas)
        except MAY_RAISE as error:
            _log.exception("strategy %s failed in listing", self.strategy.name)
            raise Refused("unanswered", f"strategy {self.strategy.name} failed: {error!r}") from error
        return alone.members if isinstance(alone, Replicas) else None

    def choose_to_list(self) -> list[Target] | None:
        """See `quorums.choose_to_list`; None also where the partition is blocked."""
        if self.is_blocked:
            return None
        return quorums.choose_to_list(self.history, self.named_to_list() if self.partition.settled else None)

    # --- requests to its members -------------------------------------------------------------------------------------

    def request(
        self,
        deadline_s: float,
        targets: Sequence[Target] | None = None,
        *,
        on_send: Callable[[Write], None] | None = None,
        tracked: bool = False,
        repair: Callable[[bytes], Awaitable[Record | None]] | None = None,
        listed: dict[str, Record | None] | None = None,
    ) -> ServedRequest:
        """A request to members of this partition in this epoch; to all active ones, unless `targets` names others.

        `tracked`: its copies are a client's, so those under way are counted, and those that are missed are reported.
        `on_send` and the rest: see `ServedRequest`.
        """
        return ServedRequest(
            self.index,
            self.epoch,
            self.copies,
            self.targets if targets is None else targets,
            deadline_s,
            on_send=on_send or self._note_store_of,
            count_copies=self.count_copies if tracked else None,
            on_missed=self.report_missed if tracked else None,
            on_stale=self.report_stale,
            repair=repair,
            listed=listed,
            traces=self._surroundings.traces,
            marks=self._marks if listed is None else None,  # what was listed may be of before them
        )

    def _note_store_of(self, write: Write) -> None:
        self.note_store(write.key)

    # --- what is reported ---------------------------------------------------------------------------------------------

    def report_stale(self, promised: int) -> None:
        """A member has promised this newer epoch."""
        self._surroundings.on_stale(self, promised)

    def report_missed(self, target: Target, write: Write, since_s: float) -> None:
        """This copy of a client's write, sent then, did not arrive, or it was not sent."""
        self._surroundings.on_missed(self, target, write, since_s)

    # --- its life -----------------------------------------------------------------------------------------------------

    def _take(self, step: Step) -> None:
        self.stage = LIFE.get((self.stage, step), self.stage)
        if self.blocked_because and step in (Step.REOPEN, Step.SETTLE):  # it was closed when the reason was heard
            self._take(Step.BLOCK)

    def settle(self, partition: Partition) -> None:
        """The active configuration holds everything that was ever committed, and the document says so."""
        assert partition == self.partition.as_settled(), (partition, self.partition)
        self.partition = partition
        self.history = self.history[-1:]
        self._to_retire = []  # enough members of all of them were heard in this epoch
        self.is_fenced = True
        self.anchored = set()
        if self.copies == len(self.targets) and not self.is_ap:
            self._note_alike()  # all of them were heard, and whatever differed was written anew, to all
        self._take(Step.SETTLE)

    def close(self) -> None:
        """It is unused and about to be replaced: from here on nothing is stored under it, so it stays unused."""
        self._take(Step.CLOSE)

    def reopen(self) -> None:
        """It was not replaced after all."""
        self._take(Step.REOPEN)

    def block(self, promised: int, reason: str) -> None:
        """A worker has promised an epoch that the document does not know."""
        self._take(Step.BLOCK)
        if self.stage in (_BLOCKED, _CLOSED):
            self.promised = max(self.promised, promised, key=generation_of)
            self.blocked_because = self.blocked_because or reason

    def replace(self) -> None:
        """A new state has taken its place; what is still under way here weighs no more."""
        self._take(Step.REPLACE)
        self._doubt.size_bytes -= sum(_doubt_bytes(key, record) for key, record in self.pending.items())
        self._doubt = Doubt()

    def _check_open(self) -> None:
        if self.stage is _CLOSED:
            raise NotEnough("its configuration was replaced before anything was committed under it")

    # --- the fence ----------------------------------------------------------------------------------------------------

    def to_fence(self) -> list[Target]:
        """The members whose promise of this epoch is still waited for."""
        lacking = [e for e in self._to_retire if self._lacks(e) > 0]
        return list({t.member: t for e in lacking for t in e.voters if t.member not in self._promised_by}.values())

    def note_promise(self, member: Member) -> None:
        """The member has promised this epoch, durably."""
        self._promised_by.add(member)
        self.is_fenced = self.is_fenced or not self.to_fence()

    @property
    def can_be_fenced(self) -> bool:
        """Are enough members left that may promise this epoch?"""
        waited_for = {t.member for t in self.to_fence() if t.availability is not Availability.DOWN}
        return all(self._lacks(e) <= sum(t.member in waited_for for t in e.voters) for e in self._to_retire)

    def _lacks(self, electorate: Electorate[Target]) -> int:
        """How many more of its members must promise this epoch."""
        return electorate.configuration.recovery - sum(t.member in self._promised_by for t in electorate.voters)

    # --- writes -------------------------------------------------------------------------------------------------------

    def note_store(self, key: bytes) -> None:
        """A store of the key is about to be sent under the active configuration.

        Raises:
          NotEnough: it is too late for that.
        """
        self._check_open()
        self.untouched = False
        if self._sent_keys is not None:
            self._sent_keys.add(key)
            if len(self._sent_keys) > SENT_KEYS_MAX:
                self._sent_keys = None

    def note_sent(self, key: bytes, record: Record) -> None:
        self.note_store(key)
        pending = self.pending.get(key)
        if pending is None or record.version > pending.version:
            self.pending[key] = record
            self._doubt.size_bytes += _doubt_bytes(key, record) - (_doubt_bytes(key, pending) if pending else 0)

    def note_committed(self, key: bytes, record: Record) -> None:
        """
        Raises:
          NotEnough: it is too late for that, and no client may be told of it.
        """
        self.anchor(key)
        pending = self.pending.get(key)
        if pending is not None and pending.version <= record.version:
            del self.pending[key]
            self._doubt.size_bytes -= _doubt_bytes(key, pending)

    def anchor(self, key: bytes) -> None:
        """The active configuration holds what was ever committed of the key: from now on reads ask it alone.

        Raises:
          NotEnough: it was replaced, since no client had been told of a commit in it.
        """
        if self.stage is _SETTLED:
            return
        self._check_open()
        self._take(Step.COMMIT)
        if not self.partition.settled:
            self.anchored.add(key)

    # --- tombstones ---------------------------------------------------------------------------------------------------

    def remember_sent(self) -> bool:
        """From now on remember the keys of which something is sent; False if something was sent before."""
        if self.untouched:
            self._sent_keys = set()
        return self.untouched

    @property
    def remembers_sent(self) -> bool:
        return self._sent_keys is not None

    def stop_remembering(self) -> None:
        self._sent_keys = None

    def was_sent(self, key: bytes) -> bool:
        """Was something of the key sent in this epoch? True also where that is not remembered."""
        return self._sent_keys is None or key in self._sent_keys

    # --- copies -------------------------------------------------------------------------------------------------------

    def count_copies(self) -> Copies:
        """Where a copy that is sent now counts, until it is acknowledged or known to be missed."""
        return self._copies[-1]

    def copies_under_way(self) -> list[Copies]:
        """Where all copies count that are under way now, and none that is sent later."""
        earlier = [copies for copies in self._copies if copies.under_way]
        if earlier:
            self._copies = [*earlier, Copies()]
        return earlier

    def note_missed(self, count: int = 1) -> None:
        """So many copies are lacking that only a comparison of its replicas can find."""
        self.missed += count

    def _note_alike(self) -> None:
        if not self._marks.alike:
            self._marks = Marks(self.epoch, self.pending, alike=True)

    def note_compared(self, missed: int) -> None:
        """All its replicas were compared, and made alike, since `missed` was as many."""
        self._note_alike()
        if self.missed == missed:
            self.missed = 0


def _doubt_bytes(key: bytes, record: Record) -> int:
    """The memory that a write in doubt takes.

    The objects around it count, unlike in a hint's size: hints also have a bound on their number, and the keys in doubt
    have none in all partitions together.
    """
    return _OVERHEAD_BYTES + size_of(key, record)
