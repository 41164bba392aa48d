"""Members whose process answers while their disk does not.

A heartbeat tells that a process lives, and no more: behind a disk that hangs, whatever has to be durable first waits
for ever. Such a worker is not declared down, since the disk may only be slow. But others should not wait for it either:
a member that has not answered from its disk in time is asked for nothing that others can do as well (it joins no
partition, and is not heard where enough others are), until it has answered such a question again. That is asked again
and again, beside everything else; it queues behind what the disk has not done yet, so an answer means that this is
done.

What must be asked of that very member is not asked of another instead: such a partition waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import trio

from trikv.coordinator.ask import Question, ask_all
from trikv.coordinator.replicas import Target
from trikv.core.calls import Op
from trikv.core.configuration import Member
from trikv.core.errors import Fault
from trikv.core.quorums import Availability
from trikv.net.signal import Signal

AGAIN_S: Final = 0.5
TIMEOUT_S: Final = 2.0


class Hung:
    """Those of one master. `changed`: one more is known, or one fewer; `on_change` hears of it at once."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self.changed = Signal()
        self._on_change = on_change
        self._targets: dict[Member, Target] = {}
        self._noted = trio.Event()

    def __contains__(self, member: object) -> bool:
        return member in self._targets

    def __bool__(self) -> bool:
        return bool(self._targets)

    def note(self, target: Target) -> None:
        """It is up, and has not answered in time what it answers from its disk."""
        if target.availability is Availability.UP and target.member not in self._targets:
            self._targets[target.member] = target
            self._noted.set()
            self._tell_change()

    async def run(self) -> None:
        """Ask them until they answer, until cancelled."""
        while True:
            if not self._targets:
                self._noted = trio.Event()
                await self._noted.wait()
            await self._ask()
            await trio.sleep(AGAIN_S)

    async def _ask(self) -> None:
        # A member that is not up any more is known as that, or comes back and shows then what it can do.
        over = {member for member, target in self._targets.items() if target.availability is not Availability.UP}
        questions = [
            Question(target, [member.incarnation, []]) for member, target in self._targets.items() if member not in over
        ]

        def heard(number: int, fault: int, payload: list[Any]) -> None:
            if fault == Fault.OK:
                over.add(questions[number].target.member)

        await ask_all(Op.DIGEST, questions, trio.current_time() + TIMEOUT_S, heard)
        for member in [member for member in self._targets if member in over]:
            del self._targets[member]
        if over:
            self._tell_change()

    def _tell_change(self) -> None:
        self.changed.notify()
        self._on_change()
