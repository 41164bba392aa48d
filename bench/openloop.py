"""Load at a fixed rate: an open loop, in which a slow answer delays no other request.

    latencies_s, failures = send_at_rate(port, requests, rate=1_000.0, seconds=10.0)

In a closed loop, each connection sends its next request when the last was answered, so a server that stops for a second
delays one request of each connection, and the percentiles hardly show it. Here a request is due at a time that was
fixed before, and its latency counts from that time, also if no connection was free then.

The load comes from this process, at some 150 microseconds a request. Beyond 3,000 requests a second it would be the
limit itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import trio

from trikv.testing.processes.connection import HttpConnection


def send_at_rate(
    port: int, requests: Sequence[bytes], *, rate: float, seconds: float, connections: int = 64
) -> tuple[list[float], int]:
    """Send the requests in turn, `rate` a second, and begin anew at their end; the latency of each that was answered
    well, in seconds, and how many were not."""
    return trio.run(_send_at_rate, port, requests, rate, seconds, connections)


async def _send_at_rate(
    port: int, requests: Sequence[bytes], rate: float, seconds: float, connections: int
) -> tuple[list[float], int]:
    count = int(rate * seconds)
    latencies_s: list[float] = []
    failures = 0
    due, wanted = trio.open_memory_channel[tuple[float, bytes]](count)

    async def serve(due_ones: trio.MemoryReceiveChannel[tuple[float, bytes]]) -> None:
        nonlocal failures
        async with HttpConnection(lambda: port) as connection, due_ones:
            async for due_s, request in due_ones:
                try:
                    await connection.dial()
                    answer = await connection.ask(request)
                except (OSError, trio.BrokenResourceError):
                    await connection.hang_up()
                    failures += 1
                    continue
                if answer.status < 300:
                    latencies_s.append(trio.current_time() - due_s)
                else:
                    failures += 1

    async with trio.open_nursery() as nursery, due, wanted:
        for _ in range(connections):
            nursery.start_soon(serve, wanted.clone())
        began_s = trio.current_time()
        for number, request in enumerate(islice(cycle(requests), count)):
            due_s = began_s + number / rate
            await trio.sleep_until(due_s)
            due.send_nowait((due_s, request))
        await due.aclose()
    return latencies_s, failures
