"""Accepts connections, bounds their number, and keeps the errors of each to itself.

An error of one connection ends that connection and nothing else: it gives one line in the log, and the next connection
is served. Only cancellation passes, since it comes from the node and not from the peer.

Descriptors are a process's scarcest resource, and a stranger can take one by connecting. So the soft limit is raised to
the hard one at the start (`raise_descriptor_limit`). The number of connections follows from what is left of it
(`connections_max`), and a reserve is kept for the disk and for the links that the node dials itself. A connection
beyond the bound is closed unread. If the kernel has no descriptor left all the same, the loop waits and tries again.

Trio accepts one connection in a pass of the scheduler, and in a pass all that are open have their turn. With a thousand
busy ones a pass takes a tenth of a second, so the next thousand would wait for minutes. So all that wait are accepted
in one pass, up to `ACCEPTED_AT_ONCE`.

Left out: `EMFILE` from other calls than `accept`. The reserve is meant to prevent it.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from trikv.net.doors import accept_now

CONNECTIONS_MAX: Final = 4096  # of one listener, however many descriptors there are: each costs some 50 KB
CONNECTIONS_MIN: Final = 4
RESERVE_MAX: Final = 256  # descriptors kept for files of the disk and for links that the node dials
EXHAUSTED_PAUSE_S: Final = 0.1
ACCEPTED_AT_ONCE: Final = 64

_SOFT_LIMIT_MAX: Final = 65_536  # some systems have a hard limit of a billion, and code that loops over all
_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))

_log = logging.getLogger(__name__)


def raise_descriptor_limit() -> None:
    """Let this process open as many files as its hard limit allows, `_SOFT_LIMIT_MAX` at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _SOFT_LIMIT_MAX if hard == resource.RLIM_INFINITY else min(hard, _SOFT_LIMIT_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections_max(listener: trio.abc.Listener[trio.abc.Stream]) -> int:
    """How many connections this listener may hold at once, by the limit on descriptors as it is now.

    A node has two listeners at most, so each is given half.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or not isinstance(listener, trio.SocketListener):
        return CONNECTIONS_MAX  # only a socket takes a descriptor
    free = soft - sum(1 for _ in Path("/dev/fd").iterdir())
    free -= min(RESERVE_MAX, free // 2)
    return max(CONNECTIONS_MIN, min(CONNECTIONS_MAX, free // 2))


async def accept_forever(
    listener: trio.abc.Listener[trio.abc.Stream],
    serve: Callable[[trio.abc.Stream], Awaitable[object]],
    *,
    what: str,
    nursery: trio.Nursery,
    at_most: int,
    make_room: Callable[[], None] = lambda: None,
) -> None:
    """Serve each connection in a task of `nursery`, `at_most` of them at once. `what` names them in the log.

    A connection beyond `at_most` is closed. `make_room` may then end another, so that the next attempt finds room. The
    stream is closed when `serve` returns or raises.
    """
    held = 0

    async def serve_one(stream: trio.abc.Stream) -> None:
        nonlocal held
        try:
            await serve(stream)
        except Exception as error:  # noqa: BLE001 any error is this connection's alone
            _log.warning("a connection of %s ended in %s", what, describe_failure(error))
        except BaseExceptionGroup as group:  # cancelled, and something broke on the way
            broken, cancelled = group.split(Exception)
            if broken is not None:
                _log.warning("a connection of %s ended in %s", what, describe_failure(broken))
            if cancelled is not None:
                raise cancelled from None
        finally:
            held -= 1
            await trio.aclose_forcefully(stream)

    async def begin(stream: trio.abc.Stream) -> None:
        nonlocal held
        if held >= at_most:
            _log.warning("%s has %d connections, and takes no more: the limit on open files allows none", what, held)
            await trio.aclose_forcefully(stream)
            make_room()
            return
        held += 1
        nursery.start_soon(serve_one, stream)

    while True:
        try:
            stream = await listener.accept()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            _log.warning(
                "connections of %s have to wait: %s; raise the limit (ulimit -n) where this is common",
                what,
                os.strerror(error.errno),
            )
            await trio.sleep(EXHAUSTED_PAUSE_S)
            continue
        await begin(stream)
        for _ in range(ACCEPTED_AT_ONCE - 1):
            await trio.lowlevel.checkpoint_if_cancelled()  # what still waits is not this loop's any more
            if (waiting := accept_now(listener)) is None:
                break
            await begin(waiting)


def describe_failure(error: BaseException) -> str:
    """The innermost errors in one line: their types, messages and places."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(describe_failure(inner) for inner in error.exceptions))
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code if trace is not None else None
    where = f" ({Path(code.co_filename).name}:{trace.tb_lineno})" if code and trace else ""
    return f"{type(error).__name__}: {str(error)[:200]!r}{where}"
