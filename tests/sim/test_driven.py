"""Today's code holds in every driven schedule, and a mutant that one is made for does not."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.sim.driven import BROKEN_BY, SCHEDULES
from tests.sim.mutants import BY_NAME


@pytest.mark.parametrize("name", SCHEDULES)
async def test_nothing_is_held_against_it(name: str, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    assert not await SCHEDULES[name](nursery)


@pytest.mark.parametrize(("name", "mutant"), BROKEN_BY)
async def test_a_mutant_is_caught(name: str, mutant: str, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    with BY_NAME[mutant].breaks():
        assert await SCHEDULES[name](nursery), f"nothing was held against {mutant}"
