"""A worker, asked over a link as a master would: what it stores, refuses, promises, counts and passes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.helpers import MASTER, NEXT, NOW, OLD, PATIENCE_S, BrokenStorage, Desk, P, Reply, shut
from trikv.core.calls import (
    Op,
    digests_from_wire,
    fetched_from_wire,
    listed_from_wire,
)
from trikv.core.errors import Fault
from trikv.core.record import Record, Version, make_epoch
from trikv.net.doors import Doors
from trikv.net.link import LinkError, dial
from trikv.storage.memory import MemoryStorage
from trikv.testing.inprocess import MemoryTransport
from trikv.worker.worker import LARGE_ANSWERS_BYTES_MAX, QUEUE_BYTES_MAX

# --- registers ----------------------------------------------------------------------------------------------------


async def test_the_newer_record_wins_and_the_older_is_acknowledged(desk: Desk) -> None:
    assert await desk.seq_of() is None
    for seq, held in ((5, 5), (3, 5), (5, 5), (9, 9), (8, 9)):
        assert await desk.put(seq) == Fault.OK
        assert await desk.seq_of() == held


async def test_a_record_comes_back_as_it_was_and_a_tombstone_is_one(desk: Desk) -> None:
    value = bytes(range(256)) * 4096
    await desk.put(1, value)
    _, payload = await desk.ask(Op.FETCH, desk.fetch())
    assert fetched_from_wire(payload) == Record(Version(NOW, 1), Version(NOW, 1), value)
    await desk.put(2, None)
    _, payload = await desk.ask(Op.FETCH, desk.fetch())
    assert fetched_from_wire(payload) == Record(Version(NOW, 2), Version(NOW, 2), None)


async def test_an_epoch_orders_before_a_number(desk: Desk) -> None:
    await desk.put(100, epoch=NOW)
    await desk.put(1, epoch=NEXT)
    assert await desk.seq_of(epoch=NEXT) == 1


async def test_one_frame_is_one_batch_and_each_item_has_its_own_answer(gated: Desk) -> None:
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

ASKING: list[Callable[[Desk, int], tuple[Op, list[Any]]]] = [
    lambda desk, epoch: (Op.STORE, desk.store(1, epoch=epoch)),
    lambda desk, epoch: (Op.FETCH, desk.fetch(epoch=epoch)),
    lambda desk, epoch: (Op.DISCARD, desk.discard(epoch=epoch)),
    lambda desk, epoch: (Op.LIST, desk.list((P, epoch))),
    lambda desk, epoch: (Op.DIGEST, desk.digest((P, epoch))),
    lambda desk, epoch: (Op.FORGET, desk.forget(1, epoch=epoch)),
]


@pytest.mark.parametrize("asking", ASKING)
async def test_any_request_fences(desk: Desk, asking: Callable[[Desk, int], tuple[Op, list[Any]]]) -> None:
    await desk.put(1, epoch=NOW)
    assert (await desk.ask(*asking(desk, NEXT)))[0] == Fault.OK
    assert await desk.ask(Op.STORE, desk.store(9, epoch=NOW)) == (Fault.STALE, [NEXT])
    assert await desk.ask(Op.FETCH, desk.fetch(epoch=NOW)) == (Fault.STALE, [NEXT])
    assert await desk.ask(Op.DISCARD, desk.discard(epoch=NOW)) == (Fault.STALE, [NEXT])
    assert await desk.ask(Op.FORGET, desk.forget(1, epoch=NOW)) == (Fault.STALE, [NEXT])
    _, payload = await desk.ask(Op.LIST, desk.list((P, NOW)))
    assert listed_from_wire(payload) == ([(P, NEXT)], [], False)
    _, payload = await desk.ask(Op.DIGEST, desk.digest((P, NOW)))
    assert digests_from_wire(payload) == ([(P, NEXT)], {})


@pytest.mark.parametrize("asking", ASKING)
async def test_a_promise_survives_a_restart(desk: Desk, asking: Callable[[Desk, int], tuple[Op, list[Any]]]) -> None:
    """Else a restarted worker takes a late store of a dead epoch (schedule 11)."""
    await desk.ask(*asking(desk, NEXT))
    await desk.restart()
    assert await desk.ask(Op.STORE, desk.store(9, epoch=NOW)) == (Fault.STALE, [NEXT])


async def test_a_higher_term_fences_every_partition(desk: Desk) -> None:
    await desk.put(1, partition=P)
    await desk.put(1, partition=P + 1)
    later = make_epoch(4, 1)
    await desk.ask(Op.FETCH, desk.fetch(epoch=later, partition=P + 1))
    await desk.restart()
    assert await desk.ask(Op.STORE, desk.store(9)) == (Fault.STALE, [make_epoch(4, 1)])


async def test_a_fetch_under_a_newer_epoch_waits_until_that_is_promised(gated: Desk) -> None:
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


async def test_a_fetch_of_another_partition_waits_when_the_term_is_new(gated: Desk) -> None:
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
    desk = await Desk(nursery, MemoryStorage()).start()
    await desk.put(1)
    meant = [
        (Op.STORE, desk.store(2)),
        (Op.FETCH, desk.fetch()),
        (Op.DISCARD, desk.discard()),
        (Op.LIST, desk.list((P, NOW))),
        (Op.DIGEST, desk.digest((P, NOW))),
        (Op.FORGET, desk.forget(1)),
    ]
    desk.storage = MemoryStorage()
    await desk.restart()
    for op, arguments in meant:
        assert await desk.ask(op, arguments) == (Fault.OTHER_MEMBER, [])
    assert await desk.seq_of() is None


async def test_a_worker_with_its_store_is_in_the_same_life(desk: Desk) -> None:
    before = desk.worker.incarnation
    await desk.restart()
    assert desk.worker.incarnation == before


async def test_the_first_master_decides_the_cluster_for_good(desk: Desk) -> None:
    other = MASTER._replace(cluster="c-2")
    stranger = await desk.doors.transport.connect(desk.address)
    with pytest.raises(LinkError, match=r"w-1 belongs to cluster c-1, not to c-2; start it with another --data-dir"):
        await dial(stranger, other)
    await desk.put(1)
    await desk.stop()
    with pytest.raises(LinkError, match="belongs to cluster c-1"):
        await desk.start(greet_as=other)
    await desk.restart()


async def test_only_masters_and_workers_have_business_here(desk: Desk) -> None:
    with pytest.raises(LinkError, match="not to a 'tourist'"):
        await dial(await desk.doors.transport.connect(desk.address), MASTER._replace(role="tourist"))


# --- the committer ------------------------------------------------------------------------------------------------


async def test_nothing_is_visible_before_it_is_flushed(gated: Desk) -> None:
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


async def test_what_came_too_late_for_anyone_is_not_applied(gated: Desk, mock_clock: MockClock) -> None:
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


async def test_a_full_queue_answers_busy_and_stores_nothing(gated: Desk) -> None:
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


async def test_a_worker_whose_disk_fails_stops_and_acknowledges_nothing() -> None:
    storage = BrokenStorage()
    replies: list[Reply] = []
    with pytest.raises(ExceptionGroup) as raised:  # noqa: PT012 the block is what fails
        async with trio.open_nursery() as nursery:
            desk = await Desk(nursery, storage).start()
            await desk.put(1)
            storage.broken = True
            replies = desk.post(Op.STORE, desk.store(2))
            await trio.sleep(PATIENCE_S)
    assert raised.group_contains(OSError, match="no space left")
    assert replies == [(Fault.LOST, [])]


# --- discarding, counting, filling up -----------------------------------------------------------------------------


async def test_a_discard_empties_its_partition_alone(desk: Desk) -> None:
    for key in (b"a", b"b"):
        await desk.put(1, key=key)
    await desk.put(1, partition=P + 1)
    assert await desk.ask(Op.DISCARD, desk.discard()) == (Fault.OK, [])
    assert await desk.seq_of(key=b"a") is None
    assert await desk.seq_of(partition=P + 1) == 1
    assert await desk.keys() == 1
    await desk.restart()
    assert await desk.seq_of(key=b"b") is None
    assert await desk.keys() == 1


async def test_within_a_batch_a_discard_has_its_place(gated: Desk) -> None:
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


async def test_a_fetch_that_meets_a_newer_epoch_in_its_own_batch_is_stale(gated: Desk) -> None:
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


async def test_live_keys_are_counted_over_restarts(desk: Desk) -> None:
    for number in range(10):
        await desk.put(1, key=b"k%d" % number, partition=number % 3)
    await desk.put(2, key=b"k0", partition=0)
    await desk.put(2, None, key=b"k1", partition=1)
    await desk.put(1, None, key=b"k2", partition=2)  # older than what is there: no delete
    await desk.put(1, None, key=b"never")
    assert await desk.keys() == 9
    await desk.restart()
    assert await desk.keys() == 9
    await desk.put(3, key=b"k1", partition=1)
    assert await desk.keys() == 10


async def test_a_full_worker_says_so_and_still_stores(desk: Desk) -> None:
    await desk.restart(max_keys=2)
    await desk.put(1, key=b"a")
    assert not await desk.is_full()
    await desk.put(1, key=b"b")
    assert await desk.is_full()
    assert await desk.put(1, key=b"c") == Fault.OK  # else a refused write could surface
    await desk.put(2, None, key=b"a")
    assert await desk.is_full()
    await desk.put(2, None, key=b"b")
    assert not await desk.is_full()


# --- listing ------------------------------------------------------------------------------------------------------


async def test_a_listing_merges_its_partitions_in_pages(desk: Desk) -> None:
    for number in range(20):
        await desk.put(number + 1, key=b"k%02d" % number, partition=P + number % 3)
    await desk.put(1, key=b"k99", partition=P + 9)
    seen: list[bytes] = []
    after = None
    for _ in range(20):
        arguments = desk.list((P, NOW), (P + 1, NOW), (P + 2, NOW), after=after, limit=7)
        fault, payload = await desk.ask(Op.LIST, arguments)
        assert fault == Fault.OK
        stale, rows, more = listed_from_wire(payload)
        assert (stale, [partition for partition, _, _ in rows]) == ([], [P + int(key[1:]) % 3 for _, key, _ in rows])
        seen += [key for _, key, _ in rows]
        if not more:
            break
        assert len(rows) == 7
        after = rows[-1][1]
    assert seen == [b"k%02d" % number for number in range(20)]


async def test_a_listing_names_its_stale_partitions_and_serves_the_others(desk: Desk) -> None:
    await desk.put(1, key=b"a", partition=P)
    await desk.put(1, key=b"b", partition=P + 1)
    await desk.seq_of(epoch=NEXT, partition=P)
    _, payload = await desk.ask(Op.LIST, desk.list((P, NOW), (P + 1, NOW)))
    stale, rows, more = listed_from_wire(payload)
    assert (stale, [key for _, key, _ in rows], more) == ([(P, NEXT)], [b"b"], False)


async def test_a_listing_without_values_has_none(desk: Desk) -> None:
    await desk.put(4, b"long")
    await desk.put(5, None, key=b"tombstone")
    _, payload = await desk.ask(Op.LIST, desk.list((P, NOW), values=False))
    assert listed_from_wire(payload)[1] == [
        (P, b"k", Record(Version(NOW, 4), Version(NOW, 4), b"")),
        (P, b"tombstone", Record(Version(NOW, 5), Version(NOW, 5), None)),
    ]


# --- chains -------------------------------------------------------------------------------------------------------


async def chain(nursery: trio.Nursery, count: int = 3) -> list[Desk]:
    doors = Doors(transport=MemoryTransport())
    return [await Desk(nursery, MemoryStorage(), doors).start(name=f"w-{n}") for n in range(1, count + 1)]


async def test_a_relay_reaches_the_tail_before_it_is_acknowledged(nursery: trio.Nursery) -> None:
    head, middle, tail = await chain(nursery)
    assert await head.put(1, onward=[middle, tail]) == Fault.OK
    assert [await desk.seq_of() for desk in (head, middle, tail)] == [1, 1, 1]


async def test_a_relay_goes_on_where_it_was_not_newer(nursery: trio.Nursery) -> None:
    """What the middle holds may be newer with its own relay still under way: no reason to stop (schedule 8)."""
    head, middle, tail = await chain(nursery)
    await middle.put(5)
    assert await head.put(3, onward=[middle, tail]) == Fault.OK
    assert [await desk.seq_of() for desk in (head, middle, tail)] == [3, 5, 3]


async def test_a_chain_with_a_missing_link_is_broken(nursery: trio.Nursery) -> None:
    head, middle, tail = await chain(nursery)
    await tail.stop()
    assert await head.put(1, onward=[middle, tail]) == Fault.RELAY_BROKE
    assert await middle.seq_of() == 1


async def test_a_tail_in_another_life_breaks_the_chain(nursery: trio.Nursery) -> None:
    head, middle, tail = await chain(nursery)
    arguments = head.store(1, onward=[middle, tail])
    arguments[5][1][1] = "another incarnation"
    assert (await head.ask(Op.STORE, arguments))[0] == Fault.RELAY_BROKE
    assert await tail.seq_of() is None


async def test_a_fenced_tail_refuses_the_relay_and_says_what_it_promised(nursery: trio.Nursery) -> None:
    head, middle, tail = await chain(nursery)
    await tail.seq_of(epoch=NEXT)
    assert await head.ask(Op.STORE, head.store(1, onward=[middle, tail])) == (Fault.STALE, [NEXT])
    assert await tail.seq_of(epoch=NEXT) is None


# --- absurd numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [(1 << 64) - 1, make_epoch(5, (1 << 32) - 1), make_epoch((1 << 32) - 1, 5)])
async def test_an_absurd_epoch_is_never_promised(desk: Desk, epoch: int) -> None:
    assert await desk.put(1) == Fault.OK
    for ask in ASKING:
        op, arguments = ask(desk, epoch)
        fault, payload = await desk.ask(op, arguments)
        assert fault == Fault.BAD_CALL or payload[0] == [[P, NOW]]  # of lists and digests: not served
    await desk.restart()
    assert await desk.seq_of() == 1
    assert await desk.put(2) == Fault.OK


async def test_a_master_of_an_absurd_term_is_turned_away_and_forgotten(desk: Desk) -> None:
    assert await desk.put(1) == Fault.OK
    fault, before = await desk.ask(Op.HEARTBEAT, [])
    for term in ("9999999999", "4294967295", "4000000000"):
        stranger = MASTER._replace(incarnation=f"{term}/nonsense")
        with pytest.raises(LinkError, match="does not believe"):
            await dial(await desk.doors.transport.connect(desk.address), stranger)
    assert await desk.ask(Op.HEARTBEAT, []) == (fault, before)
    assert await desk.put(2) == Fault.OK


async def test_large_values_beyond_what_a_link_takes_are_not_queued_and_small_ones_are(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    transport = MemoryTransport()
    desk = await Desk(nursery, MemoryStorage(), Doors(transport=transport)).start()
    await desk.put(1, bytes(1024 * 1024))
    await desk.put(1, b"small", key=b"small")
    transport.hold(desk.address)
    replies = [desk.post(Op.FETCH, desk.fetch()) for _ in range(100)]
    small = desk.post(Op.FETCH, desk.fetch(key=b"small"))
    await trio.sleep(0.1)
    transport.release(desk.address)
    await trio.sleep(5)
    faults = [fault for [(fault, _)] in replies]
    assert set(faults) == {Fault.OK, Fault.BUSY}
    assert faults.count(Fault.OK) <= 2 * LARGE_ANSWERS_BYTES_MAX // (1024 * 1024)
    assert [fault for fault, _ in small] == [Fault.OK]
    nursery.cancel_scope.cancel()
