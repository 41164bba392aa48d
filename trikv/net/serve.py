"""The accepting side: greets each peer that connects, and carries the links of those that belong.

A peer that does not belong is answered with one sentence and closed; a slow or silent one is closed after
`GREETING_TIMEOUT_S`. At most `LINKS_MAX` connections are held at once, strangers included. A further connection is
closed unread, and the link that has been silent longest ends, if that is longer than `SILENCE_MOST_S`. An error of one
connection ends that connection alone (`net/accept.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from trikv.core.frames import FRAME_BYTES_MAX
from trikv.core.session import Hello, PeerError
from trikv.net.accept import accept_forever, connections_max
from trikv.net.link import SILENCE_MOST_S, Handler, Link, LinkError, accept

LINKS_MAX: Final = 512

_log = logging.getLogger(__name__)


async def serve_links(
    listener: trio.abc.Listener[trio.abc.Stream],
    me: Callable[[], Hello],
    judge: Callable[[Hello], str | None],
    handler: Handler,
    *,
    frame_bytes_max: Callable[[Hello], int] = lambda _peer: FRAME_BYTES_MAX,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled.

    `judge` says why a peer is not welcome, or None. `handler` takes its calls, in frames of `frame_bytes_max` at most,
    which may be another size for each peer.
    """

    links: dict[Link, None] = {}  # in the order of their greeting

    async def serve_one(stream: trio.abc.Stream) -> None:
        link = None
        try:
            link = await accept(stream, me(), judge, handler, frame_bytes_max)
            links[link] = None
            await link.run()
        except (LinkError, PeerError) as error:
            _log.info("turned a peer away: %s", error)
        finally:
            if link is not None:
                links.pop(link, None)

    def end_the_most_silent() -> None:
        link = min(links, key=lambda link: link.last_heard_s, default=None)
        if link is not None and trio.current_time() - link.last_heard_s > SILENCE_MOST_S:
            link.end()

    async with listener, trio.open_nursery() as nursery:
        task_status.started()
        at_most = min(LINKS_MAX, connections_max(listener))
        await accept_forever(
            listener, serve_one, what="the RPC port", nursery=nursery, at_most=at_most, make_room=end_the_most_silent
        )
