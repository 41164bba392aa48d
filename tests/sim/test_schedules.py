"""Schedules made by hand, each for one way to be wrong: today's code passes (test_scripts.py), the mutant does not.

Most are among those that broke the first draft of the protocol. Random search finds them seldom or never.
"""

import pytest

from tests.sim import driven
from tests.sim.conftest import SCRIPTS, read_script
from tests.sim.mutants import BY_NAME, MUTANTS
from trikv.api import Strategy
from trikv.testing.sim.script import play

BROKEN_BY = [
    ("draft_01_late_store", "no epoch check"),
    ("draft_02_pending_first", "pending-first left out"),
    ("draft_03_fresh_versions", "write-back with the old version"),
    ("draft_04_stored_at_all", "write-back with the old version"),
    ("draft_05_late_discard", "no epoch check"),
    ("draft_06_former_incarnation", "incarnation unchecked"),
    ("draft_07_leftover_at_the_reader", "settle: R listed"),
    ("draft_08_relay_goes_on", "relay that stops"),
    ("draft_09_nobody_sweeps", "no anti-entropy"),
    ("draft_11_promise_on_disk", "promise kept in memory"),
    ("late_store_of_a_former_epoch", "no epoch check"),
    ("late_store_of_a_former_epoch", "restart in the old epoch"),
    ("acknowledged_means_on_disk", "acknowledge before fsync"),
    ("chain_broken_in_the_middle", "acknowledge before the tail"),
    ("chain_head_crash", "unknown reported as refused"),
    ("compare_and_set_race", "no key lock"),
    ("quorum_new_old_inversion", "quorum read without write-back"),
    ("memory_worker_comes_back_empty", "incarnation unchecked"),
    ("sync_head_last", "sync head first"),
    ("sync_head_last", "sync in parallel"),
    ("used_is_not_replaced", "used configuration replaced"),
    ("chain_reads_at_the_tail", "chain read from the head"),
    ("masters_fence_read", "masters: no fence"),
    ("masters_fence_write", "masters: no fence"),
    ("masters_lease", "masters: no lease rule"),
    ("masters_stopped", "masters: no lease rule"),
    ("masters_lease_from_the_request", "masters: lease from the answer"),
    ("masters_late_comparison", "masters: anti-entropy goes on"),
    ("masters_late_recovery", "masters: recovery goes on"),
]


@pytest.mark.parametrize(("script", "mutant"), BROKEN_BY)
def test_a_schedule_catches_its_mutant(script: str, mutant: str, strategies: dict[str, Strategy]) -> None:
    broken = BY_NAME[mutant]
    schedule = read_script(SCRIPTS / f"{script}.txt")
    strategy = broken.strategy if broken.strategy.name == schedule.mode else strategies[schedule.mode]
    with broken.breaks():
        played = play(schedule, strategy)
    assert played.findings, f"nothing was held against {mutant}:\n{played.text}"


def test_every_mutant_is_caught_one_way_or_the_other() -> None:
    by_hand = {mutant for _, mutant in [*BROKEN_BY, *driven.BROKEN_BY]}
    assert [mutant.name for mutant in MUTANTS if not mutant.by_search and mutant.name not in by_hand] == []
