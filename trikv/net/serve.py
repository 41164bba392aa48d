"""The accepting side: greet whoever connects, and carry the links of those who belong.

A stranger is answered with one sentence and closed; slow or silent ones are closed after `GREETING_TIMEOUT_S`. At
most `LINKS_MAX` connections are held at once, strangers included: what comes on top is closed unread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from trikv.core.session import Hello, PeerError
from trikv.net.link import Handler, LinkError, accept

LINKS_MAX: Final = 512

_log = logging.getLogger(__name__)


async def serve_links(
    listener: trio.abc.Listener[trio.abc.Stream],
    me: Callable[[], Hello],
    judge: Callable[[Hello], str | None],
    handler: Handler,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. `judge` says why a peer is not welcome, or None; `handler` takes its calls."""
    links = 0

    async def serve_one(stream: trio.abc.Stream) -> None:
        nonlocal links
        if links >= LINKS_MAX:
            await trio.aclose_forcefully(stream)
            return
        links += 1
        try:
            link = await accept(stream, me(), judge, handler)
            await link.run()
        except (LinkError, PeerError) as error:
            _log.info("turned a peer away: %s", error)
        finally:
            links -= 1

    async with trio.open_nursery() as nursery:
        task_status.started()
        await trio.serve_listeners(serve_one, [listener], handler_nursery=nursery)
