"""The proxy that cuts links: does it pass on everything, and what does each end see when it does not?"""

from functools import partial

import trio
from trio.testing import wait_all_tasks_blocked

from trikv.testing.processes.proxy import Direction, ProxyLink, serve_link


async def echo(stream: trio.SocketStream) -> None:
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass  # as some tests mean it to be


async def start(nursery: trio.Nursery) -> ProxyLink:
    [listener] = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
    port = listener.socket.getsockname()[1]
    link: ProxyLink = await nursery.start(serve_link, lambda: f"127.0.0.1:{port}")
    return link


async def dial(link: ProxyLink) -> trio.SocketStream:
    host, _, port = link.address.partition(":")
    return await trio.open_tcp_stream(host, int(port))


async def read(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        if not piece:
            break
        data += piece
    return data


async def is_broken(stream: trio.SocketStream) -> bool:
    try:
        return await stream.receive_some(1) == b""
    except trio.BrokenResourceError:
        return True


async def test_everything_arrives_and_an_end_is_told(nursery: trio.Nursery) -> None:
    link = await start(nursery)
    async with await dial(link) as near:
        sent = bytes(range(256)) * 4096
        nursery.start_soon(near.send_all, sent)
        assert await read(near, len(sent)) == sent
        await near.send_eof()
        assert await near.receive_some(1) == b""


async def test_a_held_link_says_nothing_and_delivers_when_it_is_mended(nursery: trio.Nursery) -> None:
    link = await start(nursery)
    held: list[tuple[Direction, ...]] = [(), ("questions",), ("answers",)]
    async with await dial(link) as near:
        for directions in held:
            link.hold(*directions)
            await near.send_all(b"late")
            with trio.move_on_after(0.05) as waited:
                await near.receive_some(1)
            assert waited.cancelled_caught
            link.mend()
            assert await read(near, 4) == b"late"


async def test_a_cut_link_breaks_what_is_open_and_what_comes(nursery: trio.Nursery) -> None:
    link = await start(nursery)
    async with await dial(link) as near:
        await near.send_all(b"before")
        assert await read(near, 6) == b"before"
        link.cut()
        assert await is_broken(near)
    async with await dial(link) as near:
        assert await is_broken(near)
    link.mend()
    async with await dial(link) as near:
        await near.send_all(b"after")
        assert await read(near, 5) == b"after"


async def test_what_a_link_held_is_gone_when_it_is_cut(nursery: trio.Nursery) -> None:
    link = await start(nursery)
    async with await dial(link) as near:
        link.hold()
        await near.send_all(b"never")
        await wait_all_tasks_blocked()
        link.cut()
        assert await is_broken(near)
    link.mend()
    async with await dial(link) as near:
        await near.send_all(b"again")
        assert await read(near, 5) == b"again"


async def test_a_dead_target_is_a_broken_connection(nursery: trio.Nursery) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listener.socket.getsockname()
    await listener.aclose()
    link: ProxyLink = await nursery.start(serve_link, lambda: f"{host}:{port}")
    async with await dial(link) as near:
        assert await is_broken(near)
