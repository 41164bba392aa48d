"""The RPC port of a master that stands by: it tells workers, and other masters, which master leads.

A worker that asks to be enlisted, and a master that would pass a request on, are answered NOT_LEADING with the address
of the leader, if this master knows it. Nothing is passed on from here, so two masters that take each other for the
leader make no circle. `judge` and `frame_bytes_max_of` hold for the leader's port as well.
"""

from __future__ import annotations

from functools import partial

import trio

from trikv.core.calls import Enlist, Heartbeat, PassOn, PassPart, PassRest, parse
from trikv.core.errors import Fault
from trikv.core.frames import FRAME_BYTES_MAX
from trikv.core.session import SMALL_FRAME_BYTES_MAX, Call, Hello, PeerError
from trikv.master.passing import Passing
from trikv.net.doors import Listening
from trikv.net.link import Link
from trikv.net.serve import serve_links


async def serve_standby_links(
    passing: Passing, listening: Listening, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled."""

    def judge_here(hello: Hello) -> str | None:
        return judge(hello, passing.cluster)

    await serve_links(
        listening.listener,
        passing.hello,
        judge_here,
        partial(_handle, passing),
        frame_bytes_max=frame_bytes_max_of,
        task_status=task_status,
    )


def judge(hello: Hello, cluster: str | None) -> str | None:
    """Why that node has no business at the RPC port of a master of this cluster, or None."""
    if hello.role not in ("worker", "standby"):
        return f"a master talks to workers and to masters that stand by, not to a {hello.role!r}"
    if hello.cluster is not None and cluster is not None and hello.cluster != cluster:
        if hello.role == "standby":
            return f"that master belongs to cluster {hello.cluster}, and this is {cluster}"
        return (
            f"worker {hello.node} belongs to cluster {hello.cluster}, and this is {cluster}; "
            "start it with another --data-dir to have it join this one"
        )
    return None


def frame_bytes_max_of(hello: Hello) -> int:
    """Workers only ask to be enlisted; a standby passes on what its clients send."""
    return FRAME_BYTES_MAX if hello.role == "standby" else SMALL_FRAME_BYTES_MAX


def _handle(passing: Passing, link: Link, incoming: list[Call]) -> None:
    leader = passing.leader
    where = [] if leader is None else [leader.address]
    for call_id, _, op, *arguments in incoming:
        request = parse(op, arguments)
        if isinstance(request, Enlist | PassOn | PassPart | PassRest):
            link.answer(call_id, Fault.NOT_LEADING, where)
        elif not isinstance(request, Heartbeat):
            raise PeerError("asked a master for records")
