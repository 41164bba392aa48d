"""Asking members for digests of their partitions, to find out which hold the same without listing a key.

One call to each member for all its partitions, answered between two of its batches, so that it tells of exactly what
is durable there. Like any other request it fences. A member that does not answer in time, answers nonsense, or has
promised a newer epoch is left out: the caller decides how many answers are enough.

What two members answer belongs to two moments. While writes are under way they differ for that reason alone, so a
difference is a reason to look again; being equal is being equal, as far as the records go that both hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from trikv.coordinator.ask import Question, ask_all
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.replicas import Target
from trikv.core.calls import Op, digests_from_wire
from trikv.core.configuration import Member
from trikv.core.digest import Summary
from trikv.core.errors import Fault
from trikv.core.session import PeerError


async def ask_digests(
    plan: Mapping[Target, Sequence[PartitionState]], deadline_s: float
) -> dict[int, dict[Member, Summary]]:
    """By partition and member: what each that answered holds of it. A partition without an answer is left out."""
    summaries: dict[int, dict[Member, Summary]] = defaultdict(dict)
    asked = [(target, {state.index: state for state in states}) for target, states in plan.items()]

    def heard(number: int, fault: int, payload: list[Any]) -> None:
        if fault != Fault.OK:
            return
        try:
            stale, answered = digests_from_wire(payload)
        except PeerError:
            return
        target, states = asked[number]
        for partition, promised in stale:
            if partition in states:
                states[partition].report_stale(promised)
        for partition, summary in answered.items():
            if partition in states:
                summaries[partition][target.member] = summary

    questions = []
    for target, states in asked:
        pairs = [[state.index, state.epoch] for state in states.values()]
        questions.append(Question(target, [target.member.incarnation, pairs], 64 + 16 * len(pairs)))
    await ask_all(Op.DIGEST, questions, deadline_s, heard)
    return {partition: dict(held) for partition, held in summaries.items()}  # answers may still come
