"""Finding what a key's history holds: the read that repairs, settling and joiners rest on.

Any R members of a configuration hold, between them, every write that was committed under it. So R answers of *every*
configuration in the history are enough to find the newest committed record, wherever it is hidden; one answer counts
for all the configurations that its member is in. Under AP modes R means all that can be reached: nothing less is known
to hold anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from trikv.core.calls import Op, fetched_from_wire, is_epoch
from trikv.core.configuration import Member
from trikv.core.errors import Fault
from trikv.core.record import Record, newest
from trikv.core.tally import Tally, Verdict
from trikv.net.replicas import NotEnough, Standing, Target, describe_fault
from trikv.node.slot import Slot


async def fetch_history(
    slot: Slot, key: bytes, deadline_s: float, on_stale: Callable[[Slot, int], None]
) -> Record | None:
    """The newest record that R members of every configuration of the history hold between them; None if none does.

    Raises:
      NotEnough: too few of some configuration answered.
      PeerError: one of them answered nonsense.
    """
    targets: dict[Member, Target] = {}
    tallies: list[tuple[frozenset[Member], Tally]] = []
    for past in slot.history:
        targets.update({target.member: target for target in past.targets})
        tallies.append((frozenset(past.configuration.members), Tally(past.recovery_need(), len(past.targets))))

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
            return newest([fetched_from_wire(payload) for payload in answers])
        await wake.wait()
        wake = trio.Event()
