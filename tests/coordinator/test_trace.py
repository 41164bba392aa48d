"""A request's trace has exactly the messages that the links carried for it, those after the answer included."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trikv.coordinator.replicas import describe_fault
from trikv.coordinator.trace import KEPT_MAX, MESSAGES_MAX, RequestTrace, Traces
from trikv.core.calls import Op
from trikv.core.errors import Fault, TrikvError
from trikv.core.record import Version
from trikv.net.link import Link
from trikv.testing.inprocess import InProcessCluster

NAMES = {Op.STORE: "store", Op.FETCH: "fetch"}
Sent = dict[bytes, list[tuple[str, str]]]


def spy_on_links(cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch) -> Sent:
    """By key: what the master's links were given, and for which worker."""
    sent: Sent = {}
    call = Link.call

    def note(self: Link, op: int, arguments: list[Any], *rest: Any) -> None:
        is_masters = any(self is watched.peer.link for watched in cluster.master.membership.watched.values())
        if op in NAMES and is_masters and not self._over:
            sent.setdefault(arguments[3], []).append((self.peer.node, NAMES[Op(op)]))
        call(self, op, arguments, *rest)

    monkeypatch.setattr(Link, "call", note)
    return sent


@pytest.mark.parametrize("mode", ["sync", "async", "chain", "quorum"])
async def test_the_messages_are_those_that_the_links_carried(
    mode: str, nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand requests, each of a key of its own, while links hold back what they carry and workers die.

    A put fetches nothing here: what anti-entropy fetches of its key, to compare, is no part of it. What anti-entropy
    stores is: a copy of the write, sent late.
    """
    dice = random.Random(7)
    cluster = await InProcessCluster.start(nursery, mode=mode, workers=4, down_after_s=600.0)
    monkeypatch.setattr(cluster.coordinator.traces, "_kept_max", 1_000)
    sent = spy_on_links(cluster, monkeypatch)
    traces: dict[bytes, RequestTrace] = {}

    async def ask(key: bytes) -> None:
        trace = traces[key] = cluster.coordinator.traces.make()
        with suppress(TrikvError):
            if dice.random() < 0.5:
                await cluster.coordinator.put(key, b"v", trace=trace)
            else:
                await cluster.coordinator.get(key, trace=trace)

    for round_ in range(50):
        victim = dice.choice(cluster.workers)
        is_killed = dice.random() < 0.3
        async with trio.open_nursery() as requests:
            for number in range(20):
                requests.start_soon(ask, b"%d-%d" % (round_, number))
                if number == 10 and is_killed:
                    await cluster.kill(victim)
                elif number == 10:
                    cluster.network.hold(victim.address)
        if is_killed:
            await cluster.restart(victim)
        else:
            cluster.network.release(victim.address)
        await cluster.until_all_up()
    await trio.sleep(30)  # hints are delivered, and late answers have come or are given up

    assert len(traces) == 1_000
    late = 0
    for key, trace in traces.items():
        carried = Counter(
            (worker, what) for worker, what in sent.get(key, ()) if what == "store" or trace.what == "get"
        )
        noted = Counter((note.replica, note.what) for note in trace.notes if note.fault != Fault.NOT_SENT)
        assert noted == carried, (key, trace.describe(describe_fault))
        late += any(note.ended_s is not None and note.ended_s > (trace.ended_s or 0) for note in trace.notes)
    assert late, "nothing came after an answer, so this shows nothing"


async def test_a_trace_tells_when_the_promise_was_met(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, workers=3)
    trace = cluster.coordinator.traces.make()
    await cluster.coordinator.put(b"k", b"v", trace=trace)
    await trio.sleep(1)
    told = trace.describe(describe_fault)
    assert (told["what"], told["key"], told["mode"], told["outcome"]) == ("put", "k", "quorum", "committed")
    assert told["promised_ms"] is not None
    assert [message["ended"] for message in told["messages"]] == ["ok"] * 3
    assert cluster.coordinator.traces.find(trace.id) is trace
    assert cluster.coordinator.traces.latest()[0] is trace


async def test_one_request_in_a_thousand_is_traced_by_itself_and_only_the_latest_are_kept(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=3)
    traces = cluster.coordinator.traces
    for number in range(1_000):
        await cluster.coordinator.put(b"%d" % (number % 10), b"v")
    [sampled] = traces.latest()
    assert sampled.outcome == "committed"
    for _ in range(KEPT_MAX):
        traces.make()
    assert traces.find(sampled.id) is None
    assert sampled.stamp is not None
    assert traces.of_write(sampled.key, sampled.stamp) is None


async def test_a_trace_is_bounded(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    trace = RequestTrace("1")
    for _ in range(2 * MESSAGES_MAX):
        trace.noted("w", "store", lambda fault, payload: None)
    assert len(trace.notes) == MESSAGES_MAX


async def test_a_request_that_is_tried_again_leaves_nothing_of_the_first_try(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    traces = Traces(kept_max=1)
    trace = traces.make()
    for seq in range(3):
        traces.note_stamp(trace, Version(1, seq))
    assert traces.of_write(trace.key, Version(1, 2)) is trace
    traces.make()
    assert not any(traces.of_write(trace.key, Version(1, seq)) for seq in range(3))


async def test_a_request_whose_client_went_away_has_ended(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, workers=3)
    for node in cluster.workers:
        cluster.network.hold(node.address)
    trace = cluster.coordinator.traces.make()
    with trio.move_on_after(0.5):
        await cluster.coordinator.get(b"k", trace=trace)
    told = trace.describe(describe_fault)
    assert (told["outcome"], told["ended_ms"]) == (None, 500.0)
    assert told["detail"].startswith("cancelled")
