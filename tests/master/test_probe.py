"""The probe in a running cluster: it finds out a strategy that lies now and then, and accuses none that does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import under
from trikv.api import Answer, Promise, Record, ReplicaSet, Strategy, Write
from trikv.coordinator.coordinator import RESERVED
from trikv.core.errors import Refused, Unknown
from trikv.core.probe import DOUBTFUL_MAX, NEVER_WRITTEN, STALE, VIOLATIONS_KEPT
from trikv.master.probe import AT_ONCE, CALM_S, FEW_RATE, KEYS, LATE_S, RATE_LEAST, RATE_MOST, SHARE, Probe, rate_beside
from trikv.testing.inprocess import InProcessCluster
from trikv_quorum import Quorum


class Forgetful(Strategy):
    """Quorum, but for one read in a thousand, which returns what the key's read before returned."""

    name = "forgetful"
    promise = Promise.CP
    protocol = "as quorum, now and then from memory"
    gives_up = "the truth, once in a thousand reads"
    use_when = "a probe is to be tested"

    def __init__(self) -> None:
        self.reads = 0
        self.lies = 0
        self.known: dict[bytes, list[Record | None]] = {}

    def copies(self, n: int) -> int:
        return n // 2 + 1

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write, need=replicas.majority)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        self.reads += 1
        answers: Sequence[Answer] = await replicas.fetch(key, need=replicas.majority)
        record = await replicas.agree(key, answers)
        known = self.known.setdefault(key, [])
        if not known or known[-1] != record:
            known.append(record)
        if self.reads >= 1_000 and len(known) > 1:
            self.reads = 0
            self.lies += 1
            return known[-2]
        return record


async def start(nursery: trio.Nursery, cluster: InProcessCluster) -> Probe:
    """A probe that runs, and has waited for the cluster to be founded."""
    probe = cluster.master.probe()
    nursery.start_soon(probe.run)
    await trio.sleep(CALM_S)
    return probe


async def test_a_strategy_that_lies_once_in_a_thousand_reads_is_found_out_in_half_a_minute(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    strategy = Forgetful()
    cluster = await InProcessCluster.start(nursery, mode="forgetful", strategies=[strategy])
    probe = await start(nursery, cluster)
    await trio.sleep(30 - CALM_S)
    told = probe.describe()
    assert strategy.lies >= 1
    assert (told["verdict"], told["violation_count"]) == ("broken", strategy.lies)
    violation = told["violations"][0]
    assert violation["rule"] == STALE
    assert [one["what"] for one in violation["operations"]][1] == "get"
    for one in violation["operations"]:
        trace = cluster.coordinator.traces.find(one["trace"])
        assert trace is not None
        assert violation["key"].encode() in trace.key
        assert trace.notes
    events = cluster.master.events.latest(100)
    assert [event["rule"] for event in events if event["kind"] == "promise_violated"] == [STALE]
    assert cluster.master.status.describe()["probe"]["violations"] == strategy.lies


@pytest.mark.parametrize("mode", ["quorum", "async"])
async def test_no_mode_is_accused_while_workers_die_and_come_back(
    nursery: trio.Nursery, autojump_clock: MockClock, mode: str
) -> None:
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=5, down_after_s=2.0)
    probe = await start(nursery, cluster)
    for node in cluster.workers[:3]:
        await trio.sleep(3)
        cluster.network.hold(node.address)
        await trio.sleep(4)
        cluster.network.release(node.address)
        await trio.sleep(4)
        await cluster.kill(node)
        await trio.sleep(6)
        await cluster.restart(node)
    await trio.sleep(5)
    told = probe.describe()
    assert told["violations"] == []
    assert told["verdict"] == "kept"
    assert told["reads"] > 2_000
    # Quorum and async do without any one worker; the others said that something went wrong.
    assert (told["refused"] + told["unknown"] > 0) == (mode in ("sync", "chain"))


