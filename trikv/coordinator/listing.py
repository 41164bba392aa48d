"""What members hold between two keys: one LIST call to each, merged, for scans and for all that goes through every key.

    async for rows in Pages(group_by_target(group), rows=512, timeout_s=5.0):
        for key, (partition, held) in rows.items(): ...

A listing fences as well: each member that answers has promised the epochs that it was asked under. Listings stop at a
limit, so a page is complete up to the key where the first of them stopped, and the next page begins there.

A row under a partition that is not its key's is left out: no read looks there, and it would be merged with what others
hold of the key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from trikv.coordinator.ask import Question, ask_all
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.replicas import Target, describe_fault
from trikv.core.calls import LIST_LIMIT_MAX, Op, check_listed, listed_from_wire
from trikv.core.errors import Fault, Refused
from trikv.core.record import Record
from trikv.core.session import PeerError

Plan = Mapping[Target, Sequence[PartitionState]]  # whom to ask for which partitions
Rows = dict[bytes, tuple[int, dict[str, Record]]]  # by key: its partition, and each listing member's record, by worker


def group_by_target(asked: Mapping[PartitionState, Sequence[Target]]) -> dict[Target, list[PartitionState]]:
    """The same the other way round: for each target the partitions that it is asked for."""
    plan: dict[Target, list[PartitionState]] = {}
    for state, targets in asked.items():
        for target in targets:
            plan.setdefault(target, []).append(state)
    return plan


@dataclass(slots=True)
class Listing:
    """What members hold between two keys: for each key its partition and each listing member's record."""

    rows: Rows
    bound: bytes | None  # complete up to and with this key; None: to the end


class Pages(AsyncIterator[Rows]):
    """Every key of these partitions, a page at a time, without values. A page is listed when it is asked for.

    `rows`: so many on a page, about. `timeout_s`: for one page. `__anext__` raises `Refused` as `list_members` does.
    """

    def __init__(self, plan: Plan, *, rows: int, timeout_s: float) -> None:
        self._plan = plan
        self._rows = rows
        self._timeout_s = timeout_s
        self._after: bytes | None = None
        self._ended = not plan

    async def __anext__(self) -> Rows:
        if self._ended:
            raise StopAsyncIteration
        listing = await list_members(
            self._plan,
            prefix=b"",
            after=self._after,
            limit=self._rows,
            with_values=False,
            deadline_s=trio.current_time() + self._timeout_s,
        )
        bound = self._after = listing.bound
        self._ended = bound is None
        return {key: row for key, row in listing.rows.items() if bound is None or key <= bound}


async def list_members(
    plan: Plan,
    *,
    prefix: bytes,
    after: bytes | None,
    limit: int,
    with_values: bool,
    deadline_s: float,
) -> Listing:
    """One LIST call to each member of the plan, merged.

    Raises:
      Refused: one of them did not answer in time, or has promised a newer epoch.
    """
    states = {state.index: state for asked in plan.values() for state in asked}
    answers: list[tuple[Question, int, list[Any]]] = []

    def heard(number: int, fault: int, payload: list[Any]) -> None:
        answers.append((questions[number], fault, payload))

    def ask(target: Target, asked: Sequence[PartitionState]) -> Question:
        # Keys are spread evenly, so a member that lists a third of the partitions has about a third of the page.
        share = min(limit * len(asked) * 6 // (len(states) * 5) + 16, LIST_LIMIT_MAX)
        pairs = [[state.index, state.epoch] for state in asked]
        arguments = [target.member.incarnation, pairs, prefix, after, share, with_values]
        return Question(target, arguments, 64 + 16 * len(asked))

    questions = [ask(target, asked) for target, asked in plan.items()]
    await ask_all(Op.LIST, questions, deadline_s, heard)
    return _merge(plan, states, answers)


def _merge(
    plan: Plan,
    states: dict[int, PartitionState],
    answers: list[tuple[Question, int, list[Any]]],
) -> Listing:
    listing = Listing({}, None)
    failures = [
        f"{question.target.member.worker}: {describe_fault(fault)}"
        for question, fault, _ in answers
        if fault != Fault.OK
    ]
    if len(answers) < len(plan):
        failures.append(f"{len(plan) - len(answers)} members: {describe_fault(Fault.LATE)}")
    for question, fault, payload in answers:
        worker = question.target.member.worker
        if fault != Fault.OK:
            continue
        try:
            stale, rows, more = listed_from_wire(payload)
            _, pairs, prefix, after, limit, _ = question.arguments
            check_listed(rows, {partition for partition, _ in pairs}, prefix, after, limit)
        except PeerError as error:
            failures.append(f"{worker}: {error}")
            continue
        for partition, promised in stale:
            failures.append(f"{worker}: {describe_fault(Fault.STALE)} of partition {partition}")
            if partition in states:
                states[partition].report_stale(promised)
        for partition, key, record in rows:
            if states[partition].is_of(key):
                listing.rows.setdefault(key, (partition, {}))[1][worker] = record
        if more and rows:
            last = rows[-1][1]
            listing.bound = last if listing.bound is None else min(listing.bound, last)
    if failures:
        raise Refused("unavailable", f"the listing is not complete: {'; '.join(sorted(failures)[:3])}")
    return listing
