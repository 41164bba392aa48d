"""A worker, asked over a link as a master would: what it stores, refuses, promises, counts and passes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers import MASTER, NEXT, NOW, OLD, PATIENCE_S, BrokenStorage, GatedStorage, P, Reply, WorkerHarness, shut
from trikv.core.calls import (
    Op,
    digests_from_wire,
    fetched_from_wire,
    listed_from_wire,
)
from trikv.core.errors import Fault
from trikv.core.record import Record, Version, make_epoch
from trikv.net.doors import Doors, TcpTransport, Transport
from trikv.net.link import LinkError, dial
from trikv.storage.memory import MemoryStorage
from trikv.testing.inprocess import MemoryTransport
from trikv.worker.worker import LARGE_ANSWERS_BYTES_MAX, QUEUE_BYTES_MAX

# --- registers ----------------------------------------------------------------------------------------------------


async def test_the_newer_record_wins_and_the_older_is_acknowledged(harness: WorkerHarness) -> None:
    assert await harness.seq_of() is None
    for seq, held in ((5, 5), (3, 5), (5, 5), (9, 9), (8, 9)):
        assert await harness.put(seq) == Fault.OK
        assert await harness.seq_of() == held


async def test_a_record_comes_back_as_it_was_and_a_tombstone_is_one(harness: WorkerHarness) -> None:
    value = bytes(range(256)) * 4096
    await harness.put(1, value)
    _, payload = await harness.ask(Op.FETCH, harness.fetch())
    assert fetched_from_wire(payload) == Record(Version(NOW, 1), Version(NOW, 1), value)
    await harness.put(2, None)
    _, payload = await harness.ask(Op.FETCH, harness.fetch())
    assert fetched_from_wire(payload) == Record(Version(NOW, 2), Version(NOW, 2), None)


async def test_an_epoch_orders_before_a_number(harness: WorkerHarness) -> None:
    await harness.put(100, epoch=NOW)
    await harness.put(1, epoch=NEXT)
    assert await harness.seq_of(epoch=NEXT) == 1


async def test_one_frame_is_one_batch_and_each_item_has_its_own_answer(gated: WorkerHarness) -> None:
    gate = shut(gated)
    first = gated.post(Op.STORE, gated.store(1))
    await wait_all_tasks_blocked()
    replies = [
        gated.post(Op.STORE, gated.store(3)),
        gated.post(Op.STORE, gated.store(2)),
        gated.post(Op.STORE, gated.store(9, epoch=OLD)),
        gated.post(Op.FETCH, gated.fetch(epoch=OLD)),
        gated.post(Op.STORE, gated.store(1, partition=P + 1)),
    ]
    gate.set()
    await wait_all_tasks_blocked()
    stale = (Fault.STALE, [NOW])
    assert [*first, *(reply for [reply] in replies)] == [(0, []), (0, []), (0, []), stale, stale, (0, [])]
    assert await gated.seq_of() == 3


# --- the fence ----------------------------------------------------------------------------------------------------

ASKING: list[Callable[[WorkerHarness, int], tuple[Op, list[Any]]]] = [
    lambda harness, epoch: (Op.STORE, harness.store(1, epoch=epoch)),
    lambda harness, epoch: (Op.FETCH, harness.fetch(epoch=epoch)),
    lambda harness, epoch: (Op.DISCARD, harness.discard(epoch=epoch)),
    lambda harness, epoch: (Op.LIST, harness.list((P, epoch))),
    lambda harness, epoch: (Op.DIGEST, harness.digest((P, epoch))),
    lambda harness, epoch: (Op.FORGET, harness.forget(1, epoch=epoch)),
]


@pytest.mark.parametrize("asking", ASKING)
async def test_any_request_fences(
    harness: WorkerHarness, asking: Callable[[WorkerHarness, int], tuple[Op, list[Any]]]
) -> None:
    await harness.put(1, epoch=NOW)
    assert (await harness.ask(*asking(harness, NEXT)))[0] == Fault.OK
    assert await harness.ask(Op.STORE, harness.store(9, epoch=NOW)) == (Fault.STALE, [NEXT])
    assert await harness.ask(Op.FETCH, harness.fetch(epoch=NOW)) == (Fault.STALE, [NEXT])
    assert await harness.ask(Op.DISCARD, harness.discard(epoch=NOW)) == (Fault.STALE, [NEXT])
    assert await harness.ask(Op.FORGET, harness.forget(1, epoch=NOW)) == (Fault.STALE, [NEXT])
    _, payload = await harness.ask(Op.LIST, harness.list((P, NOW)))
    assert listed_from_wire(payload) == ([(P, NEXT)], [], False)
    _, payload = await harness.ask(Op.DIGEST, harness.digest((P, NOW)))
    assert digests_from_wire(payload) == ([(P, NEXT)], {})


@pytest.mark.parametrize("asking", ASKING)
async def test_a_promise_survives_a_restart(
    harness: WorkerHarness, asking: Callable[[WorkerHarness, int], tuple[Op, list[Any]]]
) -> None:
    """Else a restarted worker takes a late store of a dead epoch (schedule 11)."""
    await harness.ask(*asking(harness, NEXT))
    await harness.restart()
    assert await harness.ask(Op.STORE, harness.store(9, epoch=NOW)) == (Fault.STALE, [NEXT])


async def test_a_higher_term_fences_every_partition(harness: WorkerHarness) -> None:
    await harness.put(1, partition=P)
    await harness.put(1, partition=P + 1)
    later = make_epoch(4, 1)
    await harness.ask(Op.FETCH, harness.fetch(epoch=later, partition=P + 1))
    await harness.restart()
    assert await harness.ask(Op.STORE, harness.store(9)) == (Fault.STALE, [make_epoch(4, 1)])


async def test_a_fetch_under_a_newer_epoch_waits_until_that_is_promised(gated: WorkerHarness) -> None:
    await gated.put(1)
    gate = shut(gated)
    newer = gated.post(Op.FETCH, gated.fetch(epoch=NEXT))
    await wait_all_tasks_blocked()
    again = gated.post(Op.FETCH, gated.fetch(epoch=NEXT))
    await wait_all_tasks_blocked()
    assert (newer, again) == ([], [])
    gate.set()
    await wait_all_tasks_blocked()
    assert [newer[0][0], again[0][0]] == [Fault.OK, Fault.OK]


async def test_a_fetch_of_another_partition_waits_when_the_term_is_new(gated: WorkerHarness) -> None:
    await gated.put(1, partition=P)
    gate = shut(gated)
    gated.post(Op.FETCH, gated.fetch(epoch=make_epoch(4, 1), partition=P + 1))
    await wait_all_tasks_blocked()
    old_term = gated.post(Op.FETCH, gated.fetch(partition=P))
    gate.set()
    await wait_all_tasks_blocked()
    assert old_term == [(Fault.STALE, [make_epoch(4, 1)])]


# --- other lives --------------------------------------------------------------------------------------------------


async def test_another_incarnation_is_not_answered_for(nursery: trio.Nursery) -> None:
    """A wiped worker must not answer for its former life (schedule 6)."""
    harness = await WorkerHarness(nursery, MemoryStorage()).start()
    await harness.put(1)
    meant = [
        (Op.STORE, harness.store(2)),
        (Op.FETCH, harness.fetch()),
        (Op.DISCARD, harness.discard()),
        (Op.LIST, harness.list((P, NOW))),
        (Op.DIGEST, harness.digest((P, NOW))),
        (Op.FORGET, harness.forget(1)),
    ]
    harness.storage = MemoryStorage()
    await harness.restart()
    for op, arguments in meant:
        assert await harness.ask(op, arguments) == (Fault.OTHER_MEMBER, [])
    assert await harness.seq_of() is None


async def test_a_worker_with_its_store_is_in_the_same_life(harness: WorkerHarness) -> None:
    before = harness.worker.incarnation
    await harness.restart()
    assert harness.worker.incarnation == before


async def test_the_first_master_decides_the_cluster_for_good(harness: WorkerHarness) -> None:
    other = MASTER._replace(cluster="c-2")
    stranger = await harness.doors.transport.connect(harness.address)
    with pytest.raises(LinkError, match=r"w-1 belongs to cluster c-1, not to c-2; start it with another --data-dir"):
        await dial(stranger, other)
    await harness.put(1)
    await harness.stop()
    with pytest.raises(LinkError, match="belongs to cluster c-1"):
        await harness.start(greet_as=other)
    await harness.restart()


async def test_only_masters_and_workers_have_business_here(harness: WorkerHarness) -> None:
    with pytest.raises(LinkError, match="not to a 'tourist'"):
        await dial(await harness.doors.transport.connect(harness.address), MASTER._replace(role="tourist"))


# --- the committer ------------------------------------------------------------------------------------------------


async def test_nothing_is_visible_before_it_is_flushed(gated: WorkerHarness) -> None:
    await gated.put(1)
    gate = shut(gated)
    second = gated.post(Op.STORE, gated.store(2))
    fresh = gated.post(Op.STORE, gated.store(2, key=b"fresh"))
    await wait_all_tasks_blocked()
    assert await gated.seq_of() == 1
    assert await gated.seq_of(key=b"fresh") is None
    listing = gated.post(Op.LIST, gated.list((P, NOW)))
    await wait_all_tasks_blocked()
    assert (second, fresh, listing) == ([], [], [])
    gate.set()
    await wait_all_tasks_blocked()
    assert (second, fresh) == ([(Fault.OK, [])], [(Fault.OK, [])])
    _, rows, _ = listed_from_wire(listing[0][1])
    assert [(key, record.version.seq) for _, key, record in rows] == [(b"fresh", 2), (b"k", 2)]


async def test_what_came_too_late_for_anyone_is_not_applied(gated: WorkerHarness, mock_clock: MockClock) -> None:
    gate = shut(gated)
    gated.post(Op.STORE, gated.store(1, key=b"first"))
    await wait_all_tasks_blocked()
    late = gated.post(Op.STORE, gated.store(1, key=b"late"), timeout_s=1)
    await wait_all_tasks_blocked()
    mock_clock.jump(2)
    gate.set()
    assert await gated.seq_of(key=b"late") is None
    assert await gated.seq_of(key=b"first") == 1
    assert late == []


async def test_a_full_queue_answers_busy_and_stores_nothing(gated: WorkerHarness) -> None:
    gate = shut(gated)
    gated.post(Op.STORE, gated.store(1, key=b"first"))
    await wait_all_tasks_blocked()
    value = bytes(1 << 20)
    count = QUEUE_BYTES_MAX // len(value) + 2
    replies = []
    for number in range(count):
        replies.append(gated.post(Op.STORE, gated.store(1, value, key=b"k%d" % number), size_bytes=len(value)))
        if number % 8 == 7:
            await wait_all_tasks_blocked()
    await wait_all_tasks_blocked()
    busy = [number for number, reply in enumerate(replies) if reply == [(Fault.BUSY, [])]]
    assert 2 <= len(busy) <= 4
    gate.set()
    await wait_all_tasks_blocked()
    assert all(reply == [(Fault.OK, [])] for number, reply in enumerate(replies) if number not in busy)
    assert await gated.seq_of(key=b"k%d" % busy[0]) is None
    assert await gated.seq_of(key=b"k0") == 1


async def test_over_sockets_too_nothing_is_acknowledged_before_its_batch_is_durable(nursery: trio.Nursery) -> None:
    storage = GatedStorage()
    harness = await WorkerHarness(nursery, storage, Doors(transport=TcpTransport())).start()
    await harness.put(1)  # under this epoch, so fetches do not wait for it
    storage.gate = trio.Event()
    replies = [harness.post(Op.STORE, harness.store(1, key=b"k%d" % number)) for number in range(3)]
    for key in (b"k0", b"k3"):
        assert await harness.seq_of(key=key) is None  # this answer would take an acknowledgement along
        replies.append(harness.post(Op.STORE, harness.store(1, key=key)))
    assert replies == [[]] * 5
    storage.gate.set()
    assert await harness.ask(Op.STORE, harness.store(1, key=b"k4")) == (Fault.OK, [])
    assert replies == [[(Fault.OK, [])]] * 5


@pytest.mark.parametrize("transport", [MemoryTransport, TcpTransport])
async def test_a_worker_whose_disk_fails_stops_and_acknowledges_nothing(transport: Callable[[], Transport]) -> None:
    storage = BrokenStorage()
    replies: list[Reply] = []
    with pytest.raises(ExceptionGroup) as raised:  # noqa: PT012 the block is what fails
        async with trio.open_nursery() as nursery:
            harness = await WorkerHarness(nursery, storage, Doors(transport=transport())).start()
            await harness.put(1)
            storage.broken = True
            replies = harness.post(Op.STORE, harness.store(2))
            await trio.sleep(PATIENCE_S)
    assert raised.group_contains(OSError, match="no space left")
    assert replies == [(Fault.LOST, [])]


# --- discarding, counting, filling up -----------------------------------------------------------------------------


async def test_a_discard_empties_its_partition_alone(harness: WorkerHarness) -> None:
    for key in (b"a", b"b"):
        await harness.put(1, key=key)
    await harness.put(1, partition=P + 1)
    assert await harness.ask(Op.DISCARD, harness.discard()) == (Fault.OK, [])
    assert await harness.seq_of(key=b"a") is None
    assert await harness.seq_of(partition=P + 1) == 1
    assert await harness.keys() == 1
    await harness.restart()
    assert await harness.seq_of(key=b"b") is None
    assert await harness.keys() == 1


async def test_within_a_batch_a_discard_has_its_place(gated: WorkerHarness) -> None:
    await gated.put(1, key=b"old")
    gate = shut(gated)
    gated.post(Op.STORE, gated.store(1, partition=P + 1))
    await wait_all_tasks_blocked()
    gated.post(Op.STORE, gated.store(5, key=b"before"))
    gated.post(Op.STORE, gated.store(5, key=b"old"))
    gated.post(Op.DISCARD, gated.discard())
    gated.post(Op.STORE, gated.store(2, key=b"old"))
    gated.post(Op.STORE, gated.store(2, key=b"after"))
    gate.set()
    assert await gated.seq_of(key=b"before") is None
    assert await gated.seq_of(key=b"old") == 2
    assert await gated.seq_of(key=b"after") == 2
    assert await gated.keys() == 3


async def test_a_fetch_that_meets_a_newer_epoch_in_its_own_batch_is_stale(gated: WorkerHarness) -> None:
    """Answered after a discard under the newer epoch, it would tell an older coordinator that the key is absent."""
    await gated.put(1)
    gate = shut(gated)
    gated.post(Op.FETCH, gated.fetch(epoch=NOW, partition=P + 1))  # its promise keeps the committer busy
    await wait_all_tasks_blocked()
    waiting = gated.post(Op.FETCH, gated.fetch(epoch=NEXT))
    await wait_all_tasks_blocked()
    gated.post(Op.DISCARD, gated.discard(epoch=make_epoch(3, 3)))
    await wait_all_tasks_blocked()
    gate.set()
    await wait_all_tasks_blocked()
    assert waiting == [(Fault.STALE, [make_epoch(3, 3)])]


async def test_live_keys_are_counted_over_restarts(harness: WorkerHarness) -> None:
    for number in range(10):
        await harness.put(1, key=b"k%d" % number, partition=number % 3)
    await harness.put(2, key=b"k0", partition=0)
    await harness.put(2, None, key=b"k1", partition=1)
    await harness.put(1, None, key=b"k2", partition=2)  # older than what is there: no delete
    await harness.put(1, None, key=b"never")
    assert await harness.keys() == 9
    await harness.restart()
    assert await harness.keys() == 9
    await harness.put(3, key=b"k1", partition=1)
    assert await harness.keys() == 10


async def test_a_full_worker_says_so_and_still_stores(harness: WorkerHarness) -> None:
    await harness.restart(max_keys=2)
    await harness.put(1, key=b"a")
    assert not await harness.is_full()
    await harness.put(1, key=b"b")
    assert await harness.is_full()
    assert await harness.put(1, key=b"c") == Fault.OK  # else a refused write could surface
    await harness.put(2, None, key=b"a")
    assert await harness.is_full()
    await harness.put(2, None, key=b"b")
    assert not await harness.is_full()


# --- listing ------------------------------------------------------------------------------------------------------


async def test_a_listing_merges_its_partitions_in_pages(harness: WorkerHarness) -> None:
    for number in range(20):
        await harness.put(number + 1, key=b"k%02d" % number, partition=P + number % 3)
    await harness.put(1, key=b"k99", partition=P + 9)
    seen: list[bytes] = []
    after = None
    for _ in range(20):
        arguments = harness.list((P, NOW), (P + 1, NOW), (P + 2, NOW), after=after, limit=7)
        fault, payload = await harness.ask(Op.LIST, arguments)
        assert fault == Fault.OK
        stale, rows, more = listed_from_wire(payload)
        assert (stale, [partition for partition, _, _ in rows]) == ([], [P + int(key[1:]) % 3 for _, key, _ in rows])
        seen += [key for _, key, _ in rows]
        if not more:
            break
        assert len(rows) == 7
        after = rows[-1][1]
    assert seen == [b"k%02d" % number for number in range(20)]


async def test_a_listing_names_its_stale_partitions_and_serves_the_others(harness: WorkerHarness) -> None:
    await harness.put(1, key=b"a", partition=P)
    await harness.put(1, key=b"b", partition=P + 1)
    await harness.seq_of(epoch=NEXT, partition=P)
    _, payload = await harness.ask(Op.LIST, harness.list((P, NOW), (P + 1, NOW)))
    stale, rows, more = listed_from_wire(payload)
    assert (stale, [key for _, key, _ in rows], more) == ([(P, NEXT)], [b"b"], False)


async def test_a_listing_without_values_has_none(harness: WorkerHarness) -> None:
    await harness.put(4, b"long")
    await harness.put(5, None, key=b"tombstone")
    _, payload = await harness.ask(Op.LIST, harness.list((P, NOW), values=False))
    assert listed_from_wire(payload)[1] == [
        (P, b"k", Record(Version(NOW, 4), Version(NOW, 4), b"")),
        (P, b"tombstone", Record(Version(NOW, 5), Version(NOW, 5), None)),
    ]


# --- chains -------------------------------------------------------------------------------------------------------


async def chain(nursery: trio.Nursery, count: int = 3) -> list[WorkerHarness]:
    doors = Doors(transport=MemoryTransport())
    return [await WorkerHarness(nursery, MemoryStorage(), doors).start(name=f"w-{n}") for n in range(1, count + 1)]


async def test_a_relay_reaches_the_tail_before_it_is_acknowledged(nursery: trio.Nursery) -> None:
    head, middle, tail = await chain(nursery)
    assert await head.put(1, onward=[middle, tail]) == Fault.OK
    assert [await harness.seq_of() for harness in (head, middle, tail)] == [1, 1, 1]


async def test_a_relay_goes_on_where_it_was_not_newer(nursery: trio.Nursery) -> None:
    """What the middle holds may be newer with its own relay still under way: no reason to stop (schedule 8)."""
    head, middle, tail = await chain(nursery)
    await middle.put(5)
    assert await head.put(3, onward=[middle, tail]) == Fault.OK
    assert [await harness.seq_of() for harness in (head, middle, tail)] == [3, 5, 3]


async def test_a_chain_with_a_missing_link_is_broken(nursery: trio.Nursery) -> None:
    head, middle, tail = await chain(nursery)
    await tail.stop()
    assert await head.put(1, onward=[middle, tail]) == Fault.RELAY_BROKE
    assert await middle.seq_of() == 1


async def test_a_tail_in_another_life_breaks_the_chain(nursery: trio.Nursery) -> None:
    head, middle, tail = await chain(nursery)
    arguments = head.store(1, onward=[middle, tail])
    arguments[9][1][1] = "another incarnation"
    assert (await head.ask(Op.STORE, arguments))[0] == Fault.RELAY_BROKE
    assert await tail.seq_of() is None


async def test_a_fenced_tail_refuses_the_relay_and_says_what_it_promised(nursery: trio.Nursery) -> None:
    head, middle, tail = await chain(nursery)
    await tail.seq_of(epoch=NEXT)
    assert await head.ask(Op.STORE, head.store(1, onward=[middle, tail])) == (Fault.STALE, [NEXT])
    assert await tail.seq_of(epoch=NEXT) is None


# --- absurd numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [(1 << 64) - 1, make_epoch(5, (1 << 32) - 1), make_epoch((1 << 32) - 1, 5)])
async def test_an_absurd_epoch_is_never_promised(harness: WorkerHarness, epoch: int) -> None:
    assert await harness.put(1) == Fault.OK
    for ask in ASKING:
        op, arguments = ask(harness, epoch)
        fault, payload = await harness.ask(op, arguments)
        assert fault == Fault.BAD_CALL or payload[0] == [[P, NOW]]  # of lists and digests: not served
    await harness.restart()
    assert await harness.seq_of() == 1
    assert await harness.put(2) == Fault.OK


async def test_a_master_of_an_absurd_term_is_turned_away_and_forgotten(harness: WorkerHarness) -> None:
    assert await harness.put(1) == Fault.OK
    fault, before = await harness.ask(Op.HEARTBEAT, [])
    for term in ("9999999999", "4294967295", "4000000000"):
        stranger = MASTER._replace(incarnation=f"{term}/nonsense")
        with pytest.raises(LinkError, match="does not believe"):
            await dial(await harness.doors.transport.connect(harness.address), stranger)
    assert await harness.ask(Op.HEARTBEAT, []) == (fault, before)
    assert await harness.put(2) == Fault.OK


async def test_large_values_beyond_what_a_link_takes_are_not_queued_and_small_ones_are(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    transport = MemoryTransport()
    harness = await WorkerHarness(nursery, MemoryStorage(), Doors(transport=transport)).start()
    await harness.put(1, bytes(1024 * 1024))
    await harness.put(1, b"small", key=b"small")
    transport.hold(harness.address)
    replies = [harness.post(Op.FETCH, harness.fetch()) for _ in range(100)]
    small = harness.post(Op.FETCH, harness.fetch(key=b"small"))
    await trio.sleep(0.1)
    transport.release(harness.address)
    await trio.sleep(5)
    faults = [fault for [(fault, _)] in replies]
    assert set(faults) == {Fault.OK, Fault.BUSY}
    assert faults.count(Fault.OK) <= 2 * LARGE_ANSWERS_BYTES_MAX // (1024 * 1024)
    assert [fault for fault, _ in small] == [Fault.OK]
    nursery.cancel_scope.cancel()
