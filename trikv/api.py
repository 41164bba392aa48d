"""All that the author of a strategy or of a storage engine imports.

A *strategy* says how a write reaches its replicas, and which answers a read may believe. It runs on the coordinator,
inside the request's deadline, so it needs no timeouts, epochs, retries or error codes. When `write` returns, the write
is committed. When it raises, the coordinator finds out whether bytes had been sent, and tells the client the truth:
refused, or unknown. `plugins/trikv_quorum.py` is a whole strategy.

A *storage engine* keeps one worker's records. Its one hard duty is `commit`: when it returns, the whole batch is on
disk.

Both are found by entry point (group `trikv`), and handed over by the hooks at the end of this file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, NamedTuple, Protocol, overload

import pluggy

from trikv.core.quorums import Need, Needs, Promise
from trikv.core.record import Record, Version

__all__ = [
    "HEAD", "TAIL", "Answer", "Batch", "Need", "Needs", "Page", "Promise", "Provisioner", "Record", "ReplicaSet",
    "Room", "Row", "Storage", "StorageEngine", "Strategy", "Version", "WorkerOrder", "Write", "hookimpl", "hookspec",
    "newest",
]  # fmt: skip


HEAD: Final = Need(1, places=(0,))
TAIL: Final = Need(1, places=(-1,))


class Write(NamedTuple):
    """One write on its way to its replicas. A delete is a write whose record is a tombstone."""

    key: bytes
    record: Record


class Answer(NamedTuple):
    """What one replica holds of the key. `record` is None if it holds nothing."""

    replica: str
    record: Record | None


def newest(answers: Sequence[Answer]) -> Record | None:
    """The record with the highest version among the answers; None if no replica holds one."""
    top: Record | None = None
    for answer in answers:
        record = answer.record
        if record is not None and (top is None or record.version > top.version):
            top = record
    return top


class ReplicaSet(Protocol):
    """Some replicas of one key, in the order of its preference list, made callable for one request.

    A strategy needs no retries and no timeouts of its own. The coordinator bounds the whole request, and cancels the
    strategy when the deadline passes.

    Parts of a set are sets, and may be empty: `rest` of one replica is. A call to an empty set needs nothing, sends
    nothing and answers at once; `fetch` answers an empty list then. `need` is from 1 to `len`. Any other number is a
    mistake of the strategy's: the call raises ValueError, and says which call it was.
    """

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, place: int) -> ReplicaSet: ...

    @overload
    def __getitem__(self, place: slice) -> ReplicaSet: ...

    def __getitem__(self, place: int | slice) -> ReplicaSet:
        """The replica at this place alone, or those of a slice, as in a list.

        Raises:
          IndexError: there are not so many.
        """

    def __iter__(self) -> Iterator[ReplicaSet]:
        """Each replica alone."""

    @property
    def majority(self) -> int:
        """len // 2 + 1."""

    @property
    def head(self) -> ReplicaSet:
        """The first replica alone: the primary."""

    @property
    def tail(self) -> ReplicaSet:
        """The last replica alone."""

    @property
    def rest(self) -> ReplicaSet:
        """All but the first; empty if there is only one replica."""

    def where(self, **labels: str) -> ReplicaSet:
        """Those that have all these labels (`trikv worker --label zone=a`), in order; maybe none."""

    def prefer(self, **labels: str) -> ReplicaSet:
        """All of them, those with these labels first: what `fetch` asks first."""

    def rotate(self) -> ReplicaSet:
        """All of them, beginning with another one at each request, so that `fetch` spreads reads over them."""

    def is_committed(self, key: bytes, answer: Answer) -> bool:
        """Is what this replica holds of the key known to be committed? Then it, or something newer, is on `copies(n)`
        replicas. A replica that holds nothing holds nothing that is in doubt.

        The coordinator knows it of what was written since the master started and the configuration last changed, and of
        all that is older once the replicas have been compared, which takes a second or two. False may only mean that it
        is not known. If `copies(n)` is n, what is committed may be returned, whichever replica answered: a newer
        committed write would be on that replica as well. It holds for answers that this request has fetched.
        """

    def values(self, label: str) -> list[str]:
        """The values that this label has among them, each once, in order. A replica without the label has none."""

    async def store(
        self, write: Write, *, need: int | None = None, onward: ReplicaSet | None = None, in_order: bool = False
    ) -> None:
        """Return once `need` of these replicas (default: all) have the write on their disks.

        The write goes to all of them at once, and laggards finish after the call has returned. With `in_order`, it goes
        to the first replica that can be reached, and to the next one when that fails or is late. With `onward`, each
        replica passes the write on along that chain after storing it, and acknowledges only when the whole chain has
        stored it.

        Raises an exception of the coordinator's as soon as `need` is out of reach; let it pass.
        """

    def store_later(self, write: Write) -> None:
        """Send the write to those of these replicas that this request has not sent it to. Waits for nothing."""

    async def fetch(self, key: bytes, *, need: int | None = None, hedge_after_s: float | None = None) -> list[Answer]:
        """What `need` of these replicas (default: all) hold. Asks `need`, in order, and one more for each that fails or
        is late.

        Late is one that has not answered within `hedge_after_s` (default: a tenth of a second). A smaller number makes
        the slowest reads quicker and costs calls; with 0 all are asked at once, and the first `need` answers count.

        Raises an exception of the coordinator's as soon as `need` is out of reach; let it pass.
        """

    async def agree(self, key: bytes, answers: Sequence[Answer]) -> Record | None:
        """The newest of `answers`, once it is on so many replicas that no later read can miss it.

        It is stored at replicas of this set, so ask the whole preference list for it.
        """


