"""The probe: reads and writes on keys of its own, through the mode in force, judged as they come.

What a mode promises is in its strategy's words. The probe says whether the promise is kept, here and now: it asks the
coordinator as a client would, and `core/probe.py` judges what it is told. A strategy that breaks its promise once in a
thousand reads is found out within half a minute on an idle cluster.

**Sessions.** All counts belong to a session, which begins anew when something changes what may be expected: another
mode, the end of a switch, records that an operator gave up. Each session has keys of its own, so that nothing of the
one before has to be explained. While a switch from or to an AP mode is under way, the session is judged as AP. What is
under way when a session ends is not judged.

**Operations** come in turns of `AT_ONCE`, and so many at most are under way. One in `READS_PER_WRITE` + 1 is a write.
Where a mode is at fault, it mostly is just after a write, or during it: so every write is followed by a read of its key
at once, and half of the reads ask for the key that was written last.

**Keys** begin with `RESERVED`. The front refuses such keys, and scans leave them out. They are spread over the
partitions by their hashes. Keys of former sessions are deleted. So are keys of which too much is in doubt, and others
take their place; while so many wait to be deleted that `USED_MAX` are in use, such a key is read and not written.

**Cost.** `RATE_MOST` operations a second while no client asks for anything, or while the event loop is idle enough to
serve both. How late the probe's own task wakes up tells how busy it is. Where it wakes `LATE_S` late, the probe keeps
to `SHARE` of what clients ask for. The operations of a turn are stepped in one task (`coordinator/steps.py`), have one
limit, and share their frames, so that one costs less than one of a client's. At full load the master's time for a
client's operation is 1 to 2 % more than without the probe (`bench/probe.py`). Nothing of it counts as a client's
operation or as load.

Left out: keys of clients. What they read and write is never looked at.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Final, NamedTuple

import trio

from trikv.api import Promise
from trikv.coordinator.coordinator import RESERVED, Coordinator
from trikv.coordinator.deadlines import SharedLimit, limit_of_task
from trikv.coordinator.steps import carry_out
from trikv.coordinator.trace import RequestTrace
from trikv.core.configuration import Cluster
from trikv.core.errors import Outcome, TrikvError
from trikv.core.probe import ProbedOperation, Register, Tallied, Violation
from trikv.master.document import Document
from trikv.master.events import EventLog
from trikv.master.membership import Membership
from trikv.master.operations import Operations
from trikv.net.doors import Doors
from trikv.registry import Registry

KEYS: Final = 32
AT_ONCE: Final = 8
READS_PER_WRITE: Final = 15
USED_MAX: Final = 256
RATE_MOST: Final = 160.0  # operations a second
RATE_LEAST: Final = 1.0
SHARE: Final = 0.012
FEW_RATE: Final = 50.0  # clients' operations a second; below it there is room for more of the probe's, however late
LATE_S: Final = 0.003
LOOK_S: Final = 0.5  # between two looks at how busy the master is
CALM_S: Final = 3.0
DELETE_TIMEOUT_S: Final = 5.0
_PREFIX: Final = RESERVED + b"probe/"

_log = logging.getLogger(__name__)


class Basis(NamedTuple):
    """What an expectation rests on. When it changes, the session ends.

    `is_consistent`: the mode, and every mode that a partition is still settling from, promises CP. `upheavals`: how
    often the mode was switched or records were given up, so that two changes that cancel out are noticed as well.
    """

    mode: str
    is_consistent: bool
    upheavals: int


class ProbeSession:
    """What is known since the basis last changed."""

    def __init__(self, name: str, basis: Basis, began_s: float) -> None:
        self.name = name
        self.basis = basis
        self.began_s = began_s
        self.tallied = Tallied()
        self.registers = [self._make(number) for number in range(KEYS)]
        self.used: set[bytes] = set()  # keys that may have a value
        self._generation = 0

    def _make(self, number: int, generation: int = 0) -> Register:
        name = f"{self.name}/{number}" + (f".{generation}" if generation else "")
        return Register(name, self.tallied, is_consistent=self.basis.is_consistent)

    def renew(self, number: int) -> Register:
        """Go on with another key in place of one of which too much is in doubt."""
        self._generation += 1
        register = self.registers[number] = self._make(number, self._generation)
        return register


class Probe:
    """The probe of one master. `run` it beside the others."""

    def __init__(
        self,
        document: Document,
        membership: Membership,
        coordinator: Coordinator,
        operations: Operations,
        registry: Registry,
        events: EventLog,
        doors: Doors,
    ) -> None:
        self._document = document
        self._membership = membership
        self._coordinator = coordinator
        self._operations = operations
        self._registry = registry
        self._events = events
        self._doors = doors
        self._judged: tuple[Cluster, bool] | None = None  # of which document it is known whether all modes are CP
        self._session = self._begin()
        self._turn = 0
        self._written = 0  # the number of the key that was written last
        self._rate = RATE_MOST
        self._under_way = 0  # operations
        self._late_s: list[float] = []  # by how much turns came too late, since the last look

    async def run(self) -> None:
        """Probe until cancelled."""
        await self._await_founding()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_to_rate)
            nursery.start_soon(self._delete_former)
            while True:
                await self._await_turn()
                if count := AT_ONCE - self._under_way:
                    self._under_way += count
                    nursery.start_soon(self._take_turn, count)

    # --- what is told -------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """All of it; times in milliseconds since the session began."""
        self._renew()
        session, tallied = self._session, self._session.tallied
        stale = tallied.stale

        def ms(time_s: float) -> float:
            return round(1000 * (time_s - session.began_s), 3)

        def tell(violation: Violation) -> dict[str, Any]:
            return {
                "rule": violation.rule,
                "told": violation.told,
                "key": violation.key,
                "operations": [
                    {
                        "what": one.what,
                        "value": one.count,
                        "began_ms": ms(one.began_s),
                        "ended_ms": ms(one.ended_s),
                        "outcome": one.outcome.value,
                        "trace": one.evidence.id if isinstance(one.evidence, RequestTrace) else None,
                    }
                    for one in violation.operations
                ],
            }

        return {
            **self.summarise(),
            "promise": (Promise.CP if session.basis.is_consistent else Promise.AP).value,
            "reads": tallied.reads,
            "writes": tallied.writes,
            "rate": round(self._rate, 1),
            "violations": [tell(violation) for violation in tallied.violations],
            "violation_count": tallied.violation_count,
            "stale": {
                "reads": stale.reads,
                "worst_ms": round(1000 * stale.worst_s, 3),
                "mean_ms": round(1000 * stale.sum_s / stale.reads, 3) if stale.reads else 0.0,
                "worst_versions": stale.worst_versions,
            },
        }

    def summarise(self) -> dict[str, Any]:
        """What the state of the cluster says of it."""
        self._renew()
        session, tallied = self._session, self._session.tallied
        return {
            "enabled": True,
            "mode": session.basis.mode,
            "since_s": round(trio.current_time() - session.began_s, 1),
            "verdict": tallied.verdict.value,
            "operations": tallied.reads + tallied.writes,
            "refused": tallied.refused,
            "unknown": tallied.unknown,
            "violations": tallied.violation_count,
            "stale_reads": tallied.stale.reads,
        }

    # --- sessions -----------------------------------------------------------------------------------------------------

    def _basis(self) -> Basis:
        cluster = self._document.cluster
        if self._judged is None or self._judged[0] is not cluster:
            modes = {configuration.mode for p in cluster.partitions for configuration in p.history} | {cluster.mode}
            consistent = all(self._registry.strategy(mode).promise is Promise.CP for mode in modes)
            self._judged = cluster, consistent
        return Basis(cluster.mode, self._judged[1], self._operations.upheavals)

    def _begin(self) -> ProbeSession:
        return ProbeSession(f"{self._document.cluster.term}-{self._doors.new_id()}", self._basis(), trio.current_time())

    def _renew(self) -> None:
        """Begin a new session if the basis has changed. Operations under way belong to the former one."""
        if self._session.basis != self._basis():
            former, self._session = self._session, self._begin()
            self._session.used |= former.used  # to be deleted some time

    def _is_over(self, session: ProbeSession) -> bool:
        return session is not self._session or session.basis != self._basis()

    # --- operations ---------------------------------------------------------------------------------------------------

    async def _await_turn(self) -> None:
        interval_s = AT_ONCE * (1 + 1 / READS_PER_WRITE) / self._rate
        began_s = trio.current_time()
        due_s = (began_s // interval_s + 1) * interval_s
        if due_s <= began_s:  # as they are rounded
            due_s += interval_s
        await trio.sleep_until(due_s)
        self._late_s.append(trio.current_time() - due_s)

    async def _take_turn(self, count: int) -> None:
        """Carry out so many operations at once, so that their messages share frames."""
        with trio.CancelScope(deadline=trio.current_time() + self._coordinator.timeout_s) as scope:
            await carry_out((partial(self._probe, SharedLimit(scope)) for _ in range(count)), at_once=count)

    async def _probe(self, limit: SharedLimit) -> None:
        """Read a key, or write one and read it."""
        limit_of_task.set(limit)
        try:
            self._renew()
            self._turn += 1
            if self._turn % READS_PER_WRITE == 0:
                number = self._doors.dice.randrange(KEYS)
                await self._write(number, limit)
                await self._read(number, limit)
            else:
                is_random = self._doors.dice.random() < 0.5
                await self._read(self._doors.dice.randrange(KEYS) if is_random else self._written, limit)
        finally:
            self._under_way -= 1

    async def _write(self, number: int, limit: SharedLimit) -> None:
        """Write the next value of a key, unless another write of it is under way, or too much of it is in doubt."""
        session = self._session
        register = session.registers[number]
        if register.is_under_way:
            return
        if register.is_muddy:
            if len(session.used) >= USED_MAX:
                return
            register = session.renew(number)
        self._written = number
        count = register.begin_write()
        key = _key_of(register)
        session.used.add(key)
        trace = RequestTrace("")
        began_s = trio.current_time()
        outcome: Outcome | None = None
        try:
            await self._coordinator.put(key, b"%d" % count, trace=trace, internal=True)
            outcome = Outcome.COMMITTED
        except TrikvError as error:
            outcome = error.kind.outcome
        finally:
            self._discount(trace)
            if limit.failure is not None:
                outcome = limit.failure.kind.outcome
            if outcome is None or self._is_over(session):
                register.drop_write()
            else:
                done = ProbedOperation("put", count, began_s, trio.current_time(), outcome, trace)
                self._report(register.end_write(done))

    async def _read(self, number: int, limit: SharedLimit) -> None:
        session = self._session
        register = session.registers[number]
        known = register.begin_read()
        trace = RequestTrace("")
        began_s = trio.current_time()
        outcome: Outcome | None = None
        count: int | None = None
        try:
            record = await self._coordinator.get(_key_of(register), trace=trace, internal=True)
            outcome, count = Outcome.COMMITTED, 0 if record is None else _count_of(record.value)
        except TrikvError as error:
            outcome = error.kind.outcome
        finally:
            self._discount(trace)
            if limit.failure is not None:
                outcome = limit.failure.kind.outcome
            # After the session, or the time of this register, its key may have been deleted.
            if outcome is not None and not self._is_over(session) and session.registers[number] is register:
                done = ProbedOperation("get", count, began_s, trio.current_time(), outcome, trace)
                self._report(register.end_read(known, done))

    def _report(self, violation: Violation | None) -> None:
        if violation is None:
            return
        told = self._session.tallied.violations
        for done in violation.operations if told and told[-1] is violation else ():
            if isinstance(done.evidence, RequestTrace) and not done.evidence.id:
                self._coordinator.traces.pin(done.evidence)
        mode = self._session.basis.mode
        _log.error("mode %s has broken its promise: %s", mode, violation.told)
        if self._session.tallied.violation_count == 1:
            self._events.note("promise_violated", mode=mode, rule=violation.rule, why=violation.told)

    def _discount(self, trace: RequestTrace) -> None:
        """The probe's calls are no load."""
        for note in trace.notes:
            self._membership.discount(note.replica)

    # --- around -------------------------------------------------------------------------------------------------------

    async def _await_founding(self) -> None:
        """Wait until the cluster holds something, or no worker enlists any more.

        Until the first store, each worker that enlists is given its share at once. After it, shares have to be moved.
        """
        while not self._coordinator.stored:
            before = self._document.cluster
            await trio.sleep(CALM_S)
            if before.formed and len(before.workers) == len(self._document.cluster.workers):
                return

    async def _keep_to_rate(self) -> None:
        """Probe the less the more clients have to wait."""
        before, before_s = self._asked(), trio.current_time()
        while True:
            await trio.sleep(LOOK_S)
            now, now_s = self._asked(), trio.current_time()
            if late_s := self._late_s:
                clients = (now - before) / max(now_s - before_s, 1e-3)
                self._rate = rate_beside(clients, sum(late_s) / len(late_s))
                self._late_s, before, before_s = [], now, now_s

    def _asked(self) -> int:
        return sum(self._coordinator.outcomes.values())

    async def _delete_former(self) -> None:
        """Delete what former sessions wrote, those of former masters among them."""
        await self._find_former()
        while True:
            await trio.sleep(LOOK_S)
            session = self._session
            present = {_key_of(register) for register in session.registers}
            for key in sorted(session.used - present):
                if await self._delete(key):
                    session.used.discard(key)
                await trio.sleep(LOOK_S)

    async def _find_former(self) -> None:
        """Look for keys that a former master's probe left behind."""
        after: bytes | None = None
        while True:
            try:
                page = await self._coordinator.scan(_PREFIX, after=after, limit=USED_MAX, internal=True)
            except TrikvError:
                await trio.sleep(DELETE_TIMEOUT_S)  # not all partitions can be read yet
                continue
            except Exception:  # noqa: BLE001 a strategy is a stranger's code, and only its own scan may end with it
                _log.exception("the probe cannot look for keys of former probes")
                return
            self._session.used.update(key for key, _ in page.items)
            if (after := page.after) is None:
                return

    async def _delete(self, key: bytes) -> bool:
        try:
            await self._coordinator.delete(key, timeout_s=DELETE_TIMEOUT_S, internal=True)
        except TrikvError:
            return False
        return True


def rate_beside(clients: float, late_s: float) -> float:
    """How many operations a second the probe may carry out beside so many of clients, where tasks wake up so late."""
    spare = RATE_MOST * max(0.0, 1.0 - clients / FEW_RATE, 1.0 - late_s / LATE_S)
    return min(RATE_MOST, max(RATE_LEAST, spare, SHARE * clients))


def _key_of(register: Register) -> bytes:
    return _PREFIX + register.key.encode()


def _count_of(value: object) -> int | None:
    """A strategy is a stranger's code: what it returns may be no count, or no value at all."""
    if value is None:
        return 0
    return int(value) if isinstance(value, bytes) and value.isdigit() and len(value) <= 18 else None
