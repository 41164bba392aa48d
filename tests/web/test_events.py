"""The stream of events, over real HTTP where it is about connections, on a virtual clock where it is about time."""

import json
from contextlib import ExitStack

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trikv.core.errors import Refused
from trikv.master.events import EventLog
from trikv.testing.processes.cluster import LocalCluster, wait_until
from trikv.web.events import make_stream
from trikv.web.message import Request
from trikv.web.streams import KEEPALIVE_S, STREAMS_MAX, Stream, Streams

EVENTS = "/v1/events"


def parse(text: str) -> list[dict[str, str]]:
    """The blocks of a stream, comments left out, as a browser would read them."""
    blocks = [
        dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        for block in text.split("\n\n")
    ]
    return [block for block in blocks if "data" in block]


def request(query: bytes = b"", **headers: str) -> Request:
    return Request("GET", EVENTS.encode(), query, {name.replace("_", "-"): value for name, value in headers.items()})


def log_of(*kinds: str) -> EventLog:
    log = EventLog(7)
    for kind in kinds:
        log.note(kind)
    return log


async def read_all(stream: Stream) -> list[str]:
    """The ids of a stream that ends."""
    return [block["id"] async for piece in stream for block in parse(piece.decode())]


# --- over HTTP --------------------------------------------------------------------------------------------------------


