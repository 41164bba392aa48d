"""The boundary round each connection, and how many there may be."""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
import socket
import subprocess
import sys
from functools import partial

import pytest
import trio
import trio.testing

from trikv.net.accept import ACCEPTED_AT_ONCE, CONNECTIONS_MAX, CONNECTIONS_MIN, accept_forever
from trikv.net.doors import TcpTransport, split_address
from trikv.testing.inprocess import MemoryTransport


async def serve_badly(stream: trio.abc.Stream) -> None:
    """Raise what the first byte says."""
    kind = await stream.receive_some(1)
    if kind == b"k":
        raise KeyError("nothing has this key")
    if kind == b"g":
        async with trio.open_nursery():
            raise ValueError("in a nursery")
    if kind == b"a":
        raise AssertionError
    await stream.send_all(b"served")


@pytest.mark.parametrize(("sent", "said"), [(b"k", "KeyError"), (b"g", "ValueError"), (b"a", "AssertionError")])
async def test_what_a_connection_raises_ends_it_alone(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, sent: bytes, said: str
) -> None:
    transport = MemoryTransport()
    listening = await transport.listen("127.0.0.1:0")

    async def run() -> None:
        await accept_forever(listening.listener, serve_badly, what="this port", nursery=nursery, at_most=10)

    nursery.start_soon(run)
    bad = await transport.connect(listening.address)
    good = await transport.connect(listening.address)
    await bad.send_all(sent)
    with contextlib.suppress(trio.BrokenResourceError):
        assert not await bad.receive_some(1)
    await good.send_all(b".")
    assert await good.receive_some(6) == b"served"
    [record] = caplog.records
    assert said in record.getMessage()
    assert "\n" not in record.getMessage()
    assert record.levelno == logging.WARNING
    nursery.cancel_scope.cancel()


class Passes(trio.abc.Instrument):
    """How often the scheduler has waited for the system."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_all_that_wait_are_accepted_in_one_pass_of_the_scheduler(nursery: trio.Nursery) -> None:
    """In a pass all open connections have their turn, so one that waits must not wait for one pass each."""
    listening = await TcpTransport().listen("127.0.0.1:0")
    clients = [socket.create_connection(split_address(listening.address)) for _ in range(ACCEPTED_AT_ONCE)]
    served, passes = 0, Passes()
    all_served = trio.Event()

    async def serve(stream: trio.abc.Stream) -> None:
        nonlocal served
        served += 1
        if served == len(clients):
            all_served.set()
        await trio.sleep_forever()

    async def run() -> None:
        await accept_forever(listening.listener, serve, what="this port", nursery=nursery, at_most=100)

    trio.lowlevel.add_instrument(passes)
    nursery.start_soon(run)
    with trio.fail_after(10):
        await all_served.wait()
    trio.lowlevel.remove_instrument(passes)
    assert passes.count < 10
    for client in clients:
        client.close()
    nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(listening.listener)


async def test_a_loop_that_is_cancelled_leaves_those_that_wait_to_the_next_one() -> None:
    listening = await TcpTransport().listen("127.0.0.1:0")
    clients = [socket.create_connection(split_address(listening.address)) for _ in range(5)]
    served = 0

    async def serve(stream: trio.abc.Stream) -> None:
        nonlocal served
        served += 1

    async with trio.open_nursery() as connections:
        end = connections.cancel_scope.cancel  # by the second connection, for which there is no room
        await accept_forever(listening.listener, serve, what="this port", nursery=connections, at_most=1, make_room=end)
    begun, served = served, 0
    assert begun == 1
    async with trio.open_nursery() as connections:
        connections.start_soon(
            partial(accept_forever, listening.listener, serve, what="this port", nursery=connections, at_most=9)
        )
        with trio.fail_after(10):
            while served < len(clients) - 2:
                await trio.lowlevel.checkpoint()
        connections.cancel_scope.cancel()
    for client in clients:
        client.close()
    await trio.aclose_forcefully(listening.listener)


async def test_cancellation_passes_the_boundary(caplog: pytest.LogCaptureFixture) -> None:
    """Also when something else breaks on the way."""
    transport = MemoryTransport()
    listening = await transport.listen("127.0.0.1:0")

    async def serve(stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise OSError("on the way out")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: accept_forever(listening.listener, serve, what="this port", nursery=nursery, at_most=10)
        )
        await transport.connect(listening.address)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert "on the way out" in caplog.text


class Exhausted(trio.abc.Listener[trio.abc.Stream]):
    """Has no descriptor for the first connection, nor for the second."""

    def __init__(self, real: trio.abc.Listener[trio.abc.Stream]) -> None:
        self.real = real
        self.failures = 2

    async def accept(self) -> trio.abc.Stream:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return await self.real.accept()

    async def aclose(self) -> None:
        await self.real.aclose()


async def test_without_descriptors_connections_wait(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    transport = MemoryTransport()
    listening = await transport.listen("127.0.0.1:0")
    listener = Exhausted(listening.listener)
    nursery.start_soon(lambda: accept_forever(listener, serve_badly, what="this port", nursery=nursery, at_most=10))
    stream = await transport.connect(listening.address)
    await stream.send_all(b".")
    assert await stream.receive_some(6) == b"served"
    assert [record.exc_info for record in caplog.records] == [None, None]
    nursery.cancel_scope.cancel()


LOOK = """
import resource, trio
from trikv.net.accept import connections_max, raise_descriptor_limit
raise_descriptor_limit()
async def main():
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(*resource.getrlimit(resource.RLIMIT_NOFILE), connections_max(listener))
trio.run(main)
"""


@pytest.mark.parametrize("hard", [64, 300, 4096])
def test_connections_leave_descriptors_for_the_disk_and_for_links(hard: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, hard))

    told = subprocess.run([sys.executable, "-c", LOOK], preexec_fn=limit, check=True, capture_output=True, text=True)
    soft, _, each = map(int, told.stdout.split())
    assert soft == hard
    assert CONNECTIONS_MIN <= each <= CONNECTIONS_MAX
    assert 2 * each <= hard - min(256, hard // 3)