class Strategy(ABC):
    """A replication protocol. One instance serves all requests at once, so it keeps nothing between them."""

    name: ClassVar[str]
    promise: ClassVar[Promise]
    compare_and_set: ClassVar[bool] = True  # set False where a read may be out of date
    gives_up: ClassVar[str]  # one sentence: the price
    use_when: ClassVar[str]  # one sentence: when to choose it
    protocol: ClassVar[str]  # one sentence: how a write and a read go
    paper: ClassVar[str] = ""  # where it is described

    @abstractmethod
    def copies(self, n: int) -> int:
        """W: a committed write is on at least this many of `n` replicas. From 1 to n.

        `n` is the number of replicas that the cluster was founded with, or fewer, down to 1. If workers are missing, a
        partition may go on with fewer replicas, though not with fewer than the master's `--min-copies`.
        """

    @abstractmethod
    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        """Return when the write is committed; raise when it cannot be."""

    @abstractmethod
    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        """The record (a tombstone too), or None if there never was one."""

    def needs(self, n: int) -> Needs | None:
        """Which of `n` replicas a write, and a read, cannot do without, for every `n` for which `copies` answers.

        `Needs(write=Need(n), read=HEAD)`: a write needs all of them, a read the first. `Need(n // 2 + 1, places=(0,))`
        is a majority with the head in it. A write whose need is not up is refused before anything is sent, and the
        client is told which worker is missing; no configuration is made that could not serve; the status, plans and
        `trikv demo --once` judge by it. State what no course of events can do without: a read that asks a second
        replica only now and then needs one.

        None: trikv assumes that a write needs any `copies(n)`, and that a read needs so many replicas that they hold
        every committed write, and `copies(n)` at least; under AP it needs one.
        """
        return None

    def listing(self, replicas: ReplicaSet) -> ReplicaSet | None:
        """The replica whose own listing equals this strategy's reads, if there is one. A scan then asks it alone."""
        return None


# --- storage ------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    partition: int
    key: bytes
    record: Record


class Page(NamedTuple):
    """Rows in key order; `more` says that the scan stopped at its limit, after the last row."""

    rows: list[Row]
    more: bool


@dataclass(slots=True)
class Batch:
    """What one `commit` makes durable: all of it, or nothing. Discards are applied first, then removes, then puts."""

    puts: dict[tuple[int, bytes], Record] = field(default_factory=dict)
    removes: set[tuple[int, bytes]] = field(
        default_factory=set
    )  # rows to remove; a row that does not exist is no error
    discards: list[int] = field(default_factory=list)  # partitions whose records are all removed
    meta: dict[str, bytes] = field(default_factory=dict)  # the worker's own notes: promises, incarnation, counts

    def __bool__(self) -> bool:
        return bool(self.puts or self.removes or self.discards or self.meta)


class Room(NamedTuple):
    """The free space for records, and how much of it should stay free: for deletes, and for the engine's own work."""

    free_bytes: int
    reserve_bytes: int


