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
from trikv.coordinator.partition import Slot
from trikv.coordinator.replicas import NotEnough, Request, Standing, Target, describe_fault
from trikv.core.calls import Op, fetched_from_wire, is_epoch
from trikv.core.configuration import Member
from trikv.core.errors import Fault
from trikv.core.record import Record, Version, newest
from trikv.core.tally import Tally, Verdict


async def fetch_history(
    slot: Slot,
    key: bytes,
    deadline_s: float,
    on_stale: Callable[[Slot, int], None],
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
    for past in slot.history:
        targets.update({target.member: target for target in past.targets})
        tallies.append((frozenset(past.configuration.members), Tally(past.recovery_need(), len(past.targets))))
    if besides is not None:
        tallies.append((frozenset([besides.member]), Tally(1, 1)))

    answers: list[list[Any]] = []
    faults: list[str] = []
    wake = trio.Event()

    def expect(target: Target) -> Callable[[int, list[Any]], None]:
        def done(fault: int, payload: list[Any]) -> None:
            if fault == Fault.OK:
                answers.append(payload)
            else:
                faults.append(f"{target.member.worker}: {describe_fault(fault)}")
                if fault == Fault.STALE and is_epoch(payload):
                    on_stale(slot, payload[0])
            for members, tally in tallies:
                if target.member in members:
                    tally.ack() if fault == Fault.OK else tally.fail()
            wake.set()

        return done

    for target in targets.values():
        arguments = [slot.index, slot.epoch, target.member.incarnation, key]
        done = expect(target)
        if target.standing is Standing.DOWN:
            done(Fault.NOT_SENT, [])
        else:
            target.call(Op.FETCH, arguments, deadline_s, done, 128 + len(key))
    while True:
        verdicts = {tally.verdict for _, tally in tallies}
        if Verdict.LOST in verdicts:
            raise NotEnough("; ".join(faults))
        if verdicts == {Verdict.WON}:
            return newest([fetched_from_wire(payload, slot.epoch) for payload in answers])
        await wake.wait()
        wake = trio.Event()


async def copy_record(
    slot: Slot,
    key: bytes,
    version: Version,
    source: Target,
    lacking: Sequence[Target],
    deadline_s: float,
    on_stale: Callable[[Slot, int], None],
) -> Record:
    """Bring the record of this version, as it is, from one member to others; the record.

    Who calls it knows that nothing newer can have been committed, or promises convergence only.

    Raises:
      NotEnough: the source does not hold it any more, or one of the others has not stored it.
      PeerError: the source answered nonsense.
    """
    request = _request(slot, key, [source], deadline_s, on_stale)
    [answer] = await request.replicas.fetch(key)
    if answer.record is None or answer.record.version != version:
        raise NotEnough(f"{source.member.worker} does not hold version {version} of the key any more")
    await store_record(slot, Write(key, answer.record), lacking, deadline_s, on_stale)
    return answer.record


async def store_record(
    slot: Slot, write: Write, targets: Sequence[Target], deadline_s: float, on_stale: Callable[[Slot, int], None]
) -> None:
    """Store it, as it is, on all of these.

    Raises:
      NotEnough: one of them has not stored it.
    """
    await _request(slot, write.key, targets, deadline_s, on_stale).replicas.store(write)


def _request(
    slot: Slot, key: bytes, targets: Sequence[Target], deadline_s: float, on_stale: Callable[[Slot, int], None]
) -> Request:
    return Request(
        slot.index,
        slot.epoch,
        slot.configuration.copies,
        targets,
        deadline_s,
        on_send=lambda write: slot.note_store(key),
        on_stale=lambda promised: on_stale(slot, promised),
    )
