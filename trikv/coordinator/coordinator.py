"""The coordinator: every client operation, from its first check to its outcome.

Here the promise about outcomes is kept. A write is *refused* only if nothing that carries its value was sent; from the
first send on, whatever goes wrong, it is *unknown*; it is *committed* when the mode's strategy says so. A read that
cannot be answered truthfully is refused.

One write, in order: check the bounds; find the partition's state; wait, within the deadline, for members that are not
yet known to be down; take the key's lock, shared; take a version; run the strategy. The strategy sends through
`replicas.py`, which notes the record as pending before the first byte leaves. The whole of it runs inside one
deadline. A write whose deadline passes leaves its record pending: nothing is undone, since a client may have read it.

Compare-and-set holds the lock alone: it first finishes what is pending, then reads, compares, and writes. A write
while one of its workers is full does the same, to refuse a key that is not there yet before anything is sent.

A write may be on its way when its partition moves on to another configuration. Replicas that serve that one already
then refuse it. So it goes on there, within its deadline, like a compare-and-set: it first reads what the key holds. If
that is its own value, or that of a later write, it is committed; in the second case its place is just before the later
one, which took its version while this one was under way. Otherwise it writes a fresh copy, which is newer than all that
may be left of the first one. So clients do not notice that workers come and go.

In two cases the key does not tell whether the first copy was ever seen, and the write is unknown. A later write may
stand on what was compared before: nothing can have its place just before that one. And where the key is absent, and
tombstones were forgotten since, the copy may have been read and deleted.

Where several masters share the document, this one may have been deposed without knowing it. An answer that rests on at
least W replicas is safe: R members of the configuration have promised a newer epoch before anything newer is served,
and one of them would be among those W. An answer that rests on fewer replicas is given only while the lease holds
(`master/leadership.py`), looked at after the answer has come; otherwise the read is refused.

Bounds: `IN_FLIGHT_MAX` operations at once, `WRITING_BYTES_MAX` of values on their way, `PENDING_MAX` keys in doubt in a
partition and `PENDING_BYTES_MAX` in all; beyond any of them a caller is refused at once. Large values may take
`LARGE_BYTES_MAX` of what is on its way, so that small ones always find room. Scans wait for each other, `SCANS_MAX` at
once, since each keeps the event loop for milliseconds.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final

import trio

from trikv.api import Write
from trikv.coordinator.deadlines import Limit, limit_of_task
from trikv.coordinator.partition import MAY_RAISE, PENDING_BYTES_MAX, PENDING_MAX, Doubt, PartitionState, Stage
from trikv.coordinator.repair import fetch_history
from trikv.coordinator.replicas import NotEnough, Target
from trikv.coordinator.scan import PAGE_MAX, ScanPage, scan_page
from trikv.coordinator.trace import RequestTrace, Traces, current, note_promised
from trikv.core import serving
from trikv.core.calls import Full
from trikv.core.errors import Outcome, Refused, TrikvError, Unknown
from trikv.core.histogram import Histogram
from trikv.core.hotkeys import HotKeys
from trikv.core.precondition import Expect
from trikv.core.quorums import Availability
from trikv.core.record import KEY_BYTES_MAX, TIMEOUT_MOST_S, VALUE_BYTES_MAX, Record, Version, generation_of
from trikv.core.ring import partition_of
from trikv.core.session import PeerError
from trikv.core.tally import TallyVerdict
from trikv.net.link import QUEUE_BYTES_MAX
from trikv.net.signal import Signal

IN_FLIGHT_MAX: Final = 4096
# A link refuses what comes beyond its queue's bound, and by then another replica may have the value: the outcome would
# be unknown. So no more is let in than the queue of every link takes.
WRITING_BYTES_MAX: Final = QUEUE_BYTES_MAX * 3 // 4
LARGE_BYTES_MAX: Final = QUEUE_BYTES_MAX // 2
LARGE_VALUE_BYTES: Final = 64 * 1024
SCANS_MAX: Final = 4
HOT_KEY_STEP: Final = 8
ADMISSION_STEP: Final = 8
RESERVED: Final = b"\0trikv/"  # keys that begin so are the cluster's own: clients can neither use nor see them
_MAY_GO_ON: Final = ("unavailable", "unanswered")  # as the next configuration may answer

# Looking up a member of an enumeration takes five times as long as a name of this module, and operations do it often.
_NO, _COMMITTED = Full.NO, Outcome.COMMITTED

_log = logging.getLogger(__name__)


class WriteFailed(Exception):
    """The strategy did not commit the write. Whether bytes left is known by `Attempt.versions`."""


class Longest:
    """The longest operation that ended while it was among `Coordinator.longest`, in seconds."""

    def __init__(self) -> None:
        self.duration_s = 0.0

    def note(self, duration_s: float) -> None:
        self.duration_s = max(self.duration_s, duration_s)


class Coordinator:
    """Serves clients from the states that the master installs. What clients call raises `Refused` or `Unknown`."""

    def __init__(self, *, timeout_s: float, before_first_store: Callable[[], Awaitable[None]]) -> None:
        self.timeout_s = timeout_s
        # The clock's own method costs a third of `trio.current_time`, which looks the clock up.
        self.now = trio.lowlevel.current_clock().current_time
        self.partitions: list[PartitionState] = []
        self.not_formed = "the cluster has no configuration yet"
        self.stored = False  # set by the master once that is durable
        self.in_flight = 0
        self._writing_bytes = 0
        self._scans = trio.CapacityLimiter(SCANS_MAX)
        self.mode = ""  # the one in force, set by the master
        self.outcomes_by_mode: Counter[tuple[str, Outcome]] = Counter()
        self.durations = {what: Histogram() for what in ("get", "put", "delete", "scan")}
        # Of one write in `ADMISSION_STEP`: from the beginning until the strategy is first asked.
        self.admission = Histogram()
        self.repairs = Histogram()  # of keys, before their answer or in the background
        self.error_codes: Counter[str] = Counter()  # of operations that were refused or are unknown
        self.traces = Traces()
        self.hot_keys = HotKeys()
        self._asked = 0  # operations on keys, of which one in `HOT_KEY_STEP` is counted by its key
        # By partition: the newest version of a write that was made because of what a comparison found.
        self._compared: dict[int, Version] = {}
        self.longest: set[Longest] = set()  # those that are measuring now
        self._before_first_store = before_first_store
        # Can no other master have begun to lead by now? None: there can be no other one.
        self.holds_lease: Callable[[], bool] | None = None
        self.doubt = Doubt()
        # Set when a write ends without a commit; `healing/finish.py` then makes a new one.
        self.in_doubt = trio.Event()
        self.changed = Signal()  # something that an operation may be waiting for: a member's availability, a partition

    @property
    def writing_bytes(self) -> int:
        """Of values that are on their way."""
        return self._writing_bytes

    @property
    def scans_under_way(self) -> int:
        """Those that do not wait for their turn."""
        return self._scans.borrowed_tokens

    @property
    def outcomes(self) -> dict[Outcome, int]:
        """How many operations ended so, in all modes."""
        totals = dict.fromkeys(Outcome, 0)
        for (_, outcome), count in self.outcomes_by_mode.items():
            totals[outcome] += count
        return totals

    @property
    def pending(self) -> int:
        """Keys of which a write is in doubt."""
        return sum(len(state.pending) for state in self.partitions)

    # --- what clients ask ---------------------------------------------------------------------------------------------

    async def get(
        self, key: bytes, *, timeout_s: float | None = None, trace: RequestTrace | None = None, internal: bool = False
    ) -> Record | None:
        """The record that a read returns; None where there is no value. `trace`: see `trace.py`. `internal`: the key is
        one of the cluster's own, and nothing is counted."""
        check_key(key, internal=internal)
        with self._operation(timeout_s, "get", key, trace) as operation:
            record = await self._read_wherever(key, operation.deadline_s)
        return None if record is None or record.is_tombstone else record

    async def put(
        self,
        key: bytes,
        value: bytes,
        *,
        expect: Expect | None = None,
        timeout_s: float | None = None,
        trace: RequestTrace | None = None,
        internal: bool = False,
    ) -> Version:
        """Store; answers the write's stamp."""
        if len(value) > VALUE_BYTES_MAX:
            raise Refused("value_too_large", f"the value has {len(value):,} bytes; the most is {VALUE_BYTES_MAX:,}")
        check_key(key, internal=internal)
        return await self._write(key, value, expect, timeout_s, trace)

    async def delete(
        self,
        key: bytes,
        *,
        expect: Expect | None = None,
        timeout_s: float | None = None,
        trace: RequestTrace | None = None,
        internal: bool = False,
    ) -> Version:
        """Leave a tombstone, whether or not there was a value; answers the write's stamp."""
        check_key(key, internal=internal)
        return await self._write(key, None, expect, timeout_s, trace)

    async def scan(
        self,
        prefix: bytes = b"",
        *,
        after: bytes | None = None,
        limit: int = 100,
        timeout_s: float | None = None,
        internal: bool = False,
    ) -> ScanPage:
        """The first `limit` (at most `PAGE_MAX`) live keys with `prefix` after `after`, in byte order. Keys of the
        cluster's own are there only if it is `internal`."""
        with self._operation(timeout_s, "scan", RESERVED if internal else b"") as operation:
            if limit < 1:
                raise Refused("bad_request", f"a page of {limit} keys; ask for 1 at least")
            if not self.partitions:
                raise Refused("forming", self.not_formed)
            async with self._scans:
                hidden = None if internal else RESERVED
                return await self._scan_wherever(prefix, after, min(limit, PAGE_MAX), operation.deadline_s, hidden)

    # --- the operations -----------------------------------------------------------------------------------------------

    async def _write(
        self,
        key: bytes,
        value: bytes | None,
        expect: Expect | None,
        timeout_s: float | None,
        trace: RequestTrace | None,
    ) -> Version:
        """Write under the present configuration, or under the next if that one replaces it meanwhile."""
        what = "delete" if value is None else "put"
        size_bytes = len(value or b"")
        with self._operation(timeout_s, what, key, trace) as operation:
            self._check_room_on_the_way(size_bytes)
            self._writing_bytes += size_bytes
            try:
                if not self.stored and self.partitions:
                    await self._before_first_store()
                while True:
                    state = self._state_of(key)
                    if not state.is_writable:
                        state = await self._await_members(key)
                    try:
                        return await self._write_in(state, key, value, expect, operation)
                    except (WriteFailed, Refused) as error:
                        if not self._goes_on_elsewhere(state, error):
                            raise
            except Refused as error:
                if not operation.versions:
                    raise
                raise Unknown(f"its configuration was replaced, and under the next one: {error.detail}") from error
            finally:
                self._writing_bytes -= size_bytes

    def _check_room_on_the_way(self, size_bytes: int) -> None:
        """
        Raises:
          Refused: with a value of so many bytes more, too many would be on their way.
        """
        most_bytes = LARGE_BYTES_MAX if size_bytes >= LARGE_VALUE_BYTES else WRITING_BYTES_MAX
        if self._writing_bytes + size_bytes > most_bytes:
            raise Refused("overloaded", f"values of {self._writing_bytes:,} bytes are on their way already")

    async def _write_in(
        self, state: PartitionState, key: bytes, value: bytes | None, expect: Expect | None, operation: Attempt
    ) -> Version:
        """The write under the configuration of this state."""
        serving.epoch.set(state.epoch)
        if expect is not None and not state.strategy.compare_and_set:
            raise Refused(
                "no_compare_and_set",
                f"mode {state.strategy.name} is {state.strategy.promise.value}: it cannot compare before it sets",
            )
        if key not in state.pending and len(state.pending) >= PENDING_MAX:
            raise Refused("overloaded", f"{PENDING_MAX:,} keys of this partition are in doubt already")
        if self.doubt.size_bytes > PENDING_BYTES_MAX:
            raise Refused("overloaded", f"writes of {PENDING_BYTES_MAX:,} bytes are under way or in doubt already")
        full = [target for target in state.targets if target.full is not _NO] if value is not None else []
        if full:
            self._check_room(state, full)
        creates_blindly = bool(full) and any(target.full is Full.KEYS for target in full)
        sent = operation.versions  # under configurations that were replaced
        decides = expect is not None or creates_blindly or bool(sent)
        with await state.locks.hold(key, exclusive=decides):
            if decides:
                current = await self._read_for_write(state, key, operation.deadline_s)
                if sent and (stamp := self._find_sent(state, current, sent, compares=expect is not None)):
                    return stamp
                if expect is not None and not expect.holds(current):
                    raise Refused("precondition_failed", _describe_mismatch(current), stamp=_stamp_of(current))
                if creates_blindly and (current is None or current.is_tombstone):
                    names = ", ".join(t.member.worker for t in state.targets if t.full is Full.KEYS)
                    raise Refused("full", f"worker {names} holds as many keys as it may; this key is new")
            if self.partitions[state.index] is not state:
                raise WriteFailed("its configuration was replaced while it waited for the key")
            version = state.next_version()
            if not self._asked % ADMISSION_STEP and operation.admitted_s is None:
                operation.admitted_s = self.now()
            if operation.trace is not None:
                self.traces.note_stamp(operation.trace, version)
            if expect is not None:
                self._compared[state.index] = version
            await self.own_write(state, key, Record(version, version, value), operation.deadline_s, operation)
            return version

    def _find_sent(
        self, state: PartitionState, current: Record | None, sent: tuple[Version, ...], *, compares: bool
    ) -> Version | None:
        """The stamp of a write that was sent with these versions before, if it took effect; None if it never did.

        Raises:
          Refused: what the key holds now does not tell.
        """
        last = sent[-1]
        if current is None:
            if generation_of(last.epoch) < state.partition.forgot:
                raise Refused("unanswered", "tombstones were forgotten since, and it may have been deleted")
            return None
        if current.stamp in sent:
            return current.stamp
        if current.stamp < last:
            return None
        if compares or self._compared.get(state.index, last) > last:
            raise Refused("unanswered", "a later write took the place of what this one may have written")
        return last

    @staticmethod
    def _check_room(state: PartitionState, full: Sequence[Target]) -> None:
        """Refuse a value that too few disks have room for. Deletes always go on: they are what makes room."""
        disks = [target.member.worker for target in full if target.full is Full.DISK]
        if not state.needs.write.is_met([target.full is not Full.DISK for target in state.targets]):
            raise Refused("full", f"the disk of worker {', '.join(disks)} is nearly full: it takes deletes alone")

    def _goes_on_elsewhere(self, state: PartitionState, error: WriteFailed | Refused) -> bool:
        """Did it only fail because the partition has moved on to another configuration?"""
        if self.partitions[state.index] is state:
            return False
        return isinstance(error, WriteFailed) or error.kind.code in _MAY_GO_ON

    async def _read_for_write(self, state: PartitionState, key: bytes, deadline_s: float) -> Record | None:
        """What a compare-and-set compares with; the caller has the key's lock alone."""
        if (pending := state.pending.get(key)) is not None:
            try:
                await self.own_write(state, key, pending, deadline_s)
            except WriteFailed as error:
                raise Refused("unanswered", f"an earlier write of this key is still in doubt ({error})") from error
        if state.reads_directly(key):
            return await self.own_read(state, key, deadline_s, exclusive=True)
        return await self.repair(state, key, deadline_s)

    async def _read_wherever(self, key: bytes, deadline_s: float) -> Record | None:
        """Read under the present configuration, and under the next if that one replaces it meanwhile."""
        while True:
            state = self._state_of(key)
            try:
                return await self.read(state, key, deadline_s)
            except Refused as error:
                if not self._goes_on_elsewhere(state, error):
                    raise

    async def _scan_wherever(
        self, prefix: bytes, after: bytes | None, limit: int, deadline_s: float, hidden: bytes | None
    ) -> ScanPage:
        """A page, begun anew when a partition has moved on to another configuration meanwhile."""

        async def read(state: PartitionState, key: bytes, listed: dict[str, Record | None] | None) -> Record | None:
            return await self.read(state, key, deadline_s, listed)

        while True:
            states = self.partitions
            try:
                return await scan_page(
                    states, read, self.changed.wait, self.check_answer, prefix, after, limit, deadline_s, hidden=hidden
                )
            except Refused as error:
                if self.partitions is states or error.kind.code not in _MAY_GO_ON:
                    raise

    async def read(
        self, state: PartitionState, key: bytes, deadline_s: float, listed: dict[str, Record | None] | None = None
    ) -> Record | None:
        """The record that a read returns, a tombstone as it is. `listed`: what replicas listed in this operation."""
        serving.epoch.set(state.epoch)
        if state.reads_directly(key):
            return await self.own_read(state, key, deadline_s, listed=listed)
        with await state.locks.exclusive(key):
            if state.reads_directly(key):
                return await self.own_read(state, key, deadline_s, exclusive=True)
            await self._await_fence(state)
            return await self.repair(state, key, deadline_s)

    async def repair(
        self, state: PartitionState, key: bytes, deadline_s: float, *, besides: Target | None = None
    ) -> Record | None:
        """Bring the key's newest record to the active configuration and answer it; the caller has the key's lock alone.

        Under CP modes the copy gets a fresh version: one that was found on fewer than W replicas may be older than a
        hidden one, and a replica that holds something newer acknowledges a store without holding *it*. `besides`: see
        `fetch_history`.
        """
        began_s = trio.current_time()
        try:
            return await self._repair(state, key, deadline_s, besides)
        finally:
            self.repairs.note(trio.current_time() - began_s)

    async def _repair(
        self, state: PartitionState, key: bytes, deadline_s: float, besides: Target | None
    ) -> Record | None:
        record = state.pending.get(key)
        if record is None:
            try:
                found = await fetch_history(state, key, deadline_s, besides=besides)
            except (NotEnough, PeerError) as error:
                raise Refused("unavailable", f"the key needs a repair, and too few replicas answer: {error}") from error
            if found is None:
                self.check_answer(state, state.configuration.recovery)
                return None
            # Under AP a member that could not be asked may hold a newer one: let that win.
            record = found if state.is_ap else Record(state.next_version(), found.stamp, found.value)
        try:
            await self.own_write(state, key, record, deadline_s)
        except WriteFailed as error:
            raise Refused("unanswered", f"the key was under repair, and that was not finished: {error}") from error
        return record

    def may_answer(self, state: PartitionState) -> bool:
        """May an answer be given that rests on as many members as the mode's reads need?"""
        holds = self.holds_lease
        return holds is None or state.is_ap or state.needs.read.count >= state.copies or holds()

    def check_answer(self, state: PartitionState, heard: int) -> None:
        """Check that an answer of so many members may be given, now that it has come.

        Raises:
          Refused: another master may have committed something that they do not know of.
        """
        if self.holds_lease is None or state.is_ap or heard >= state.copies or self.holds_lease():
            return
        raise Refused(
            "no_store",
            f"this master could not renew its lease, so another one may lead, and mode {state.strategy.name} answers "
            f"from {heard} of {len(state.targets)} replicas",
        )

    # --- the strategy's path ------------------------------------------------------------------------------------------

    async def own_write(
        self, state: PartitionState, key: bytes, record: Record, deadline_s: float, operation: Attempt | None = None
    ) -> None:
        """Run the strategy's write.

        Raises:
          WriteFailed: it did not commit. `operation` knows whether anything was sent.
        """

        def note_sent(write: Write) -> None:
            state.note_sent(key, record)
            if operation is not None:
                operation.versions += (record.version,)

        request = state.request(deadline_s, on_send=note_sent, tracked=True)
        try:
            await state.strategy.write(Write(key, record), request.replicas)
            note_promised(state.strategy.name, state.epoch)
            state.note_committed(key, record)
        except NotEnough as error:
            raise WriteFailed(str(error)) from error
        except MAY_RAISE as error:  # a strategy is a stranger's code, and a client must still be told the truth
            _log.exception("strategy %s failed in write", state.strategy.name)
            raise WriteFailed(f"strategy {state.strategy.name} failed: {error!r}") from error
        except BaseExceptionGroup as group:
            if (cancelled := _cancellation_in(group, state.strategy.name)) is not None:
                raise cancelled from None
            raise WriteFailed(f"strategy {state.strategy.name} failed: {group!r}") from group
        finally:
            if key in state.pending:
                self.in_doubt.set()

    async def own_read(
        self,
        state: PartitionState,
        key: bytes,
        deadline_s: float,
        *,
        exclusive: bool = False,
        listed: dict[str, Record | None] | None = None,
    ) -> Record | None:
        """Run the strategy's read; again when a member that it may yet hear of comes up. `exclusive`: the caller has
        the key's lock alone."""

        async def repair(wanted: bytes) -> Record | None:
            if exclusive:
                return await self.repair(state, wanted, deadline_s)
            with await state.locks.exclusive(wanted):
                # Another read may have repaired it meanwhile: look again.
                return await self.own_read(state, wanted, deadline_s, exclusive=True)

        while True:
            # What `agree` stores was sent before, and noted then.
            request = state.request(deadline_s, on_send=_note_nothing, tracked=True, repair=repair, listed=listed)
            if self.holds_lease is not None:
                request.heard = set()
            try:
                record = await state.strategy.read(key, request.replicas)
                note_promised(state.strategy.name, state.epoch)
            except NotEnough as error:
                if not any(target.availability is Availability.DOUBTFUL for target in state.targets):
                    raise Refused("unavailable", str(error)) from error
                listed = None
                await self.changed.wait()
                if self.partitions[state.index] is not state:
                    raise Refused("unavailable", str(error)) from error  # by now it is another's to answer
                continue
            except TrikvError:
                raise
            except MAY_RAISE as error:  # as in own_write
                _log.exception("strategy %s failed in read", state.strategy.name)
                raise Refused("unanswered", f"strategy {state.strategy.name} failed: {error!r}") from error
            except BaseExceptionGroup as group:
                if (cancelled := _cancellation_in(group, state.strategy.name)) is not None:
                    raise cancelled from None
                raise Refused("unanswered", f"strategy {state.strategy.name} failed: {group!r}") from group
            if record is not None and not isinstance(record, Record):
                raise Refused("unanswered", f"strategy {state.strategy.name} answered {record!r}, which is no record")
            if request.heard is not None:
                self.check_answer(state, len(request.heard))
            return record

    # --- around an operation ------------------------------------------------------------------------------------------

    def _operation(
        self, timeout_s: float | None, what: str, key: bytes = b"", trace: RequestTrace | None = None
    ) -> Attempt:
        """Admit an operation, bound it, and say what came of it. What concerns a key of the cluster's own counts for
        nothing."""
        counted = not key.startswith(RESERVED)
        # A front names the trace beside the refusal, so that is raised.
        limit = limit_of_task.get() if trace is None or not counted else None
        if counted and key:
            self._asked += 1
            if not self._asked % HOT_KEY_STEP:
                self.hot_keys.note(key)
            if trace is None:
                trace = self.traces.sample()
        timeout_s = self.timeout_s if timeout_s is None else min(timeout_s, TIMEOUT_MOST_S)
        if self.in_flight >= IN_FLIGHT_MAX:
            self.note_outcome(trace, counted, Outcome.REFUSED, "too many operations are under way", code="overloaded")
            raise Refused("overloaded", f"{IN_FLIGHT_MAX:,} operations are under way already")
        return Attempt(self, timeout_s, what, key, trace, counted, limit)

    def note_outcome(
        self, trace: RequestTrace | None, counted: bool, outcome: Outcome, detail: str = "", *, code: str = ""
    ) -> None:
        if counted:
            self.outcomes_by_mode[self.mode, outcome] += 1
            if code:
                self.error_codes[code] += 1
        if trace is not None:
            trace.end(outcome.value, detail)

    def note_end(self, what: str, began_s: float, admitted_s: float | None) -> None:
        """An operation that counts has ended."""
        self.in_flight -= 1
        duration_s = self.now() - began_s
        self.durations[what].note(duration_s)
        if admitted_s is not None:
            self.admission.note(admitted_s - began_s)
        for measure in self.longest:
            measure.note(duration_s)

    def _state_of(self, key: bytes) -> PartitionState:
        if not self.partitions:
            raise Refused("forming", self.not_formed)
        state = self.partitions[partition_of(key, len(self.partitions))]
        if state.is_blocked:
            raise Refused("recover", state.blocked_because)
        return state

    async def _await_members(self, key: bytes) -> PartitionState:
        """The key's state, as soon as a write can be committed by those that are up; refuse once it cannot."""
        while True:
            state = self._state_of(key)
            verdict = state.judge_write()
            if verdict is TallyVerdict.WON and state.stage is not Stage.CLOSED and state.is_fenced:
                return state
            self._check_fence(state)
            if verdict is TallyVerdict.LOST:
                down = [t.member.worker for t in state.targets if t.availability is Availability.DOWN]
                raise Refused(
                    "unavailable",
                    f"for a write, mode {state.strategy.name} needs "
                    f"{state.needs.write.describe(len(state.targets))}, and {', '.join(down)} cannot be reached",
                )
            await self.changed.wait()

    async def _await_fence(self, state: PartitionState) -> None:
        """Return once its earlier configurations can commit nothing more; refuse if that cannot be had."""
        while not state.is_fenced:
            if self.partitions[state.index] is not state:
                raise Refused("unavailable", "its configuration was replaced before it was served")
            self._check_fence(state)
            await self.changed.wait()

    @staticmethod
    def _check_fence(state: PartitionState) -> None:
        if not state.is_fenced and not state.can_be_fenced:
            down = sorted({t.member.worker for t in state.to_fence() if t.availability is Availability.DOWN})
            raise Refused(
                "unavailable",
                "another master may still write under an earlier configuration, or in an earlier term, and too few of "
                "the members can be reached to end that: " + ", ".join(down),
            )


