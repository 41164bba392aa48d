"""Ending a connection so that its peer can read what it was sent last.

If data is unread when a socket is closed, the kernel sends a reset, and the peer may lose the answer that came before.
So this side closes its half, and reads and drops until the peer has closed its own (RFC 9112, section 9.6). The caller
closes the stream afterwards.

It costs a descriptor for `LINGER_S`, if the peer stays.
"""

from __future__ import annotations

from typing import Final

import trio

LINGER_S: Final = 1.0

_READ_BYTES: Final = 64 * 1024


async def linger(stream: trio.SocketStream) -> None:
    """Close this half, and drain the other one until its end, for `LINGER_S` at most."""
    with trio.move_on_after(LINGER_S):
        try:
            await stream.send_eof()
            while await stream.receive_some(_READ_BYTES):
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