async def test_a_switch_begins_anew_and_a_switch_from_ap_is_judged_as_ap_until_it_ends(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="async")
    probe = await start(nursery, cluster)
    await trio.sleep(5)
    first = probe.describe()
    assert (first["mode"], first["promise"]) == ("async", "AP")
    await cluster.master.operations.switch_mode("quorum")
    await trio.sleep(1)
    now = probe.describe()
    assert (now["mode"], now["promise"], now["verdict"]) == ("quorum", "CP", "kept")
    assert now["operations"] < first["operations"]
    await cluster.master.operations.switch_mode("async")
    await trio.sleep(0.2)
    assert (probe.describe()["promise"], probe.describe()["verdict"]) == ("AP", "measuring")


async def test_a_pair_of_switches_that_cancel_out_is_noticed(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    probe = await start(nursery, cluster)
    await trio.sleep(2)
    before = probe._session
    await cluster.master.operations.switch_mode("chain")
    await cluster.master.operations.switch_mode("quorum")
    await trio.sleep(1)
    assert probe._session is not before
    assert probe._session.basis._replace(upheavals=0) == before.basis._replace(upheavals=0)


async def test_clients_neither_see_nor_touch_its_keys(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    probe = await start(nursery, cluster)
    await trio.sleep(10)
    await cluster.coordinator.put(b"\0a", b"1")
    await cluster.coordinator.put(b"z", b"2")
    assert [key for key, _ in (await cluster.coordinator.scan()).items] == [b"\0a", b"z"]
    assert [key for key, _ in (await cluster.coordinator.scan(limit=1)).items] == [b"\0a"]
    assert (await cluster.coordinator.scan(RESERVED)).items == []
    assert len((await cluster.coordinator.scan(RESERVED, internal=True)).items) > KEYS / 2
    some = RESERVED + b"x"
    for ask in (cluster.coordinator.get, cluster.coordinator.delete):
        with pytest.raises(Refused, match="the cluster's own"):
            await ask(some)
    with pytest.raises(Refused, match="the cluster's own"):
        await cluster.coordinator.put(some, b"v")
    with pytest.raises(Refused, match="the cluster's own"):
        cluster.master.status.locate(some)
    assert probe.describe()["verdict"] == "kept"


async def test_it_counts_neither_as_operations_nor_as_load(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    coordinator, membership = cluster.coordinator, cluster.master.membership
    before = membership.calls()
    probe = await start(nursery, cluster)
    await trio.sleep(10)
    assert probe.describe()["operations"] > 1_000
    assert sum(coordinator.outcomes.values()) == 0
    assert sum(each for histogram in coordinator.durations.values() for each in histogram.counts) == 0
    assert coordinator.in_flight == 0
    assert coordinator.hot_keys.hottest()[1] == 0
    assert coordinator.traces.latest() == []
    assert sum((membership.calls() - before).values()) < 100
    assert not coordinator.traces._of_writes


async def test_keys_of_former_sessions_and_masters_are_deleted(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    async with trio.open_nursery() as former:
        former.start_soon(cluster.master.probe().run)
        await trio.sleep(10)
        former.cancel_scope.cancel()
    await cluster.restart_master()
    await cluster.until_all_up()
    probe = await start(nursery, cluster)
    await trio.sleep(60)
    kept = {key for key, _ in (await cluster.coordinator.scan(RESERVED, limit=1000, internal=True)).items}
    present = {RESERVED + b"probe/" + register.key.encode() for register in probe._session.registers}
    assert kept <= present
    assert probe.describe()["verdict"] == "kept"


async def test_without_workers_it_waits_and_says_so(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum", workers=0)
    probe = await start(nursery, cluster)
    await trio.sleep(30)
    assert (probe.describe()["operations"], probe.describe()["verdict"]) == (0, "measuring")
    for _ in range(3):
        await cluster.add_worker()
    await trio.sleep(10)
    assert probe.describe()["verdict"] == "kept"


async def test_it_does_not_end_the_founding_of_a_cluster(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Until the first store, a worker that enlists is given its share at once, and nothing has to be moved."""
    cluster = await InProcessCluster.start(nursery, mode="quorum", workers=3)
    nursery.start_soon(cluster.master.probe().run)
    for _ in range(2):
        await trio.sleep(0.9 * CALM_S)
        node = await cluster.add_worker()
        await cluster.until(partial(under, cluster, node))
    assert not cluster.master.cluster.stored
    assert all(partition.settled for partition in cluster.master.cluster.partitions)
    await cluster.until(lambda: cluster.master.cluster.stored, patience_s=2.1 * CALM_S)


async def test_refused_and_unknown_are_counted(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, mode="sync", timeout_s=0.5, down_after_s=60.0)
    probe = await start(nursery, cluster)
    await trio.sleep(3)
    cluster.network.hold(cluster.workers[0].address)
    await trio.sleep(10)
    with pytest.raises((Refused, Unknown)):
        await cluster.coordinator.put(b"k", b"v")
    told = probe.describe()
    assert told["refused"] > 0
    assert told["violation_count"] == 0


def test_it_does_the_less_the_more_clients_have_to_wait() -> None:
    assert rate_beside(0, 1.0) == RATE_MOST  # nobody has to wait
    assert rate_beside(20_000, 0) == RATE_MOST  # nobody has to wait for long
    assert rate_beside(FEW_RATE, LATE_S / 2) == RATE_MOST / 2
    assert rate_beside(1_000, LATE_S) == SHARE * 1_000
    assert rate_beside(FEW_RATE, LATE_S) == RATE_LEAST
    assert rate_beside(20_000, LATE_S) == RATE_MOST
    rates = [rate_beside(1_000, LATE_S * step / 100) for step in range(200)]
    assert rates == sorted(rates, reverse=True)


class Held(Quorum):
    """Quorum, but for what a test wants: writes and deletes that fail, or wait for ever, when they are sent, reads that
    wait for a while or for ever before they ask, and what reads return."""

    name = "held"

    def __init__(self) -> None:
        self.fails = False
        self.waits = False
        self.reads_wait = False
        self.waiting = 0  # reads
        self.gates: dict[bytes, trio.Event] = {}  # by key, what the next read of it waits for
        self.returns: Callable[[bytes, Record | None], Record | None] = lambda key, record: record

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await super().write(write, replicas)
        if self.fails:
            raise RuntimeError("the test wants it so")
        if self.waits:
            await trio.sleep_forever()

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        if (gate := self.gates.pop(key, None)) is not None:
            await gate.wait()
        if self.reads_wait:
            self.waiting += 1
            await trio.sleep_forever()
        return self.returns(key, await super().read(key, replicas))


async def test_a_read_that_outlives_its_key_is_not_judged(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too much of the key becomes doubtful during the read, so another takes its place, and it is deleted."""
    monkeypatch.setattr("trikv.master.probe.KEYS", 4)
    strategy = Held()
    cluster = await InProcessCluster.start(nursery, mode="held", strategies=[strategy], timeout_s=60.0)
    probe = await start(nursery, cluster)
    await trio.sleep(5)
    held = RESERVED + b"probe/" + probe._session.registers[0].key.encode()
    strategy.gates[held] = gate = trio.Event()
    await cluster.until(lambda: not strategy.gates)
    strategy.fails = True
    await trio.sleep(10)
    strategy.fails = False
    await trio.sleep(10)
    page = await cluster.coordinator.scan(RESERVED, limit=1000, internal=True)
    assert held not in [key for key, _ in page.items]
    gate.set()
    await trio.sleep(1)
    assert probe.describe()["violations"] == []


async def test_what_gets_no_decision_in_time_is_counted_and_not_left_out(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that was sent is unknown, a read is refused; both end with the turn that began them."""
    monkeypatch.setattr("trikv.master.probe.KEYS", 4)
    strategy = Held()
    cluster = await InProcessCluster.start(nursery, mode="held", strategies=[strategy], timeout_s=1.0)
    probe = await start(nursery, cluster)
    await trio.sleep(5)
    before = probe.describe()
    assert (before["refused"], before["unknown"]) == (0, 0)
    strategy.gates = {RESERVED + b"probe/" + one.key.encode(): trio.Event() for one in probe._session.registers}
    await cluster.until(lambda: not strategy.gates)
    await trio.sleep(1.5)
    assert probe.describe()["refused"] == 4
    strategy.waits = True
    await trio.sleep(3)
    now = probe.describe()
    assert now["unknown"] > 0
    assert now["reads"] > before["reads"]
    assert (now["verdict"], now["violations"]) == ("kept", [])


async def test_no_more_is_under_way_at_once_however_long_reads_wait(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    strategy = Held()
    cluster = await InProcessCluster.start(nursery, mode="held", strategies=[strategy], timeout_s=60.0)
    probe = await start(nursery, cluster)
    await trio.sleep(5)
    strategy.reads_wait = True
    await trio.sleep(20)
    assert strategy.waiting == AT_ONCE
    assert probe.describe()["violations"] == []


async def test_what_it_uses_is_bounded_however_long_all_is_in_doubt(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trikv.master.probe.KEYS", 4)
    monkeypatch.setattr("trikv.master.probe.USED_MAX", 10)
    strategy = Held()
    cluster = await InProcessCluster.start(nursery, mode="held", strategies=[strategy])
    strategy.fails = True
    probe = await start(nursery, cluster)
    await trio.sleep(15)
    session = probe._session
    assert len(session.used) == 10
    assert session.tallied.unknown <= DOUBTFUL_MAX * 10
    reads = session.tallied.reads
    assert reads > 1_000
    strategy.fails = False
    await trio.sleep(15)
    assert session.tallied.reads > reads + 1_000
    assert len(session.used) <= 4
    assert all(not register.is_muddy for register in session.registers)
    assert probe.describe()["violations"] == []


async def test_the_evidence_of_the_violations_that_are_told_is_kept(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    strategy = Held()
    cluster = await InProcessCluster.start(nursery, mode="held", strategies=[strategy])
    first: dict[bytes, Record | None] = {}
    strategy.returns = first.setdefault
    probe = await start(nursery, cluster)
    await trio.sleep(15)
    told = probe.describe()
    assert told["violation_count"] > 100
    assert len(told["violations"]) == VIOLATIONS_KEPT
    for violation in told["violations"]:
        for one in violation["operations"]:
            assert cluster.coordinator.traces.find(one["trace"]) is not None
    assert len([event for event in cluster.master.events.latest(100) if event["kind"] == "promise_violated"]) == 1


@pytest.mark.parametrize("value", [b"soup", b"1e3", b"9" * 40, "1", 3.5, b""])
async def test_a_strategy_that_returns_nonsense_is_told_and_ends_nothing(
    value: Any, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    strategy = Held()
    strategy.returns = lambda key, record: None if record is None else record._replace(value=value)
    cluster = await InProcessCluster.start(nursery, mode="held", strategies=[strategy])
    probe = await start(nursery, cluster)
    await trio.sleep(1)
    assert probe.describe()["violations"][0]["rule"] == NEVER_WRITTEN
    assert probe.describe()["violations"][0]["operations"][0]["value"] is None


async def test_a_strategy_that_cannot_be_listed_ends_nothing(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listing(self: Held, replicas: ReplicaSet) -> ReplicaSet | None:
        raise RuntimeError("the test wants it so")

    monkeypatch.setattr(Held, "listing", listing)
    cluster = await InProcessCluster.start(nursery, mode="held", strategies=[Held()])
    probe = await start(nursery, cluster)
    await trio.sleep(10)
    assert probe.describe()["verdict"] == "kept"


async def test_records_that_an_operator_gave_up_are_no_violation(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """All replicas lose their disks."""
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    probe = await start(nursery, cluster)
    await trio.sleep(10)
    for node in cluster.workers:
        await cluster.restart(node, wiped=True)
    await cluster.until_all_up()
    await trio.sleep(10)
    assert probe.describe()["refused"] > 0
    told = await cluster.master.operations.recover(accept_loss=True)
    assert told["lost_members"] == sorted(node.worker.id for node in cluster.workers)
    await trio.sleep(30)
    now = probe.describe()
    assert (now["verdict"], now["violations"]) == ("kept", [])
    assert now["since_s"] < 31


async def test_the_counts_begin_anew_at_once_when_the_mode_changes(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    probe = await start(nursery, cluster)
    await trio.sleep(5)
    probe._rate = RATE_LEAST
    await trio.sleep(1)
    await cluster.master.operations.switch_mode("async")
    told = cluster.master.status.describe()["probe"]
    assert (told["mode"], told["operations"], told["since_s"]) == ("async", 0, 0.0)
