"""Sending on a socket at once where the kernel takes it, which it nearly always does.

`send_all` of a Trio stream passes the scheduler twice and guards against a second sender. For a frame or an answer of a
few hundred bytes that costs more than the system call. So the bytes are written first, and Trio is asked only to wait
for room for the rest. Two tasks must not send on one stream at the same time; here nothing notices that.
"""

from __future__ import annotations

import os

import trio


async def send_now(stream: trio.abc.Stream, data: bytes) -> None:
    """Send all of it. Where the kernel takes all of it at once, this is no checkpoint.

    Raises:
      trio.BrokenResourceError, trio.ClosedResourceError: as `send_all`.
    """
    sent = 0
    if isinstance(stream, trio.SocketStream):
        try:
            sent = os.write(stream.socket.fileno(), data)
        except BlockingIOError:
            pass
        except OSError as error:  # -1 is the descriptor of a socket that is closed
            raise trio.BrokenResourceError(f"the connection broke: {error.strerror}") from error
    if sent < len(data):
        await stream.send_all(memoryview(data)[sent:])
