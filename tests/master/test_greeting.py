"""Asking which node listens at an address: what answers, and in which sentence all else is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trikv.core import frames
from trikv.core.errors import Refused
from trikv.core.session import Hello, Session
from trikv.master.greeting import ASK_TIMEOUT_S, ask_who_is_there
from trikv.testing.inprocess import InProcessCluster, Node

Speak = Callable[[trio.abc.Stream], Awaitable[None]]


async def ask(cluster: InProcessCluster, address: str) -> tuple[Hello, Any]:
    return await ask_who_is_there(cluster.doors, cluster.master.hello(), address)


async def serve(cluster: InProcessCluster, nursery: trio.Nursery, speak: Speak) -> str:
    """Where something listens that speaks so to each that dials."""
    listening = await cluster.network.listen("127.0.0.1:0")
    nursery.start_soon(trio.serve_listeners, speak, [listening.listener])
    return listening.address


async def accept(stream: trio.abc.Stream, *, role: str = "worker") -> None:
    """Greet back."""
    session = Session(Hello(role, "w-9", "i-9", None), dialer=False)
    list(session.receive(await stream.receive_some()))
    await stream.send_all(session.accept())
    await stream.receive_some()  # the question


async def test_a_worker_says_who_it_is_and_how_it_is(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery)
    node: Node = await cluster.add_worker(max_keys=7, enlist=False)
    hello, vitals = await ask(cluster, node.address)
    assert (hello.role, hello.node, hello.incarnation) == ("worker", node.worker.id, node.worker.incarnation)
    assert (vitals.storage, vitals.max_keys, vitals.keys) == ("memory", 7, 0)
    assert vitals.starts[-1] == node.worker.starts[-1]
    assert node.worker.id not in cluster.master.cluster.workers, "asking enlists nobody"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        pytest.param("127.0.0.1:9", "nobody listens", id="nobody"),
        pytest.param("nonsense", "is not an address", id="no address"),
        pytest.param("127.0.0.1:8000", "a master talks to workers", id="a master"),
    ],
)
async def test_where_there_is_no_worker_it_is_refused_with_the_address_and_a_reason(
    address: str, reason: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    with pytest.raises(Refused, match=f"no worker can be enlisted at {address}: .*{reason}") as refused:
        await ask(cluster, address)
    assert refused.value.kind.code == "conflict"


@pytest.mark.parametrize("greets", [False, True], ids=["silent", "silent after its greeting"])
async def test_a_silent_one_is_waited_for_a_while(
    greets: bool, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)

    async def speak(stream: trio.abc.Stream) -> None:
        if greets:
            await accept(stream)
        await trio.sleep_forever()

    address = await serve(cluster, nursery, speak)
    began_s = trio.current_time()
    with pytest.raises(Refused, match="no answer in time"):
        await ask(cluster, address)
    assert trio.current_time() - began_s == pytest.approx(ASK_TIMEOUT_S)
    nursery.cancel_scope.cancel()


async def test_one_that_is_no_worker_is_named(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery)

    async def speak(stream: trio.abc.Stream) -> None:
        await accept(stream, role="master")
        await stream.send_all(frames.encode([3, [1]]))

    address = await serve(cluster, nursery, speak)
    with pytest.raises(Refused, match=f"a master answers at {address}, not a worker"):
        await ask(cluster, address)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([2, [[1, 0, ["not", "vitals"]]]], id="vitals that are none"),
        pytest.param([9, []], id="a frame of no kind"),
        pytest.param([2, [[]]], id="an answer without its parts"),
        pytest.param(None, id="nothing, and it hangs up"),
    ],
)
async def test_one_that_greets_and_then_speaks_nonsense_is_refused(
    answer: list[Any] | None, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)

    async def speak(stream: trio.abc.Stream) -> None:
        await accept(stream)
        if answer is not None:
            await stream.send_all(frames.encode(answer))
            await stream.receive_some()
        await stream.aclose()

    address = await serve(cluster, nursery, speak)
    began_s = trio.current_time()
    with pytest.raises(Refused, match=f"the worker at {address} went away while it was asked who it is"):
        await ask(cluster, address)
    assert trio.current_time() - began_s < ASK_TIMEOUT_S, "that is noticed at once"
    nursery.cancel_scope.cancel()
