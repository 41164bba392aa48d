"""What grows in a step, and what a measurement says of the limit."""

from __future__ import annotations

import pytest

from bench.scale import ON_THE_WAY_BYTES_MAX, QUICK, RAW_BYTES_MAX, STEPS, Row, Step, middle_of
from bench.wrk import Measured


def measured(rate: float, *, idle_cores: float = 1.0, others_cores: float = 0.0, **cpu_us: float) -> Measured:
    return Measured(rate, 0, 1.0, 2.0, 3.0, cpu_us, others_cores, idle_cores)


@pytest.mark.parametrize("steps", [STEPS, QUICK])
def test_one_thing_grows_and_a_step_stays_within_bounds(steps: dict[str, tuple[int, ...]]) -> None:
    for grows, values in steps.items():
        made = [Step.of(grows, at) for at in values]
        assert [step.at for step in made] == list(values) == sorted(values)
        if grows != "keys":
            assert all(step.keys * step.value_bytes <= RAW_BYTES_MAX for step in made)
        if grows != "connections":
            assert all(step.connections * step.value_bytes <= ON_THE_WAY_BYTES_MAX for step in made)
        assert all(min(step.keys, step.connections) >= 1 for step in made)


def test_a_step_is_compared_with_the_middle_one() -> None:
    rows = [Row(Step.of("workers", at)) for at in (3, 5, 9)]
    for row, rate in zip(rows, (300.0, 200.0, 100.0), strict=True):
        for found in row.measured.values():
            cpu_us = {"master": 100.0, "workers": rate}
            found += [measured(rate, **cpu_us), measured(rate * 3, **cpu_us)]
    middle = middle_of(rows)
    assert middle is rows[1]
    told = rows[0].to_json(middle)
    assert (told["rate_ratio"], told["cost_ratio"]) == ({"put": 1.5, "get": 1.5}, {"put": 1.333, "get": 1.333})
    assert " 0.50 " in rows[2].tell("get", middle)


def test_memory_is_told_beside_the_raw_bytes_of_three_copies() -> None:
    row = Row(Step.of("keys", 10_000))
    assert row.memory_ratio is None
    row.key_bytes.append(3 * (12 + 100) * 2.5)
    assert row.memory_ratio == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("told", "limit"),
    [
        (measured(10_000, master=95.0, wrk=20.0), "master"),
        (measured(10_000, master=60.0, wrk=95.0), "wrk"),
        (measured(10_000, master=60.0, wrk=20.0), ""),
        (measured(10_000, idle_cores=0.05, master=60.0, wrk=20.0), "cores"),
        (measured(10_000, idle_cores=0.05, others_cores=1.0, master=60.0, wrk=20.0), "others"),
        (measured(10_000, others_cores=1.0, master=60.0, wrk=20.0), ""),
    ],
)
def test_what_is_busy_all_the_time_is_the_limit(told: Measured, limit: str) -> None:
    assert told.limit == limit
