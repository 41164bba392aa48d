"""Anti-entropy: replicas that should hold the same are compared by digest, and made the same.

A replica that was away comes back with what it had; a copy that no request waited for gets lost; the background copies
of an async write die with the master that had them in hand. Reads mend what they find, and most keys are not read. So
the replicas of every settled partition are compared: when one more of them is up, after a copy went missing that is not
kept for its replica (`hints.py`), in a new epoch, and every `PERIOD_S` in any case.

They are compared by their digests, which costs one call to each worker for all of its partitions, with an answer of
some 40 bytes for each. While writes are under way two answers differ for that reason alone, so a difference is looked
at again, a moment and a second later. What still differs is listed, `TOGETHER` partitions at a time, and each key on
which the listings disagree is looked at once more under its lock, and mended:

- Under AP modes the newest record goes to all, as it is.
- Under CP modes it does so where as many hold it as a write needs. This is the copy of a committed write that a laggard
  has yet to get, and nothing can be lost by it: it only ever replaces an older record by the newest that all those
  asked hold. A replica that comes back into a quorum is caught up at one store for each key.
- Anywhere else under CP it may be the remains of a write that a newer, hidden one has overtaken. Such a key is
  repaired as a read would repair it.

A key with a write in doubt is left to `finish.py`. `KEYS_TOGETHER` keys are mended at a time:
all of this is never more than a few further clients.

Left out: what a disk corrupts behind the worker's back. Digests are kept as records come and go, not read from disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import trio

from trikv.api import Write, newest
from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.listing import Pages, group_by_target
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.replicas import NotEnough, Target
from trikv.core.configuration import Member
from trikv.core.digest import Summary
from trikv.core.errors import Refused
from trikv.core.quorums import Availability
from trikv.core.session import PeerError
from trikv.healing.digests import ask_digests

TICK_S: Final = 1.0
PERIOD_S: Final = 60.0
AGAIN_S: Final = 2.0  # after a comparison that came to no end, or a copy that went missing
LOOK_AGAIN_S: Final = (0.1, 1.0)
TOGETHER: Final = 64
LIST_ROWS: Final = 512
KEYS_TOGETHER: Final = 8
STEP_TIMEOUT_S: Final = 5.0  # for one call to each member, or one mended key

_log = logging.getLogger(__name__)


class _Compared(NamedTuple):
    """When a partition was last compared, in which epoch, between which members. `ended`: all that differed was
    mended."""

    epoch: int
    when_s: float
    members: frozenset[Member]
    ended: bool


@dataclass(slots=True)
class ComparisonReport:
    """What comparing came to."""

    partitions: int = 0
    keys_compared: int = 0
    keys_differing: int = 0
    keys_repaired: int = 0


class AntiEntropy:
    """Compares and mends the settled partitions of one coordinator.

    Args:
      expects: is a replica of that partition just being given what it is known to have missed? Then it can wait.
      period_s: after which partitions are compared in any case.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        *,
        expects: Callable[[PartitionState], bool] = lambda state: False,
        period_s: float = PERIOD_S,
    ) -> None:
        self.done = ComparisonReport()  # since this master started
        self.round_ended_s: float | None = None  # when last there was nothing more to compare, by Trio's clock
        self._coordinator = coordinator
        self._expects = expects
        self._period_s = period_s
        self._compared: dict[int, _Compared] = {}
        self._quiet_at = -1  # the coordinator's count of changes when nothing was due
        self._look_again_s = 0.0

    async def run(self) -> None:
        """Until cancelled. What cannot be compared or mended now is tried again."""
        while True:
            if self._may_be_due() and (due := self._due()):
                await self._compare(due, self.done, dry_run=False)
                if not self._due():
                    self.round_ended_s = trio.current_time()
            await trio.sleep(TICK_S)

    async def repair(self, *, dry_run: bool) -> dict[str, int]:
        """Compare all settled partitions now, and mend what differs, unless that is only to be counted.

        Answers numbers of keys (compared, differing, repaired) and of partitions (compared; skipped, because they are
        being settled or a replica is not up).
        """
        report = ComparisonReport()
        states = self._coordinator.partitions
        await self._compare(states, report, dry_run=dry_run)
        return {
            "compared": report.keys_compared,
            "differing": report.keys_differing,
            "repaired": report.keys_repaired,
            "partitions": report.partitions,
            "skipped": len(states) - report.partitions,
        }

    def progress(self) -> dict[str, Any]:
        """How many partitions were compared in their present epoch, and how long ago nothing more was due."""
        states = self._coordinator.partitions
        compared = [self._compared.get(state.index) for state in states]
        alike = sum(
            last is not None and last.ended and last.epoch == state.epoch
            for state, last in zip(states, compared, strict=True)
        )
        ended_s = self.round_ended_s
        return {
            "compared": alike,
            "total": len(states),
            "keys_differing": self.done.keys_differing,
            "keys_repaired": self.done.keys_repaired,
            "round_ended_s_ago": None if ended_s is None else round(trio.current_time() - ended_s, 1),
        }

    def has_compared(self, state: PartitionState) -> bool:
        """Were all its replicas that are up compared in this epoch, and all that differed mended?"""
        last = self._compared.get(state.index)
        up = frozenset(target.member for target in _up(state))
        return last is not None and last.ended and last.epoch == state.epoch and last.members >= up

    # --- what to compare ----------------------------------------------------------------------------------------------

    def _may_be_due(self) -> bool:
        """Has anything happened since nothing was due, or has it become time?"""
        return (
            self._coordinator.changed.count != self._quiet_at
            or trio.current_time() > self._look_again_s
            or any(state.missed for state in self._coordinator.partitions)
        )

    def _due(self) -> list[PartitionState]:
        due = [
            state
            for state in self._coordinator.partitions
            if _should_be_alike(state)
            and len(up := _up(state)) > 1
            and self._is_due(state, up)
            and not self._expects(state)
        ]
        if not due:
            self._quiet_at = self._coordinator.changed.count
            oldest_s = min((last.when_s for last in self._compared.values()), default=0.0)
            patience_s = self._period_s if all(last.ended for last in self._compared.values()) else AGAIN_S
            self._look_again_s = oldest_s + patience_s
        return due

    def _is_due(self, state: PartitionState, up: Sequence[Target]) -> bool:
        """Those that are up may differ: never compared in this epoch, or not with one of them, or not for a while."""
        last = self._compared.get(state.index)
        if last is None or last.epoch != state.epoch or not last.members.issuperset(t.member for t in up):
            return True
        soon = not last.ended or (state.missed and len(up) == len(state.targets))
        return trio.current_time() - last.when_s > (min(AGAIN_S, self._period_s) if soon else self._period_s)

    async def _compare(self, states: Sequence[PartitionState], report: ComparisonReport, *, dry_run: bool) -> None:
        group = {state: _up(state) for state in states if _is_comparable(state)}
        missed = {state: state.missed for state in group}
        heard = await self._ask(group)
        suspects = {state: targets for state, targets in group.items() if _differ(heard.get(state.index, {}))}
        for pause_s in LOOK_AGAIN_S:
            if suspects:
                await trio.sleep(pause_s)
                again = await self._ask(suspects)
                heard |= {state.index: again.get(state.index, {}) for state in suspects}
                suspects = {state: targets for state, targets in suspects.items() if _differ(heard[state.index])}
        failed: set[PartitionState] = set()
        queue = list(suspects.items())
        for first in range(0, len(queue), TOGETHER):
            failed |= await self._mend_all(dict(queue[first : first + TOGETHER]), report, dry_run=dry_run)
        now = trio.current_time()
        for state, targets in group.items():
            answers = heard.get(state.index, {})
            if len(answers) == len(state.targets) and state not in failed:
                report.partitions += 1
                report.keys_compared += max(summary.rows for summary in answers.values())
            if dry_run:
                continue
            ended = len(answers) == len(targets) and state not in failed
            self._compared[state.index] = _Compared(state.epoch, now, frozenset(t.member for t in targets), ended)
            if ended and len(targets) == len(state.targets):
                state.note_compared(missed[state])

    async def _ask(self, group: Mapping[PartitionState, Sequence[Target]]) -> dict[int, dict[Member, Summary]]:
        return await ask_digests(group_by_target(group), trio.current_time() + STEP_TIMEOUT_S)

    # --- what to mend -------------------------------------------------------------------------------------------------

    async def _mend_all(
        self, group: Mapping[PartitionState, Sequence[Target]], report: ComparisonReport, *, dry_run: bool
    ) -> set[PartitionState]:
        """List these partitions and mend what differs; those in which that did not succeed."""
        states = {state.index: state for state in group}
        failed: set[PartitionState] = set()
        limiter = trio.Semaphore(KEYS_TOGETHER)
        try:
            async for rows in Pages(group_by_target(group), rows=LIST_ROWS, timeout_s=STEP_TIMEOUT_S):
                async with trio.open_nursery() as nursery:
                    for key, (partition, held) in rows.items():
                        state = states[partition]
                        versions = {record.version for record in held.values()}
                        if len(versions) == 1 and len(held) == len(group[state]):
                            continue
                        report.keys_differing += 1
                        if not dry_run:
                            await limiter.acquire()
                            nursery.start_soon(self._mend, state, group[state], key, report, failed, limiter)
        except Refused as error:
            _log.info("%d partitions that differ could not be listed: %s", len(states), error)
            return set(group)
        return failed

    async def _mend(
        self,
        state: PartitionState,
        targets: Sequence[Target],
        key: bytes,
        report: ComparisonReport,
        failed: set[PartitionState],
        limiter: trio.Semaphore,
    ) -> None:
        try:
            deadline_s = trio.current_time() + STEP_TIMEOUT_S
            lock = state.locks.shared if state.is_ap else state.locks.exclusive
            with trio.move_on_at(deadline_s) as scope:
                with await lock(key):
                    if state not in failed and await self._mend_key(state, targets, key, deadline_s):
                        report.keys_repaired += 1
            if scope.cancelled_caught:
                failed.add(state)
        except (Refused, NotEnough, PeerError) as error:
            _log.info("a key of partition %d could not be mended yet: %s", state.index, error)
            failed.add(state)
        finally:
            limiter.release()

    async def _mend_key(self, state: PartitionState, targets: Sequence[Target], key: bytes, deadline_s: float) -> bool:
        """Look at the key once more, and bring what is newest to all; False if there was nothing to do."""
        if self._coordinator.partitions[state.index] is not state or not _is_comparable(state):
            raise NotEnough("its configuration has changed, or too few of its replicas are up")
        if key in state.pending:
            return False
        copies = state.configuration.copies
        request = state.request(deadline_s, targets)
        answers = await request.replicas.fetch(key)
        top = newest(answers)
        if top is None:
            return False
        holders = {a.replica for a in answers if a.record is not None and a.record.version == top.version}
        lacking = [target for target in targets if target.member.worker not in holders]
        if not lacking:
            return False
        if state.is_ap or len(holders) >= copies:
            await state.request(deadline_s, lacking).replicas.store(Write(key, top))
        else:
            holder = next(target for target in targets if target.member.worker in holders)
            await self._coordinator.repair(state, key, deadline_s, besides=holder)
        return True


def _is_comparable(state: PartitionState) -> bool:
    return _should_be_alike(state) and len(_up(state)) > 1


def _should_be_alike(state: PartitionState) -> bool:
    return state.partition.settled and state.is_served


def _up(state: PartitionState) -> list[Target]:
    return [target for target in state.targets if target.availability is Availability.UP]


def _differ(answers: Mapping[Member, Summary]) -> bool:
    return len(set(answers.values())) > 1
