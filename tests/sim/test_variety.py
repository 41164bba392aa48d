"""Worlds that differ: numbers of replicas, sizes of keys and values, batches; and the texts that stand for sizes."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from trikv.api import Strategy
from trikv.core.errors import Outcome
from trikv.core.record import KEY_BYTES_MAX, VALUE_BYTES_MAX
from trikv.testing.judge.history import Kind
from trikv.testing.sim import Plan, Schedule, Verdict, run_schedule
from trikv.testing.sim.names import EMPTY, Names, sized
from trikv.testing.sim.plan import ScheduledRequest
from trikv.testing.sim.variety import Varied, draw_replicas
from trikv_quorum import Quorum

SHORT = Plan(lasts_s=12.0, requests=60, faults=4)


def schedules(plan: Plan = SHORT, count: int = 60) -> list[Schedule]:
    return [Varied(plan).draw(Quorum(), seed) for seed in range(count)]


@pytest.mark.parametrize("size_bytes", [0, 20, 300, 5_000, VALUE_BYTES_MAX])
def test_a_text_that_says_its_size_stands_for_so_many_bytes(size_bytes: int) -> None:
    names, text = Names(), sized("v7", size_bytes)
    assert len(names.encode(text)) == size_bytes
    assert names.decode(names.encode(text)) == text


def test_a_text_that_is_too_long_for_its_size_stands_for_itself() -> None:
    assert sized("v7", 5) == "v7"


@pytest.mark.parametrize(
    "data", [b"v7.", b"v7 (300 bytes)", b"v7 (300 bytes)...", b"(999,999,999 bytes)", b"\xff.", b"."]
)
def test_bytes_that_only_look_like_it_are_not_taken_for_it(data: bytes) -> None:
    assert Names().decode(data) == data.decode(errors="replace")


def test_numbers_of_replicas_differ_as_far_as_the_strategy_can_serve_them() -> None:
    assert set(Counter(schedule.replicas for schedule in schedules())) == {2, 3, 4, 5}
    assert all(schedule.workers >= schedule.replicas for schedule in schedules())

    class Four(Quorum):
        def copies(self, n: int) -> int:
            if n < 4:
                raise ValueError("too few")
            return 3

    dice = random.Random(1)
    assert {draw_replicas(Four(), dice, 3) for _ in range(60)} == {4, 5}


def test_keys_and_values_have_other_sizes() -> None:
    names = Names()
    drawn = schedules()
    key_bytes = {len(names.encode(key)) for schedule in drawn for key in schedule.keys}
    assert {1, KEY_BYTES_MAX} <= key_bytes
    value_bytes = [one.size_bytes for schedule in drawn for one in schedule.requests if one.size_bytes is not None]
    assert min(value_bytes) == 0
    assert max(value_bytes) > 64 * 1024
    for schedule in drawn:
        assert len(set(schedule.keys)) == len(schedule.keys)
        assert {one.key for one in schedule.requests if one.kind is not Kind.SCAN} <= set(schedule.keys)
        assert sum(one.size_bytes == 0 for one in schedule.requests) <= 1  # a second one could not be told from it


def test_what_the_plan_draws_stays_apart_from_that() -> None:
    for seed in range(20):
        varied, plain = Varied(SHORT).draw(Quorum(), seed), SHORT.draw(Quorum(), seed)
        if varied.replicas == plain.replicas:
            assert varied.faults == plain.faults
            assert Counter(one.kind for one in varied.requests) == Counter(one.kind for one in plain.requests)


def test_some_requests_are_sent_together_by_one_client() -> None:
    batches: dict[tuple[int, int], list[ScheduledRequest]] = {}
    for schedule in schedules():
        for one in schedule.requests:
            if one.batch:
                batches.setdefault((schedule.seed, one.batch), []).append(one)
    assert max(map(len, batches.values())) > 2
    for batch in batches.values():
        assert len({(one.client, one.at_s) for one in batch}) == 1
        assert all(one.kind is not Kind.SCAN for one in batch)


def one_batch(*requests: ScheduledRequest) -> Schedule:
    return Schedule(
        seed=1,
        workers=3,
        replicas=3,
        clients=1,
        partitions=4,
        latency_s=0.01,
        fsync_s=0.001,
        keys=("a", "b"),
        requests=requests,
        faults=(),
    )


def test_a_batch_is_sent_together_and_one_keys_items_keep_their_order(strategies: dict[str, Strategy]) -> None:
    kinds = [(Kind.PUT, "a"), (Kind.PUT, "b"), (Kind.PUT, "a"), (Kind.GET, "a"), (Kind.DELETE, "b"), (Kind.GET, "b")]
    items = [ScheduledRequest(1.0, 0, kind, key, batch=1) for kind, key in kinds]
    run = run_schedule(strategies["quorum"], one_batch(*items, ScheduledRequest(1.0, 0, Kind.GET, "a")))
    assert run.verdict is Verdict.HELD, run.findings
    batch, after = run.history[:6], run.history[6]
    assert len({operation.invoked_s for operation in batch}) == 1
    assert all(operation.outcome is Outcome.COMMITTED for operation in batch)
    put_a, put_b, put_a_again, get_a, _, get_b = batch
    assert (get_a.result, get_b.result) == (put_a_again.value, None)
    returned_s = [operation.returned_s for operation in (put_a, put_a_again, get_a)]
    assert returned_s == sorted(returned_s, key=lambda at_s: at_s or 0.0)
    assert put_b.returned_s == put_a.returned_s  # they were under way at once
    assert after.invoked_s >= max(operation.returned_s or 0.0 for operation in batch)


def test_large_and_empty_values_are_stored_as_they_are(strategies: dict[str, Strategy]) -> None:
    sizes = (VALUE_BYTES_MAX, 0)
    puts = [ScheduledRequest(1.0, 0, Kind.PUT, key, size_bytes=size) for key, size in zip("ab", sizes, strict=True)]
    gets = [ScheduledRequest(2.0, 0, Kind.GET, key) for key in "ab"]
    run = run_schedule(strategies["quorum"], one_batch(*puts, *gets))
    assert [operation.result for operation in run.history[2:4]] == ["v1 (1,048,576 bytes)", EMPTY]
