"""Asking members for their partitions in brief: who holds the same, found out without listing a key.

One call to each member for all its partitions, answered between two of its batches, so that it tells of exactly what
is durable there. Like any other request it fences. A member that does not answer in time, answers nonsense, or has
promised a newer epoch is left out: whoever compares decides how many answers are enough.

What two members answer belongs to two moments. While writes are under way they differ for that reason alone, so a
difference is a reason to look again; being equal is being equal, as far as the records go that both hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trikv.coordinator.ask import Question, ask_all
from trikv.coordinator.partition import Slot
from trikv.coordinator.replicas import Target
from trikv.core.calls import Op, digests_from_wire
from trikv.core.configuration import Member
from trikv.core.digest import Summary
from trikv.core.errors import Fault
from trikv.core.session import PeerError


async def ask_digests(
    plan: Mapping[Target, Sequence[Slot]], on_stale: Callable[[Slot, int], None], deadline_s: float
) -> dict[int, dict[Member, Summary]]:
    """By partition and member: what each that answered holds of it. A partition that nobody answered is left out."""
    summaries: dict[int, dict[Member, Summary]] = defaultdict(dict)
    asked = [(target, {slot.index: slot for slot in slots}) for target, slots in plan.items()]

    def heard(number: int, fault: int, payload: list[Any]) -> None:
        if fault != Fault.OK:
            return
        try:
            stale, answered = digests_from_wire(payload)
        except PeerError:
            return
        target, slots = asked[number]
        for partition, promised in stale:
            if partition in slots:
                on_stale(slots[partition], promised)
        for partition, summary in answered.items():
            if partition in slots:
                summaries[partition][target.member] = summary

    questions = []
    for target, slots in asked:
        pairs = [[slot.index, slot.epoch] for slot in slots.values()]
        questions.append(Question(target, [target.member.incarnation, pairs], 64 + 16 * len(pairs)))
    await ask_all(Op.DIGEST, questions, deadline_s, heard)
    return {partition: dict(held) for partition, held in summaries.items()}  # answers may still come
