"""What the processes of both roles share: the line that announces a node, its sockets for HTTP, and its end.

SIGTERM and SIGINT end a node cleanly, and so does the end of stdin if that is asked for: a child process then dies with
its parent, however its parent dies.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from datetime import UTC, datetime

import trio

from trikv.cli.shared import give_up
from trikv.net.doors import join_address, split_address, unresolved
from trikv.registry import Registry, load_registry

_log = logging.getLogger(__name__)


def load_plugins() -> Registry:
    """What is installed. What cannot be used is named in the log, and refused where it is asked for."""
    registry = load_registry()
    for one in registry.unusable:
        _log.warning("%s; it is left out", one.why)
    return registry


def announce(line: str) -> None:
    """Print the line that tells that the node serves, or log it if standard output cannot be written."""
    try:
        print(line, flush=True)
    except OSError as error:
        give_up(sys.stdout)
        _log.warning("standard output cannot be written (%s); it was to say: %s", error.strerror, line)


def wall_clock() -> str:
    """The time, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def address_of(address: str, sock: socket.socket) -> str:
    """The address with the port that the system chose."""
    return join_address(split_address(address)[0], sock.getsockname()[1])


def bind_http(address: str, flag: str) -> socket.socket:
    """A socket for HTTP, bound before anything is served, so that a port in use is one line and not an exception group.

    Raises:
      OSError: the address is taken or not ours.
    """
    host, port = split_address(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise unresolved(host, error, f"; name another with {flag} HOST:PORT") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
    except OSError as error:
        sock.close()
        message = f"cannot serve HTTP on {address}: {error.strerror}; choose another with {flag} HOST:PORT"
        raise OSError(error.errno, message) from error
    return sock


async def watch_for_stop(
    exit_with_stdin: bool, *, task_status: trio.TaskStatus[trio.Event] = trio.TASK_STATUS_IGNORED
) -> None:
    """Start with an event, and set it at the first SIGTERM or SIGINT, or at the end of stdin."""
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            if exit_with_stdin:
                nursery.start_soon(_watch_stdin, stop)
            task_status.started(stop)
            async for number in signals:
                _log.info("%s: stopping", signal.Signals(number).name)
                stop.set()


async def _watch_stdin(stop: trio.Event) -> None:
    with suppress(OSError, trio.ClosedResourceError, trio.BrokenResourceError):  # if it is unreadable, it has ended
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
            while await stdin.receive_some(1024):
                pass  # what the parent writes has no meaning
    stop.set()
