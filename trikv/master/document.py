"""The cluster's document as this master knows it: what is in force, its revision, and the one way to change it.

One change at a time (`changing`), durable before it takes effect: the config store's compare-and-set first, then
`install`, which makes the change effective in this process, then `changed`.

*A change in doubt.* A change that fails may have been made all the same (`configstore.py`). It is written again until
that is known, and nothing else is changed meanwhile; what was closed for it stays closed, and the rest is served as
before, as while any change is being written. If it cannot be known in time, the master ends (`run` raises), and the
next one reads what the store holds. A store that masters share is waited for without end, since no other master could
do more while it is away.

*Wishes.* What an operator asks for is a `Wish`: its task says so in `wish_of_task`. A wish whose change takes longer
than `TOLD_S` is told of as unknown, and goes on. One that waits for another change so long is withdrawn: it has changed
nothing, and changes nothing any more. One whose change is made waits on, for whatever it waits for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import trio

from trikv.coordinator.partition import PartitionState
from trikv.core.configuration import Cluster
from trikv.core.errors import Refused, Unknown
from trikv.core.histogram import Histogram
from trikv.master.configstore import CHANGE, ConfigConflict, ConfigStore, ConfigStoreError, NotChanged
from trikv.net.signal import Signal

DOUBT_S: Final = 60.0  # for a disk that comes back; what the change has nothing to do with is served meanwhile
DOUBT_AGAIN_S: Final = 0.5
TOLD_S: Final = 5.0

_log = logging.getLogger(__name__)


class Wish:
    """What an operator asked for. `begun`: a change for it was begun. `withdrawn`: none is to be begun any more."""

    def __init__(self) -> None:
        self.begun = False
        self.withdrawn = False


@dataclass(slots=True)
class _Writing:
    """A change that is being written: whose wish it is, if anybody's, since when, and why it is in doubt, if it is."""

    wish: Wish | None
    since_s: float
    doubt: ConfigStoreError | None = None


wish_of_task: Final[ContextVar[Wish | None]] = ContextVar("wish_of_task", default=None)


def note_begun() -> None:
    """What this task's wish asks for was begun for another one already: it is not to be refused any more."""
    if (wish := wish_of_task.get()) is not None:
        wish.begun = True


