"""The log of events: whoever reads it misses nothing, or is told; on a virtual clock."""

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trikv.master.events import COUNT_MAX, Event, EventLog, Subscription


def drain(subscription: Subscription) -> list[Event]:
    taken = []
    while (event := subscription.take()) is not None:
        taken.append(event)
    return taken


def numbers(events: list[Event]) -> list[Any]:
    return [event.document.get("n", event.kind) for event in events]


def filled(count: int, *, count_max: int = COUNT_MAX) -> EventLog:
    log = EventLog(7, count_max=count_max)
    for n in range(1, count + 1):
        log.note("counted", n=n)
    return log


async def test_an_event_says_what_when_and_where_it_stands(autojump_clock: MockClock) -> None:
    log = EventLog(3, wall_clock=lambda: "2001-02-03T04:05:06Z")
    await trio.sleep(1.25)
    log.note("worker_down", worker="w-1", partitions=12)
    (event,) = drain(log.subscribe())
    assert event.document == {
        "id": "3-1", "time_s": 1.25, "at": "2001-02-03T04:05:06Z", "kind": "worker_down", "worker": "w-1",
        "partitions": 12,
    }  # fmt: skip
    assert (event.id, event.kind, "\n" in event.text) == ("3-1", "worker_down", False)
    assert log.last_id == "3-1"


async def test_without_a_wall_clock_there_is_no_time_of_day() -> None:
    assert "at" not in drain(filled(1).subscribe())[0].document


async def test_what_is_noted_cannot_be_altered_later() -> None:
    log, workers = EventLog(), ["w-1"]
    log.note("settled", workers=workers)
    workers.append("w-2")
    log.latest(1)[0]["workers"].append("w-3")
    assert log.latest(1)[0]["workers"] == ["w-1"]


async def test_a_watcher_goes_on_after_the_id_that_it_saw_last() -> None:
    log = filled(5)
    assert numbers(drain(log.subscribe())) == [1, 2, 3, 4, 5]
    assert numbers(drain(log.subscribe("7-3"))) == [4, 5]
    assert numbers(drain(log.subscribe("7-0"))) == [1, 2, 3, 4, 5], "the place before the first event"
    assert drain(log.subscribe(log.last_id)) == []


async def test_it_waits_and_is_woken(autojump_clock: MockClock) -> None:
    log = filled(1)
    seen: dict[int, list[Any]] = {1: [], 2: []}

    async def watch(watcher: int) -> None:
        async for event in log.subscribe("7-1"):
            seen[watcher].append(event.document["n"])
            if event.document["n"] == 3:
                return

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for watcher in seen:
                nursery.start_soon(watch, watcher)
            await wait_all_tasks_blocked()
            log.note("counted", n=2)
            await wait_all_tasks_blocked()
            log.note("counted", n=3)
    assert seen == {1: [2, 3], 2: [2, 3]}


async def test_a_watcher_that_stops_waiting_has_lost_nothing(autojump_clock: MockClock) -> None:
    log = filled(0)
    subscription = log.subscribe()
    with trio.move_on_after(15) as waited:
        await anext(subscription)
    assert waited.cancelled_caught
    log.note("counted", n=1)
    assert (await anext(subscription)).document["n"] == 1


@pytest.mark.parametrize(
    "unknown", ["6-3", "8-3", "7-6", "7-4000", "7-", "", "nonsense", "7--1", "7-٣", "7-" + "9" * 99]
)
async def test_a_place_that_is_not_known_is_a_gap_first(unknown: str) -> None:
    gap, *rest = drain(filled(5).subscribe(unknown))
    assert (gap.kind, gap.document["after"]) == ("gap", unknown)
    assert gap.document["reason"]
    assert numbers(rest) == [1, 2, 3, 4, 5]


async def test_a_place_that_is_too_long_ago_is_a_gap_and_the_one_before_what_is_kept_is_none() -> None:
    log = filled(10, count_max=4)
    assert numbers(drain(log.subscribe("7-5"))) == ["gap", 7, 8, 9, 10]
    assert numbers(drain(log.subscribe("7-6"))) == [7, 8, 9, 10]
    assert numbers(drain(log.subscribe())) == [7, 8, 9, 10], "who asks for no place has missed nothing"


async def test_whoever_resumes_at_a_gap_has_no_second_one() -> None:
    log = filled(10, count_max=4)
    gap = log.subscribe("1-1").take()
    assert gap is not None
    assert numbers(drain(log.subscribe(gap.id))) == [7, 8, 9, 10]


async def test_a_watcher_that_is_too_slow_is_told_how_much_it_missed() -> None:
    log = filled(1, count_max=3)
    subscription = log.subscribe()
    assert numbers(drain(subscription)) == [1]
    for n in range(2, 8):
        log.note("counted", n=n)
    gap, *rest = drain(subscription)
    assert (gap.kind, gap.document["missed"], numbers(rest)) == ("gap", 3, [5, 6, 7])


async def test_a_gap_that_has_grown_before_it_is_told_starts_at_what_is_left() -> None:
    log = filled(4, count_max=4)
    subscription = log.subscribe("1-1")
    log.note("counted", n=5)
    assert numbers(drain(subscription)) == ["gap", 2, 3, 4, 5]


async def test_bytes_are_bounded_as_well_as_the_count_and_the_newest_is_always_kept() -> None:
    log = EventLog(7, bytes_max=1000)
    for n in range(20):
        log.note("counted", n=n, padding="x" * 100)
    kept = drain(log.subscribe())
    assert sum(len(event.text) for event in kept) <= 1000
    assert 3 < len(kept) < 9
    assert kept[-1].document["n"] == 19
    log.note("counted", n=20, padding="x" * 5000)
    assert numbers(drain(log.subscribe())) == [20]


async def test_a_new_term_goes_on_counting() -> None:
    log = filled(2)
    log.term = 9
    log.note("term", n=3)
    assert [event.id for event in drain(log.subscribe("7-1"))] == ["7-2", "9-3"]
    assert numbers(drain(log.subscribe("9-2"))) == ["gap", 1, 2, 3], "no such event: 2 was noted in term 7"


async def test_the_latest_come_newest_first() -> None:
    log = filled(5)
    assert [event["n"] for event in log.latest(2)] == [5, 4]
    assert len(log.latest(10)) == 5
    assert json.dumps(log.latest(10))
