"""Asking which node listens at an address, over a link that lives for one question.

The master enlists no worker on another node's word: it dials the address and has the worker there
tell its id, its incarnation and its vitals.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import trio

from trikv.core.calls import Op, Vitals, vitals_from_wire
from trikv.core.errors import Fault, Refused
from trikv.core.session import Hello, PeerError
from trikv.net.doors import Doors
from trikv.net.link import Link, LinkError, dial

ASK_TIMEOUT_S: Final = 2.0


async def ask_who_is_there(doors: Doors, me: Hello, address: str) -> tuple[Hello, Vitals]:
    """The worker at `address`, in its own words.

    Raises:
      Refused: no answer comes from there in time, or it is no worker, or it does not want to talk to us.
    """
    vitals: Vitals | None = None
    answered = trio.Event()

    def done(fault: int, payload: list[Any]) -> None:
        nonlocal vitals
        if fault == Fault.OK:
            vitals = vitals_from_wire(payload)
        answered.set()

    async def carry(link: Link) -> None:
        with suppress(PeerError):  # then nothing was answered, which is noticed below
            await link.run()
        answered.set()

    try:
        with trio.fail_after(ASK_TIMEOUT_S):
            link = await dial(await doors.transport.connect(address), me)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(carry, link)
                link.call(Op.HEARTBEAT, [], trio.current_time() + ASK_TIMEOUT_S, done)
                await answered.wait()
                nursery.cancel_scope.cancel()
    except (OSError, ValueError, LinkError, trio.TooSlowError) as error:
        reason = "no answer in time" if isinstance(error, trio.TooSlowError) else str(error)
        raise Refused("conflict", f"no worker can be enlisted at {address}: {reason}") from error
    if link.peer.role != "worker":
        raise Refused("conflict", f"a {link.peer.role} answers at {address}, not a worker")
    if vitals is None:
        raise Refused("conflict", f"the worker at {address} went away while it was asked who it is")
    return link.peer, vitals