class Document:
    """
    Args:
      doubt_s: how long a change in doubt is written again.
      may_change: does the store answer, as far as is known? If not, no change is begun.
      name: this master's, unlike any other's: it marks its changes.
      install: makes a document effective; told whether its new configurations are of this coordinator's making.
    """

    def __init__(
        self,
        cluster: Cluster,
        revision: int,
        store: ConfigStore,
        name: str,
        install: Callable[[Cluster, bool], None],
        *,
        doubt_s: float = DOUBT_S,
        may_change: Callable[[], bool] = lambda: True,
    ) -> None:
        self.cluster = cluster
        self.changing = trio.Lock()
        self.changed = Signal()
        self.write_times = Histogram()  # of changes, those that failed included
        self.failures = 0  # of writes: refused by the store, or in doubt
        self._writing: _Writing | None = None
        self._written = Signal()  # a change begins to be written, or ends
        self._doubt_s = doubt_s
        self._may_change = may_change
        self._revision = revision
        self._store = store
        self._name = name
        self._install = install
        self._error: Exception | None = None  # why there is no change any more
        self._ended = trio.Event()

    async def run(self) -> None:
        """Wait for what ends this master.

        Raises:
          ConfigConflict: another master has taken over.
          ConfigStoreError: it cannot be known whether a change was made.
        """
        await self._ended.wait()
        self.check()

    def check(self) -> None:
        """
        Raises:
          ConfigConflict, ConfigStoreError: what ends this master, if anything does.
        """
        if self._error is not None:
            raise self._error

    async def change(
        self, change: Callable[[Cluster], Cluster], *, made_here: bool = False, in_any_case: bool = False
    ) -> None:
        """Make one change durable, then effective. The caller holds `changing`.

        `made_here`: its new configurations are of this coordinator's making, so it knows what was stored under them.
        `in_any_case`: also where the store did not answer lately.

        Raises:
          Refused: it was not made.
          Unknown: it cannot be known whether it was made; this master is about to end.
        """
        if self._error is not None:  # nothing may be built on what is in doubt, or on what another master has changed
            raise Refused("stopping", "the master is about to end")
        changed = change(self.cluster)
        if changed == self.cluster:
            return
        if not (in_any_case or self._may_change()):  # it would be in doubt until the store is back
            raise Refused("no_store", "so the cluster's document cannot be changed")
        try:
            document = changed.to_document() | {CHANGE: f"{self._name}/{self._revision}"}
        except ValueError as error:
            raise Refused("conflict", f"no master could serve the cluster's document then: {error}") from error
        wish = wish_of_task.get()
        if wish is not None:
            if wish.withdrawn:
                raise Refused("operation_under_way", "it was withdrawn, as another change took too long")
            wish.begun = True
        self._set_writing(_Writing(wish, trio.current_time()))
        try:
            self._revision = await self._write(document)
        except ConfigConflict as error:
            self.end(error)
            raise Refused("stopping", "another master has taken over") from error
        except NotChanged as error:
            raise Refused("unavailable", f"the master cannot write the cluster's document: {error}") from error
        except ConfigStoreError as error:
            self.end(error)
            raise Unknown(str(error)) from error
        finally:
            self._set_writing(None)
        self.install(changed, made_here=made_here)

    def why_stuck(self) -> str | None:
        """Why no change is made just now, if one is in doubt, or is being written for too long already."""
        writing = self._writing
        if writing is None or (writing.doubt is None and trio.current_time() - writing.since_s < TOLD_S):
            return None
        why = "the config store does not answer" if writing.doubt is None else str(writing.doubt)
        return f"a change of the cluster's document is in doubt: {why}"

    async def give_up(self, wish: Wish) -> Refused | Unknown:
        """Wait until the wish is to be given up; what its operator is told then."""
        while True:
            writing = self._writing
            if writing is None or (wish.begun and writing.wish is not wish):
                await self._written.wait()
            elif (left_s := writing.since_s + TOLD_S - trio.current_time()) > 0:
                await self._written.wait(left_s)
            elif wish.begun:
                return Unknown(f"{self.why_stuck()}; what was asked for goes on")
            else:
                wish.withdrawn = True
                return Refused("operation_under_way", f"{self.why_stuck()}, and nothing else is changed meanwhile")

    def _set_writing(self, writing: _Writing | None) -> None:
        self._writing = writing
        self._written.notify()

    def install(self, cluster: Cluster, *, made_here: bool = False) -> None:
        """Make this document, which is durable, effective."""
        self.cluster = cluster
        self._install(cluster, made_here)
        self.changed.notify()

    async def note_settled(self, states: Sequence[PartitionState]) -> None:
        """Note durably that their active configurations hold everything, as far as they are still in force."""

        def change(cluster: Cluster) -> Cluster:
            return cluster.with_partitions(
                {
                    state.index: cluster.partitions[state.index].as_settled()
                    for state in states
                    if state.is_current(cluster.term, cluster.partitions[state.index])
                }
            )

        async with self.changing:
            await self.change(change)

    async def _write(self, document: dict[str, Any]) -> int:
        """Make this the document, and know it; the new revision.

        Raises:
          ConfigConflict, NotChanged: it was not made.
          ConfigStoreError: that cannot be known.
        """
        doubt: ConfigStoreError | None = None
        until_s = trio.current_time() + self._doubt_s
        while True:
            with trio.CancelScope(shield=True):  # never stop between writing the document and installing it
                try:
                    return await self._compare_and_set(document)
                except ConfigConflict as conflict:
                    if doubt is None:
                        raise
                    try:
                        found, revision = await self._store.read()
                    except ConfigStoreError as error:
                        _log.warning("%s", error)
                    else:
                        if found is None or found.get(CHANGE) != document[CHANGE]:
                            raise doubt from conflict  # it may have been made, and another one after it
                        return revision
                except NotChanged:
                    if doubt is None:
                        raise
                except ConfigStoreError as error:
                    if doubt is None:
                        _log.error("a change of the cluster's document is in doubt: %s", error)
                        assert self._writing is not None
                        self._writing.doubt = error
                    doubt = ConfigStoreError(f"{error}; whether the change was made is read at the next start")
            assert doubt is not None
            if trio.current_time() >= until_s:
                raise doubt
            try:
                await trio.sleep(DOUBT_AGAIN_S)
            except trio.Cancelled:
                self.end(doubt)  # also where only the caller was cancelled: the next change must not build on it
                raise

    async def _compare_and_set(self, document: dict[str, Any]) -> int:
        began_s = trio.current_time()
        try:
            return await self._store.compare_and_set(document, self._revision)
        except (ConfigConflict, ConfigStoreError):
            self.failures += 1
            raise
        finally:
            self.write_times.note(trio.current_time() - began_s)

    def end(self, error: Exception) -> None:
        """Let `run` end with that error, and change nothing more."""
        self._error = self._error or error
        self._ended.set()