class Storage(ABC):
    """One worker's records, open. Partitions are integers from 0 to 65,534; keys are ordered as bytes.

    One task at a time calls `commit`. `get` and `scan` are called between commits or during one, and see either all of
    a batch or nothing of it. No method is called after `close`.
    """

    @abstractmethod
    def get(self, partition: int, key: bytes) -> Record | None:
        """The record (a tombstone too); None if there is none. It runs on the event loop, so it must be quick."""

    @abstractmethod
    async def scan(
        self, partitions: Sequence[int], *, prefix: bytes = b"", after: bytes | None = None, limit: int, bytes_max: int
    ) -> Page:
        """Rows of these partitions merged in key order: keys that start with `prefix` and come after `after`.

        Stops after `limit` rows, or after the row with which keys and values exceed `bytes_max` bytes. Tombstones are
        rows too.
        """

    @abstractmethod
    async def commit(self, batch: Batch) -> None:
        """Make the batch durable. On return it is on disk as far as the engine promises (`StorageEngine.durable`)."""

    @abstractmethod
    def meta(self) -> Mapping[str, bytes]:
        """Every note that was committed, the newest of each name."""

    def room(self) -> Room | None:
        """How much more can be stored; None if memory is the only limit. It runs on the event loop, so it must be
        quick.

        While less than the reserve is free, the worker says that it is full, and is sent deletes alone.
        """
        return None

    @abstractmethod
    async def close(self) -> None: ...


class StorageEngine(ABC):
    """How to open a worker's storage."""

    name: ClassVar[str]
    durable: ClassVar[bool]  # does a commit survive the process?

    @abstractmethod
    async def open(self, directory: Path | None) -> Storage:
        """Open or make the store in `directory`, which the caller has locked. None: the engine is not durable.

        Raises:
          OSError: the directory cannot be used; the message names it and the reason.
        """


class WorkerOrder(NamedTuple):
    """A worker that a master wants. `directory` is its own, and may be there from before: then it is that worker."""

    number: int  # counts the workers that this master ordered
    master: str  # the address with which it is to enlist, host:port
    directory: Path
    storage: str  # the name of a storage engine
    port: int = 0  # where it is to listen if that port is free; 0: at any


class WorkerProcess(NamedTuple):
    """A worker's process on the master's machine, which has not ended. `paused`: it is stopped, and can go on."""

    pid: int
    paused: bool


class Provisioner(ABC):
    """Starts and stops workers for a master (`trikv master --start-workers`, `--autoscale`).

    At most one call for each worker is under way at a time, except that `close` may come at any time after the others
    were cancelled. Calls for different workers may overlap.

    What is for breaking things on purpose (`trikv master --break-it`) is optional: a provisioner that has `process`,
    `pause`, `resume` and `kill` says so with `can_break`, and none of them is called otherwise.
    """

    name: ClassVar[str]
    can_break: ClassVar[bool] = False

    @abstractmethod
    async def start(self, order: WorkerOrder) -> str:
        """Start the worker, and answer its id once it runs. It enlists by itself.

        A worker that was started before, and does not run any more, is started again at the address that it had, if
        that can be done.

        Raises:
          OSError: it does not start; the message says why. Nothing of it is left running.
        """

    @abstractmethod
    async def stop(self, number: int) -> None:
        """Stop the worker for good: it holds nothing any more. One that is unknown is none of this provisioner's."""

    @abstractmethod
    async def close(self) -> None:
        """The master ends: stop all workers, paused ones too, and keep what they hold for its next start."""

    def process(self, number: int) -> WorkerProcess | None:
        """The worker's process; None if it does not run. It runs on the event loop, so it must be quick."""
        raise NotImplementedError

    async def pause(self, number: int) -> None:
        """Stop the process where it is: it answers nothing and closes nothing. It must not outlive the master so.

        Raises:
          OSError: it cannot be done; the message says why. So do `resume` and `kill`.
        """
        raise NotImplementedError

    async def resume(self, number: int) -> None:
        """Let a paused process go on."""
        raise NotImplementedError

    async def kill(self, number: int) -> None:
        """End the process as a crash would, and return once it is gone. `start` may start it again."""
        raise NotImplementedError


# --- hooks --------------------------------------------------------------------------------------------------------

hookspec = pluggy.HookspecMarker("trikv")
hookimpl = pluggy.HookimplMarker("trikv")


class Hooks:
    """What a plugin module may offer. pluggy calls each hook once, at the start, and never during a request."""

    @hookspec
    def trikv_strategies(self) -> Sequence[Strategy]:  # type: ignore[empty-body]
        """The replication strategies of this plugin, one instance each."""

    @hookspec
    def trikv_storage_engines(self) -> Sequence[StorageEngine]:  # type: ignore[empty-body]
        """The storage engines of this plugin, one instance each."""

    @hookspec
    def trikv_provisioners(self) -> Sequence[Provisioner]:  # type: ignore[empty-body]
        """The ways of this plugin to start workers, one instance each."""
