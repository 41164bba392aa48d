"""Retiring earlier configurations: the round of promises before a changed one is served.

A coordinator that was deposed, or one of its messages, may still act under an earlier configuration of a partition. It
is harmless once R members of that configuration have promised a newer epoch: whatever it then commits, or reads from a
quorum, meets one of them (`coordinator/partition.py` says when a partition is fenced, and for which modes).

Each member is asked for all its partitions in one call, which costs it one flush. The call is the one for digests,
since any call fences and this one is answered from memory. A member has one such call under way at a time; one that
does not answer is asked again every `TICK_S`, and holds up nothing where others are enough. With one master alone the
round costs a trip to the workers at each change of a configuration, and nothing at any other time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import trio

from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.listing import group_by_target
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.replicas import Target
from trikv.core.calls import Op, digests_from_wire
from trikv.core.configuration import Member
from trikv.core.errors import Fault
from trikv.core.quorums import Availability
from trikv.core.session import PeerError

TICK_S: Final = 0.5
_TIMEOUT_S: Final = 2.0


class Retiring:
    """Fences one coordinator's partitions against their earlier configurations."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._asked: set[Member] = set()  # those that have not answered yet

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            unfenced = [state for state in self._coordinator.partitions if not state.is_fenced and not state.is_blocked]
            reachable = {
                state: [t for t in state.to_fence() if t.availability is not Availability.DOWN] for state in unfenced
            }
            for target, states in group_by_target(reachable).items():
                if target.member not in self._asked:
                    self._ask(target, states)
            await self._coordinator.changed.wait(TICK_S if unfenced else math.inf)

    def _ask(self, target: Target, states: list[PartitionState]) -> None:
        self._asked.add(target.member)
        pairs = [[state.index, state.epoch] for state in states]
        arguments: list[Any] = [target.member.incarnation, pairs]
        deadline_s = trio.current_time() + _TIMEOUT_S
        target.call(Op.DIGEST, arguments, deadline_s, self._expect(target.member, states), 64 + 16 * len(pairs))

    def _expect(self, member: Member, states: list[PartitionState]) -> Callable[[int, list[Any]], None]:
        def done(fault: int, payload: list[Any]) -> None:
            self._asked.discard(member)
            if fault != Fault.OK:
                return
            try:
                stale, answered = digests_from_wire(payload)
            except PeerError:
                return
            for state in states:
                if state.index in answered:
                    state.note_promise(member)
            by_index = {state.index: state for state in states}
            for partition, promised in stale:
                if partition in by_index:
                    by_index[partition].report_stale(promised)
            self._coordinator.changed.notify()

        return done
