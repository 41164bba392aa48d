"""The worker: versioned registers behind a fence, on one disk.

A worker knows nothing of modes. It applies a store only if it is newer, refuses calls of an older epoch
(`core/fence.py`), passes a relay on, and answers only for the life (incarnation) that it is in. `worker/registers.py`
has what it holds; this file says which peer may send which call, and when that is answered.

Everything that changes the disk goes through one committer task. It takes all that waits, judges it in order, writes
one batch, flushes it once, and then answers every waiting call. So a hundred writers share an fsync. Nothing is visible
before it is durable: while a batch is being flushed, a fetch of one of its keys is answered with the record before, and
digests and listings take their turn between two batches. A fetch under a promised epoch is answered at once; a fetch
under a newer epoch waits until that promise is on disk.

The master must confirm each start before the worker serves anything. The directory may be an older copy, and then the
worker is made another member (`core/lineage.py`).

If the disk fails, the worker stops: after a failed fsync it is not known what is on disk.

Bounds, beyond which a call is answered BUSY and has no effect: `QUEUE_BYTES_MAX` of stores that wait for the committer;
`LISTS_MAX` listings that wait for their turn; of answers that wait for one link `ANSWERS_BYTES_MAX`, or
`LARGE_ANSWERS_BYTES_MAX` before a further large value or listing. No call is kept for longer than `BUDGET_MOST_S`,
whatever its budget says. A worker whose disk is nearly full (`Storage.room`) takes no values, and goes on taking
deletes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import trio

from trikv.api import Room, Storage
from trikv.core import calls, lineage
from trikv.core.calls import (
    Confirm,
    Digest,
    Discard,
    Enlist,
    Fetch,
    Forget,
    Full,
    Heartbeat,
    Hop,
    List,
    Op,
    PassOn,
    PassPart,
    PassRest,
    Renew,
    RpcRequest,
    Store,
)
from trikv.core.errors import Fault
from trikv.core.fence import EpochJudgement
from trikv.core.labels import Labels
from trikv.core.lineage import Starts
from trikv.core.record import JUMP_MAX, TERM_MAX, Record, size_of
from trikv.core.session import Call, Hello, MasterId, PeerError
from trikv.net.doors import Doors, Listening
from trikv.net.link import Link
from trikv.net.peers import Peer
from trikv.net.serve import serve_links
from trikv.worker.counts import CallCounts
from trikv.worker.enlist import Enlistment
from trikv.worker.progress import ProgressMarker
from trikv.worker.registers import Registers

QUEUE_BYTES_MAX: Final = 64 * 1024 * 1024
LARGE_VALUE_BYTES: Final = 64 * 1024
LARGE_ANSWERS_BYTES_MAX: Final = 16 * 1024 * 1024  # that wait for one link; beyond it small answers would be late
ANSWERS_BYTES_MAX: Final = 64 * 1024 * 1024  # a frame of fetches can ask for more than a peer can read in time
LISTS_MAX: Final = 64  # a master sends some ten at once
BUDGET_MOST_S: Final = 60.0  # the longest timeout that a client can ask for
_OVERHEAD_BYTES: Final = 128  # the cost of a queued item beside its key and value

_log = logging.getLogger(__name__)


class _Item(NamedTuple):
    """A call that waits for the committer, with the link for its answer."""

    link: Link
    call_id: int
    deadline_s: float
    request: Store | Fetch | List | Discard | Digest | Forget | Confirm | Renew


_OF_ONE_KEY: Final = (Store, Fetch)
_new: Final = tuple.__new__  # takes half the time of a tuple's own class


class _Neighbour:
    """A link to the next member of a chain. `until_s`: no relay waits for it beyond that time."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.scope = trio.CancelScope()
        self.until_s = 0.0

    async def run(self) -> None:
        with self.scope:
            await self.peer.run()


