"""Finding what a key's history holds: the read that repairs, settling and joiners rest on.

Any R members of a configuration hold, between them, every write that was committed under it. So R answers of *every*
configuration in the history are enough to find the newest committed record, wherever it is hidden; one answer counts
for all the configurations that its member is in. Under AP modes R means all that can be reached: nothing less is known
to hold anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import trio

from trikv.api import Write
from trikv.coordinator.partition import PartitionState
from trikv.coordinator.replicas import NotEnough, Target, describe_fault
from trikv.coordinator.trace import trace_of
from trikv.core.calls import Op, fetched_from_wire, is_epoch
from trikv.core.configuration import Member
from trikv.core.errors import Fault
from trikv.core.quorums import Availability, count_to_find
from trikv.core.record import Record, Version, newest
from trikv.core.tally import Tally, TallyVerdict


async def fetch_history(
    state: PartitionState,
    key: bytes,
    deadline_s: float,
    *,
    besides: Target | None = None,
) -> Record | None:
    """The newest record that R members of every configuration of the history hold between them; None if none does.

    `besides`: one that must have answered in any case, since it has listed the key.

    Raises:
      NotEnough: too few of some configuration answered.
      PeerError: one of them answered nonsense.
    """
    targets: dict[Member, Target] = {}
    tallies: list[tuple[frozenset[Member], Tally]] = []
    for electorate in state.history:
        targets.update({target.member: target for target in electorate.voters})
        need = count_to_find(electorate)
        tallies.append((frozenset(electorate.configuration.members), Tally(need, len(electorate.voters))))
    if besides is not None:
        tallies.append((frozenset([besides.member]), Tally(1, 1)))

    answers: list[list[Any]] = []
    faults: list[str] = []
    wake = trio.Event()
    trace = trace_of()

    def expect(target: Target) -> Callable[[int, list[Any]], None]:
        def done(fault: int, payload: list[Any]) -> None:
            if fault == Fault.OK:
                answers.append(payload)
            else:
                faults.append(f"{target.member.worker}: {describe_fault(fault)}")
                if fault == Fault.STALE and is_epoch(payload):
                    state.report_stale(payload[0])
            for members, tally in tallies:
                if target.member in members:
                    tally.ack() if fault == Fault.OK else tally.fail()
            wake.set()

        return done

    for target in targets.values():
        arguments = [state.index, state.epoch, target.member.incarnation, key]
        done = expect(target)
        if target.availability is Availability.DOWN:
            done(Fault.NOT_SENT, [])
        else:
            if trace is not None:
                done = trace.noted(target.member.worker, "fetch", done)
            target.call(Op.FETCH, arguments, deadline_s, done, 128 + len(key))
    while True:
        verdicts = {tally.verdict for _, tally in tallies}
        if TallyVerdict.LOST in verdicts:
            raise NotEnough("; ".join(faults))
        if verdicts == {TallyVerdict.WON}:
            return newest([fetched_from_wire(payload, state.epoch) for payload in answers])
        await wake.wait()
        wake = trio.Event()


async def copy_record(
    state: PartitionState,
    key: bytes,
    version: Version,
    source: Target,
    lacking: Sequence[Target],
    deadline_s: float,
) -> Record:
    """Bring the record of this version, as it is, from one member to others; the record.

    The caller knows that nothing newer can have been committed, or the mode is AP.

    Raises:
      NotEnough: the source does not hold it any more, or one of the others has not stored it.
      PeerError: the source answered nonsense.
    """
    [answer] = await state.request(deadline_s, [source]).replicas.fetch(key)
    if answer.record is None or answer.record.version != version:
        raise NotEnough(f"{source.member.worker} does not hold version {version} of the key any more")
    await store_record(state, Write(key, answer.record), lacking, deadline_s)
    return answer.record


async def store_record(state: PartitionState, write: Write, targets: Sequence[Target], deadline_s: float) -> None:
    """Store it, as it is, on all of these.

    Raises:
      NotEnough: one of them has not stored it.
    """
    await state.request(deadline_s, targets).replicas.store(write)