class Attempt:
    """The attempt at one operation of a client, while it is carried out: a context, entered with itself.

    `versions`: with which its own write was sent, the last one last. `admitted_s`: when its strategy was first asked to
    write, if that is measured. It is bounded by the limit of the task (`deadlines.py`), or by a scope of its own.
    """

    __slots__ = (
        "_began_s", "_coordinator", "_counted", "_limit", "_scope", "_timeout_s", "_token", "_what", "admitted_s",
        "deadline_s", "trace", "versions",
    )  # fmt: skip

    def __init__(
        self,
        coordinator: Coordinator,
        timeout_s: float,
        what: str,
        key: bytes,
        trace: RequestTrace | None,
        counted: bool,
        limit: Limit | None,
    ) -> None:
        self._coordinator = coordinator
        self._timeout_s = timeout_s
        self._what = what
        self._counted = counted
        self._limit = limit if limit is not None and limit.is_free else None
        self._began_s = coordinator.now()
        self.deadline_s = self._began_s + timeout_s
        self.versions: tuple[Version, ...] = ()
        self.admitted_s: float | None = None
        self.trace = trace
        if trace is not None:
            trace.begin(what, key)

    def __enter__(self) -> Attempt:
        self._coordinator.in_flight += self._counted
        self._token = None if self.trace is None and current.get() is None else current.set(self.trace)
        if self._limit is not None:
            self._limit.begin(self.deadline_s)
        else:
            self._scope = trio.CancelScope(deadline=self.deadline_s)
            self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._leave(kind, error, trace):
                failure = self._fail("unanswered", f"no decision within {self._timeout_s:.3g} s")
                if self._limit is None:
                    raise failure
                self._limit.failure = failure
            elif error is None:
                self._note(_COMMITTED)
            elif isinstance(error, WriteFailed):
                raise self._fail("unavailable", str(error)) from error
            elif isinstance(error, TrikvError):
                self._note(error.kind.outcome, error.detail, error.kind.code)
        finally:
            if self._token is not None:
                current.reset(self._token)
            if self.trace is not None and self.trace.ended_s is None:
                self.trace.end("", "cancelled: its client went away, or the node stopped")
            if self._counted:
                self._coordinator.note_end(self._what, self._began_s, self.admitted_s)

    def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Leave what bounds it: was it ended because it was late?"""
        if self._limit is None:
            self._scope.__exit__(kind, error, trace)  # that it was cancelled is an error of the operation
            return self._scope.cancelled_caught
        self._limit.end()
        # Cancellation may come as a group, out of a nursery of the strategy's own.
        return self._limit.is_expired and error is not None and not isinstance(error, Exception)

    def _fail(self, code: str, reason: str) -> TrikvError:
        failure: TrikvError = Unknown(reason) if self.versions else Refused(code, reason)
        self._note(failure.kind.outcome, failure.detail, failure.kind.code)
        return failure

    def _note(self, outcome: Outcome, detail: str = "", code: str = "") -> None:
        self._coordinator.note_outcome(self.trace, self._counted, outcome, detail, code=code)


def _stamp_of(current: Record | None) -> str | None:
    return None if current is None or current.is_tombstone else str(current.stamp)


def _describe_mismatch(current: Record | None) -> str:
    stamp = _stamp_of(current)
    return "there is no such key" if stamp is None else f"the key's stamp is {stamp}"


def _cancellation_in(group: BaseExceptionGroup[BaseException], strategy: str) -> BaseException | None:
    """What a strategy raises out of its nursery if it fails while it is cancelled: without its own errors, so that the
    operation ends as any other that is cancelled. None: it was not cancelled."""
    broken, cancelled = group.split(MAY_RAISE)
    if broken is not None:
        _log.error("strategy %s failed in a nursery of its own", strategy, exc_info=broken)
    return cancelled


def check_key(key: bytes, *, internal: bool = False) -> None:
    """
    Raises:
      Refused: it can be no key, or it is one of the cluster's own and the caller a client.
    """
    if not 1 <= len(key) <= KEY_BYTES_MAX:
        raise Refused("bad_key", f"the key has {len(key):,} bytes; keys have 1 to {KEY_BYTES_MAX:,}")
    if not internal and key.startswith(RESERVED):
        raise Refused("bad_key", "keys that begin with \\0trikv/ are the cluster's own; choose another")


def _note_nothing(write: Write) -> None:
    pass