class Worker:
    """One worker in one life. Make it with `open`, then `run` it."""

    def __init__(
        self,
        worker_id: str,
        incarnation: str,
        storage: Storage,
        registers: Registers,
        storage_name: str,
        doors: Doors,
        max_keys: int | None,
        starts: Starts,
        past: str,
        progress: ProgressMarker | None,
        labels: Labels,
    ) -> None:
        self.id = worker_id
        self.incarnation = incarnation
        self.starts = starts  # the starts that its directory knows; it serves once the present one is confirmed
        self._past = past  # why it is another member than it once was
        self._next: tuple[str, Starts, str] | None = None  # incarnation, starts and past once the batch is durable
        self._progress = progress
        self._progressed = trio.Event()
        self._progressed.set()
        self.cluster: str | None = None
        self.storage_name = storage_name
        self.max_keys = max_keys
        self.labels = labels
        self._process = doors.new_id()
        self._master = ""  # the incarnation of the master of the highest term that has greeted it
        self.counts = CallCounts()
        self._now = trio.lowlevel.current_clock().current_time  # `trio.current_time` costs twice as much
        self._storage = storage
        self.registers = registers
        self._doors = doors
        self._queue: list[_Item] = []
        self._queue_bytes = 0
        self._lists = 0  # listings that wait for the committer, or for their turn after it
        self._waiting = trio.Event()
        self.neighbours: dict[str, _Neighbour] = {}  # by address: the links that a chain's writes are passed on to
        self._sweeps = False
        self._was_full = False
        self._nursery: trio.Nursery | None = None

    @classmethod
    async def open(
        cls,
        worker_id: str | None,
        storage: Storage,
        storage_name: str,
        doors: Doors,
        *,
        max_keys: int | None = None,
        labels: Labels = MappingProxyType({}),
        progress: ProgressMarker | None = None,
    ) -> Worker:
        """The worker whose store this is. An empty store begins a new life. Without a `worker_id`, the store has it.

        A store that is behind `progress` has lost what was acknowledged, and begins a new life as well.
        """
        registers = await Registers.open(storage)
        meta = storage.meta()
        new: dict[str, str] = {}
        starts = lineage.unpack(meta.get("starts", b""))
        reached = 0 if progress is None else progress.read()
        if "incarnation" not in meta:
            new = {"worker": worker_id or f"w-{doors.new_id()}", "incarnation": doors.new_id(16)}
        if registers.batches < reached:
            past = f"its records end at batch {registers.batches}, and batch {reached} was on its disk"
            _log.warning("worker %s: %s; it is another member from now on", worker_id or meta.get("worker"), past)
            new |= {"incarnation": doors.new_id(16), "past": past}
            registers.batches = reached  # else the next start would find the same
        begin = lineage.begin_anew if "incarnation" in new else lineage.begin
        starts = begin(starts, doors.new_id())
        for name, text in new.items():
            registers.note(name, text.encode())
        registers.note("starts", lineage.pack(starts))
        await registers.commit()
        meta = storage.meta()
        worker_id = worker_id or meta["worker"].decode()
        incarnation = meta["incarnation"].decode()
        past = meta.get("past", b"").decode()
        self = cls(
            worker_id, incarnation, storage, registers, storage_name, doors, max_keys, starts, past, progress, labels
        )
        self.cluster = meta["cluster"].decode() if "cluster" in meta else None
        self._master = meta.get("master", b"").decode()
        registers.fence.note_term(MasterId.parse(self._master).term)
        return self

    def hello(self) -> Hello:
        return Hello("worker", self.id, self.incarnation, self.cluster)

    def vitals(self) -> calls.Vitals:
        keys = self.registers.keys
        full = Full.KEYS if self.max_keys is not None and keys >= self.max_keys else Full.NO
        full = Full.DISK if self._disk_is_full() else full
        return calls.Vitals(
            keys,
            full,
            self.storage_name,
            self.max_keys,
            self._process,
            self._master,
            self.starts,
            self.registers.batches,
            self._past,
            self.registers.size_bytes,
            self.labels,
        )

    @property
    def term(self) -> int:
        """The highest that it has promised or was greeted with; 0: it has met no master."""
        return max(self.registers.fence.term, MasterId.parse(self._master).term)

    @property
    def waiting(self) -> int:
        """How many calls wait for the committer."""
        return len(self._queue)

    @property
    def waiting_bytes(self) -> int:
        return self._queue_bytes

    @property
    def listings_waiting(self) -> int:
        return self._lists

    def room(self) -> Room | None:
        """What is free on its disk; None: it has none."""
        return self._storage.room()

    async def run(
        self,
        listening: Listening,
        *,
        masters: Sequence[str] = (),
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled, and be enlisted with that of the `masters` that leads (`enlist.py`)."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._commit_forever)
            if self._progress is not None:
                nursery.start_soon(self._note_progress_forever, self._progress)
            await nursery.start(serve_links, listening.listener, self.hello, self.judge, self.handle)
            if masters:
                enlistment = Enlistment(masters, listening.address, self.hello, self._judge_master, self._doors)
                nursery.start_soon(enlistment.run)
            task_status.started()

    # --- who may talk to us -------------------------------------------------------------------------------------------

    def judge(self, hello: Hello) -> str | None:
        """Why that node may not connect, or None. The first master that this worker meets decides its cluster."""
        if hello.role not in ("master", "worker"):
            return f"a worker talks to masters and workers, not to a {hello.role!r}"
        fence = self.registers.fence
        greeted = MasterId.parse(hello.incarnation if hello.role == "master" else "")
        term, is_known = greeted.term, bool(greeted.name) and greeted.name == MasterId.parse(self._master).name
        if not (fence.believes(term) or (is_known and term <= TERM_MAX - JUMP_MAX)):
            return f"worker {self.id} knows term {fence.term}, and does not believe a master of term {term}"
        if hello.role == "master" and self.cluster is None and hello.cluster is not None:
            # This is durable with the first batch, so before this worker has acknowledged anything to that cluster.
            self.cluster = hello.cluster
            self.registers.note("cluster", hello.cluster.encode())
        if hello.role == "master" and hello.cluster == self.cluster and term > MasterId.parse(self._master).term:
            fence.note_term(term)
            self._master = hello.incarnation
            self.registers.note("master", hello.incarnation.encode())
        if hello.cluster is None:
            return f"this is worker {self.id}; --master wants the RPC address of a master"
        if hello.cluster != self.cluster:
            return (
                f"worker {self.id} belongs to cluster {self.cluster}, not to {hello.cluster}; "
                "start it with another --data-dir to have it join a second cluster"
            )
        return None

    def _is_master(self, hello: Hello) -> bool:
        """Is this a master of the highest term that this worker knows?"""
        return hello.role == "master" and MasterId.parse(hello.incarnation).term >= MasterId.parse(self._master).term

    def _judge_master(self, hello: Hello) -> str | None:
        if hello.role == "standby":  # it says which master leads, and that is all
            if None in (hello.cluster, self.cluster) or hello.cluster == self.cluster:
                return None
            return f"that master belongs to cluster {hello.cluster}, and worker {self.id} to {self.cluster}"
        if hello.role != "master":
            return f"a {hello.role} answers there, not a master; --master wants the master's RPC address"
        return self.judge(hello)

    # --- what comes in ------------------------------------------------------------------------------------------------

    def handle(self, link: Link, incoming: list[Call]) -> None:
        """Answer the calls that can be answered at once, and queue the rest for the committer."""
        now = self._now()
        counted, queue = self.counts.calls, self._queue
        incarnation, is_confirmed = self.incarnation, lineage.is_confirmed(self.starts)
        for call_id, budget_ms, op, *arguments in incoming:
            request = calls.parse(op, arguments)
            counted[op] += 1
            size_bytes = _OVERHEAD_BYTES
            if isinstance(request, _OF_ONE_KEY) and (request.incarnation != incarnation or not is_confirmed):
                self._refuse(link, call_id, request, Fault.OTHER_MEMBER)
                continue
            if isinstance(request, Store):
                value = request.record.value
                if value is not None:
                    size_bytes += len(value)
                    if self._disk_is_exhausted(size_bytes):
                        self._refuse(link, call_id, request, Fault.FULL)
                        continue
                size_bytes += len(request.key)
                if self._queue_bytes + size_bytes > QUEUE_BYTES_MAX:
                    self._refuse(link, call_id, request, Fault.BUSY)
                    continue
            elif isinstance(request, Fetch):
                if self.registers.knows(request.partition, request.epoch):
                    self._answer_fetch(link, call_id, self.registers.durable, request)
                    continue
            elif not self._admit(link, call_id, request):
                continue
            if not queue:
                self._waiting.set()
            self._queue_bytes += size_bytes
            queue.append(_new(_Item, (link, call_id, now + min(budget_ms / 1000, BUDGET_MOST_S), request)))

    def _admit(self, link: Link, call_id: int, request: RpcRequest) -> bool:
        """Is this call, of the rarer ones, to wait for the committer? If not, it is answered here."""
        if isinstance(request, Heartbeat):
            link.answer(call_id, Fault.OK, self.vitals().to_wire())
            return False
        if isinstance(request, Enlist | PassOn | PassPart | PassRest):
            raise PeerError("asked a worker what masters are asked")
        is_of_lives = isinstance(request, Confirm | Renew)
        if request.incarnation != self.incarnation or not (is_of_lives or lineage.is_confirmed(self.starts)):
            self._refuse(link, call_id, request, Fault.OTHER_MEMBER)
            return False
        if is_of_lives and not self._is_master(link.peer):
            raise PeerError("is not the master that may confirm a start")
        if isinstance(request, List):
            if self._lists >= LISTS_MAX:
                self._refuse(link, call_id, request, Fault.BUSY)
                return False
            self._lists += 1
        return True

    def _disk_is_full(self) -> bool:
        """Is less than the reserve free? It stops being full with a quarter more, so that the answer does not flap."""
        room = self._storage.room()
        if room is None:
            return False
        self._was_full = room.free_bytes < room.reserve_bytes * (1.25 if self._was_full else 1)
        return self._was_full

    def _disk_is_exhausted(self, size_bytes: int) -> bool:
        """Would this value, beside what is queued, use the half of the reserve that is for deletes and for the engine?

        The coordinator sends no values to a worker that is full. Values that were sent before it knew are refused here.
        """
        room = self._storage.room()
        return room is not None and room.free_bytes - self._queue_bytes - size_bytes < room.reserve_bytes // 2

    def _answer_fetch(
        self, link: Link, call_id: int, read: Callable[[int, bytes], Record | None], request: Fetch
    ) -> None:
        if link.answers_bytes > ANSWERS_BYTES_MAX:
            self._refuse(link, call_id, request, Fault.BUSY)
            return
        record = read(request.partition, request.key)
        if record is None:
            link.answer(call_id, Fault.OK, [])
            return
        value_bytes = len(record.value or b"")
        if value_bytes >= LARGE_VALUE_BYTES and link.answers_bytes > LARGE_ANSWERS_BYTES_MAX:
            self._refuse(link, call_id, request, Fault.BUSY)
        else:
            link.answer(call_id, 0, calls.record_to_wire(record), 64 + value_bytes)

    # --- the committer ------------------------------------------------------------------------------------------------

    async def _commit_forever(self) -> None:
        lists: deque[_Item] = deque()
        while True:
            if not lists:
                await self._waiting.wait()
            self._waiting = trio.Event()
            items, self._queue, self._queue_bytes = self._queue, [], 0
            now = self._now()
            granted = [item for item in items if self._decide(item, now)]
            await self.registers.commit()
            if self._next is not None:
                (self.incarnation, self.starts, self._past), self._next = self._next, None
            self._progressed.set()
            acks: dict[Link, list[int]] = {}
            for item in granted:
                link, call_id, _, request = item
                if isinstance(request, Store) and not request.onward:
                    if (ids := acks.get(link)) is None:
                        acks[link] = ids = []
                    ids.append(call_id)
                elif isinstance(request, List):
                    lists.append(item)
                else:
                    self._release(item)
            for link, ids in acks.items():
                link.acknowledge(ids)
            # A listing runs between two batches, since it must show only what is durable. One at a time: stores wait.
            if lists:
                self._lists -= 1
                await self._list(lists.popleft())

    def _decide(self, item: _Item, now: float) -> bool:
        """Collect what the item changes. False: the item ends here (it is refused, or too late)."""
        link, call_id, deadline_s, request = item
        registers = self.registers
        if deadline_s <= now:
            self._lists -= isinstance(request, List)
            self.counts.note_fault(request, None)
            return False
        if not isinstance(request, _OF_ONE_KEY):
            if isinstance(request, Confirm | Renew):
                return self._begin_life(item, request)
            if isinstance(request, List | Digest):
                for partition, epoch in request.partitions:
                    registers.pass_fence(partition, epoch)
                return True
        if not registers.pass_fence(request.partition, request.epoch):
            if registers.fence.judge(request.partition, request.epoch) is EpochJudgement.ABSURD:
                self._refuse(link, call_id, request, Fault.BAD_CALL)
            else:
                self._answer_stale(link, call_id, request)
            return False
        if isinstance(request, Store):
            registers.put(request.partition, request.key, request.record)
        elif isinstance(request, Discard):
            registers.discard(request.partition)
        elif isinstance(request, Forget):
            registers.forget(request.partition, request.key, request.version)
        return True

    def _begin_life(self, item: _Item, request: Confirm | Renew) -> bool:
        """Note that this start is confirmed, or that this is another member from now on. A batch has one of these."""
        if request.start != self.starts[-1] or self._next is not None:
            self._refuse(item.link, item.call_id, request, Fault.OTHER_MEMBER)
            return False
        if isinstance(request, Confirm):
            self._next = self.incarnation, self.starts[-1:], self._past
        else:
            _log.warning("worker %s: %s; it is another member from now on", self.id, request.reason)
            starts = lineage.begin_anew(self.starts, self._doors.new_id())
            self._next = self._doors.new_id(16), starts, request.reason
        incarnation, starts, past = self._next
        self.registers.note("incarnation", incarnation.encode())
        self.registers.note("starts", lineage.pack(starts))
        self.registers.note("past", past.encode())
        return True

    async def _note_progress_forever(self, progress: ProgressMarker) -> None:
        while True:
            await self._progressed.wait()
            self._progressed = trio.Event()
            try:
                await progress.write(self.registers.batches)
            except OSError as error:
                _log.warning("how far the records are cannot be noted: %s", error)

    def _refuse(self, link: Link, call_id: int, request: RpcRequest, fault: Fault, payload: Sequence[Any] = ()) -> None:
        self.counts.note_fault(request, fault)
        link.answer(call_id, fault, list(payload))

    def _answer_stale(self, link: Link, call_id: int, request: Store | Fetch | Discard | Forget) -> None:
        self._refuse(link, call_id, request, Fault.STALE, [self.registers.fence.promised(request.partition)])

    def _release(self, item: _Item) -> None:
        """Answer what the batch has made durable."""
        link, call_id, _, request = item
        match request:
            case Store(onward=[hop, *rest]):
                self._relay(item, request, hop, rest)
            case Discard() | Forget() | Confirm() | Renew():
                link.answer(call_id, Fault.OK, [])
            case Digest():
                stale, served = self._sort_out(request.partitions)
                rows = [[partition, *self.registers.summary(partition)] for partition in served]
                link.answer(call_id, Fault.OK, [stale, rows], 64 + 48 * len(rows))
            case Fetch():
                if self.registers.fence.judge(request.partition, request.epoch) is EpochJudgement.STALE:
                    # The same batch promised a newer epoch, and may have discarded the partition under that one.
                    self._answer_stale(link, call_id, request)
                else:
                    self._answer_fetch(link, call_id, self._storage.get, request)

    def _sort_out(self, partitions: list[tuple[int, int]]) -> tuple[list[list[int]], list[int]]:
        """The stale partitions with what was promised of them, and the partitions that may be served."""
        fence = self.registers.fence
        stale = [
            partition for partition, epoch in partitions if fence.judge(partition, epoch) is not EpochJudgement.KNOWN
        ]
        refused = set(stale)
        return (
            [[partition, fence.promised(partition)] for partition in stale],
            [partition for partition, _ in partitions if partition not in refused],
        )

    async def _list(self, item: _Item) -> None:
        link, call_id, deadline_s, request = item
        assert isinstance(request, List)
        if deadline_s <= self._now():
            self.counts.note_fault(request, None)
            return
        if link.answers_bytes > LARGE_ANSWERS_BYTES_MAX:
            self._refuse(link, call_id, request, Fault.BUSY)
            return
        stale, served = self._sort_out(request.partitions)
        page = await self._storage.scan(
            served,
            prefix=request.prefix,
            after=request.after,
            limit=request.limit,
            bytes_max=calls.LIST_BYTES_MAX,
        )
        rows: list[Any] = [
            [partition, key, *calls.record_to_wire(record if request.with_values else calls.without_value(record))]
            for partition, key, record in page.rows
        ]
        size_bytes = sum(64 + len(row[1]) + len(row[6] or b"") for row in rows)
        link.answer(call_id, Fault.OK, [stale, rows, page.more], size_bytes)

    # --- relay along a chain ------------------------------------------------------------------------------------------

    def _relay(self, item: _Item, request: Store, hop: Hop, rest: list[Hop]) -> None:
        """Pass a write on, even if it was not newer here: the next member's copy may still be under way."""
        arguments: list[Any] = [
            request.partition,
            request.epoch,
            hop.incarnation,
            request.key,
            *calls.record_to_wire(request.record),
        ]
        if rest:
            arguments.append([list(further) for further in rest])

        def done(fault: int, payload: list[Any]) -> None:
            if fault == Fault.OK:
                item.link.answer(item.call_id, Fault.OK, [])
            elif fault == Fault.STALE:
                self._refuse(item.link, item.call_id, request, Fault.STALE, payload)
            else:
                self._refuse(item.link, item.call_id, request, Fault.RELAY_BROKE)

        peer = self._neighbour(hop.address, item.deadline_s)
        size_bytes = _OVERHEAD_BYTES + size_of(request.key, request.record)
        if peer.link is not None:
            peer.call(Op.STORE, arguments, item.deadline_s, done, size_bytes)
            return

        async def when_linked() -> None:
            with trio.move_on_at(item.deadline_s):
                if peer.link is None:  # it may have come up before this task ran
                    await peer.wait_changed()
            peer.call(Op.STORE, arguments, item.deadline_s, done, size_bytes)

        assert self._nursery is not None
        self._nursery.start_soon(when_linked)

    def _neighbour(self, address: str, until_s: float) -> Peer:
        """The link to a neighbour. It is dialled at the first relay, and kept while it holds, at least until then."""
        assert self._nursery is not None
        neighbour = self.neighbours.get(address)
        if neighbour is None:
            neighbour = self.neighbours[address] = _Neighbour(Peer(address, self.hello, self._doors))
            self._nursery.start_soon(neighbour.run)
            if len(self.neighbours) == 1 and not self._sweeps:
                self._sweeps = True
                self._nursery.start_soon(self._sweep_forever)
        neighbour.until_s = max(neighbour.until_s, until_s)
        return neighbour.peer

    async def _sweep_forever(self) -> None:
        """Once a second, end the relays that are late, and drop neighbours that cannot be reached any more."""
        while True:
            await trio.sleep(1)
            now = trio.current_time()
            for address, neighbour in list(self.neighbours.items()):
                if (link := neighbour.peer.link) is not None:
                    link.sweep(now)
                elif neighbour.until_s <= now:
                    neighbour.scope.cancel()
                    del self.neighbours[address]