def test_what_happened_can_be_read_and_ends_if_that_is_wished(web: httpx.Client) -> None:
    answer = web.get(EVENTS, params={"follow": "false"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    blocks = parse(answer.text)
    documents = [json.loads(block["data"]) for block in blocks]
    assert [(block["id"], block["event"]) for block in blocks] == [(d["id"], d["kind"]) for d in documents]
    assert [d["worker"] for d in documents if d["kind"] == "worker_enlisted"]
    assert all(d["at"].endswith("+00:00") for d in documents)
    rest = parse(web.get(EVENTS, params={"follow": "false", "after": blocks[2]["id"]}).text)
    assert [block["id"] for block in rest][: len(blocks) - 3] == [block["id"] for block in blocks[3:]]
    gap = parse(web.get(EVENTS, params={"follow": "false", "after": "0-1"}).text)[0]
    assert (gap["event"], json.loads(gap["data"])["after"]) == ("gap", "0-1")


def test_it_starts_where_the_state_was_read(web: httpx.Client) -> None:
    last = web.get("/v1/cluster").json()["last_event"]
    assert all(
        block["event"] != "gap" for block in parse(web.get(EVENTS, params={"follow": "false", "after": last}).text)
    )


def test_a_head_request_ends(web: httpx.Client) -> None:
    assert web.head(EVENTS).headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize("query", ["since=1", "follow=perhaps", "after=1&after=2"])
def test_what_cannot_be_understood_is_refused(web: httpx.Client, query: str) -> None:
    answer = web.get(f"{EVENTS}?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_there_are_only_so_many_streams_and_one_that_is_left_makes_room(cluster: LocalCluster) -> None:
    with (
        httpx.Client(base_url=cluster.url, trust_env=False, timeout=30, limits=httpx.Limits()) as web,
        ExitStack() as all_open,
    ):
        streams = [all_open.enter_context(web.stream("GET", EVENTS)) for _ in range(STREAMS_MAX)]
        assert {stream.status_code for stream in streams} == {200}
        pieces = [stream.iter_raw() for stream in streams]
        assert all(next(each).startswith(b"retry: ") for each in pieces)
        refused = web.get(EVENTS)
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert str(STREAMS_MAX) in refused.json()["detail"]
        assert web.put("/v1/kv/beside-streams", content=b"1").status_code == 204
        streams[0].close()
        wait_until(
            lambda: web.get(EVENTS, params={"follow": "false"}).status_code == 200, what="one that left has made room"
        )
    assert "Traceback" not in cluster.master.log.read_text()


def test_a_stream_tells_what_happens_and_ends_in_good_order_when_the_master_stops() -> None:
    with (
        LocalCluster(workers=1, replicas=1, timeout_s=20.0) as cluster,
        httpx.Client(base_url=cluster.url, trust_env=False, timeout=30) as web,
        web.stream("GET", EVENTS, params={"kind": "mode_switched,term"}) as stream,
    ):
        lines = stream.iter_lines()
        web.put("/v1/mode", json={"mode": "chain"}).raise_for_status()
        told = next(line for line in lines if line.startswith("data: "))
        assert json.loads(told.removeprefix("data: "))["mode"] == "chain"
        assert cluster.master.stop() == 0
        assert [line for line in lines if line.startswith("data: ")] == [], "and no error: the last chunk has come"
        assert "Traceback" not in cluster.master.log.read_text()


# --- on a virtual clock -----------------------------------------------------------------------------------------------


async def test_the_header_of_a_browser_that_comes_back_outweighs_the_address() -> None:
    log = log_of("a", "b", "c")
    both = make_stream(Streams(), log, request(b"after=7-1&follow=false", last_event_id="7-2"))
    assert await read_all(both) == ["7-3"]
    assert await read_all(make_stream(Streams(), log, request(b"after=7-1&follow=false"))) == ["7-2", "7-3"]


async def test_a_filter_leaves_out_other_kinds_but_never_a_gap() -> None:
    log = log_of("a", "b", "c", "a")
    assert await read_all(make_stream(Streams(), log, request(b"kind=a,c&follow=false"))) == ["7-1", "7-3", "7-4"]
    assert await read_all(make_stream(Streams(), log, request(b"kind=c&follow=false&after=1-1"))) == ["7-0", "7-3"]


async def test_a_silent_stream_says_that_it_lives_and_how_far_the_log_has_come(autojump_clock: MockClock) -> None:
    log = log_of("a")
    stream = make_stream(Streams(), log, request(b"kind=b"))
    assert (await anext(stream)).startswith(b"retry: ")
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def happen() -> None:  # unwanted news must not put it off
            for _ in range(3):
                await trio.sleep(KEEPALIVE_S / 2 - 1)
                log.note("a")

        nursery.start_soon(happen)
        piece = (await anext(stream)).decode()
    assert trio.current_time() - began_s >= KEEPALIVE_S
    assert piece.startswith("id: 7-3\n: ")
    assert parse(piece) == []
    log.note("b")
    assert [block["id"] for block in parse((await anext(stream)).decode())] == ["7-5"]


async def test_a_long_replay_goes_out_in_pieces_and_in_order() -> None:
    log = EventLog(7)
    for n in range(400):
        log.note("a", n=n, padding="x" * 1000)
    stream = make_stream(Streams(), log, request(b"follow=false"))
    pieces = [piece.decode() async for piece in stream]
    assert len(pieces) > 3
    assert max(map(len, pieces)) < 100_000
    assert [json.loads(block["data"])["n"] for piece in pieces for block in parse(piece)] == list(range(400))


async def test_streams_end_when_the_node_stops_and_no_more_are_opened(autojump_clock: MockClock) -> None:
    streams, log, stop, ended = Streams(), log_of("a"), trio.Event(), []

    async def follow(stream: Stream) -> None:
        with stream:
            ended.append(await read_all(stream))

    with trio.fail_after(KEEPALIVE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(streams.end_all, stop)
            for _ in range(3):
                nursery.start_soon(follow, make_stream(streams, log, request()))
            await wait_all_tasks_blocked()
            stop.set()
    assert ended == [["7-1"]] * 3
    with pytest.raises(Refused, match="shutting down"):
        make_stream(streams, log, request())


async def test_a_stream_counts_while_it_is_open_and_no_longer() -> None:
    streams, log = Streams(streams_max=1), log_of("a")
    first = make_stream(streams, log, request())
    with first:
        with pytest.raises(Refused) as refused:
            make_stream(streams, log, request())
        assert refused.value.kind.code == "overloaded"
    make_stream(streams, log, request())
