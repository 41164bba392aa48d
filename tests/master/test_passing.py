"""Passing requests on over a link between two masters, on the virtual clock; with leaders that answer oddly, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trikv.core.calls import PIECE_BYTES, Op, PassOn, PassPart, PassRest, parse
from trikv.core.errors import Fault, Outcome, TrikvError
from trikv.core.record import EPOCH_MAX
from trikv.core.session import Call, Hello, PeerError
from trikv.master import passing
from trikv.master.leadership import Candidate
from trikv.master.passing import HELD_BYTES_MAX, HELD_S, KEPT_S, NotLeading, PassedOn, Passing
from trikv.master.standby import frame_bytes_max_of, serve_standby_links
from trikv.net.doors import Doors
from trikv.net.link import QUEUE_BYTES_MAX, Link
from trikv.net.peers import Peer
from trikv.net.serve import serve_links
from trikv.testing.inprocess import MemoryTransport
from trikv.testing.sharedstore import SharedState

LEADER = Candidate("leader", "127.0.0.1:8000", "127.0.0.1:8080")
SECOND = Candidate("second", "127.0.0.1:8001", "127.0.0.1:8081")
THIRD = Candidate("third", "127.0.0.1:8002", "127.0.0.1:8082")

Told = tuple[int, Mapping[str, str], bytes]
Answer = Callable[[Link, int, Any], None]  # to a call with this id, as the leader gives it


def request_of(body: bytes = b"") -> PassOn:
    return PassOn("id-1", "PUT", ("PUT", "/v1/kv/{key...}"), b"/v1/kv/k", b"timeout=1", {"if-match": '"1"'}, body)


class World:
    """A leader of which each test says what it answers, and a standby. Nothing here takes time by itself."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.transport = MemoryTransport()
        self.state = SharedState()
        self.leader = self.state.client()
        self.nursery = nursery
        self.asked: list[Any] = []

    def passing_of(self, me: Candidate) -> Passing:
        return Passing(self.state.client(), me, lambda: "c", Doors(self.transport))

    async def start(self, answer: Answer, role: str = "master") -> Passing:
        await self.nursery.start(self.leader.run, LEADER)
        assert await self.leader.take_lead("today")
        await self.listen(answer, role)
        return await self.stand_by()

    async def listen(self, answer: Answer, role: str = "master") -> None:
        listening = await self.transport.listen(LEADER.address)

        def handle(link: Link, incoming: list[Call]) -> None:
            for call_id, _, op, *arguments in incoming:
                request = parse(op, arguments)
                self.asked.append(request)
                answer(link, call_id, request)

        def judge(hello: Hello) -> None:
            assert (hello.role, hello.cluster) == ("standby", "c")

        def hello() -> Hello:
            return Hello(role, "c", "7/leader", "c")

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            await serve_links(
                listening.listener, hello, judge, handle, frame_bytes_max=frame_bytes_max_of, task_status=task_status
            )

        await self.nursery.start(serve)

    async def stand_by(self) -> Passing:
        standby = self.passing_of(SECOND)
        await self.nursery.start(standby.store.run, SECOND)
        self.nursery.start_soon(standby.run)
        with trio.move_on_after(1):
            while standby.why_not:
                await standby.changed.wait()
        return standby


@pytest.fixture
def world(nursery: trio.Nursery) -> World:
    return World(nursery)


async def pass_on(
    standby: Passing, *, writes: bool = True, body: bytes = b"", timeout_s: float = 2.0
) -> Told | tuple[str, Outcome]:
    """The answer, or how the request ended without one."""
    try:
        return await standby.pass_on(
            lambda _left_s: request_of(body),
            len(body),
            writes=writes,
            deadline_s=trio.current_time() + timeout_s,
            patience_s=0.5,
        )
    except TrikvError as error:
        return error.kind.code, error.kind.outcome


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 what is waited for is in several places
            await trio.sleep(0.01)


def says(fault: int, *payload: Any) -> Answer:
    return lambda link, call_id, _: link.answer(call_id, fault, list(payload))


async def test_a_request_arrives_as_it_was_and_so_does_its_answer(world: World, autojump_clock: MockClock) -> None:
    standby = await world.start(says(Fault.OK, 204, ["etag", '"1.0-1"', "x", "\xe9"], b"", 0))
    assert await pass_on(standby, body=b"\0\xff") == (204, {"etag": '"1.0-1"', "x": "\xe9"}, b"")
    assert world.asked == [request_of(b"\0\xff")]
    assert standby.leader == LEADER
    assert standby.leader_term == 7
    assert standby.held_bytes == 0


@pytest.mark.parametrize(
    "payload",
    [
        [],
        [200],
        [200, [], b"", 0, 0],
        [199, [], b"", 0],
        [600, [], b"", 0],
        [True, [], b"", 0],
        ["200", [], b"", 0],
        [200, ["a"], b"", 0],
        [200, ["a", 1], b"", 0],
        [200, ["A", "1"], b"", 0],
        [200, ["a b", "1"], b"", 0],
        [200, ["a", "1\r\nb: 2"], b"", 0],
        [200, ["a", "1", "a", "2"], b"", 0],
        [200, ["a", "\u20ac"], b"", 0],
        [200, ["a"] * 10_000, b"", 0],
        [200, [], "", 0],
        [200, [], b"", -1],
        [200, [], b"", None],
    ],
)
async def test_what_is_no_answer_is_none(world: World, autojump_clock: MockClock, payload: list[Any]) -> None:
    answers = [payload, payload]
    standby = await world.start(lambda link, call_id, _: link.answer(call_id, Fault.OK, answers.pop()))
    assert await pass_on(standby) == ("unknown", Outcome.UNKNOWN)
    assert await pass_on(standby, writes=False) == ("unanswered", Outcome.REFUSED)
    answers.append([200, [], b"v", 0])
    assert await pass_on(standby) == (200, {}, b"v")  # over a new link


@pytest.mark.parametrize(
    ("fault", "write", "read"),
    [
        (Fault.BUSY, ("overloaded", Outcome.REFUSED), ("overloaded", Outcome.REFUSED)),
        (Fault.NO_ROOM, ("unknown", Outcome.UNKNOWN), ("unanswered", Outcome.REFUSED)),
        (Fault.BAD_CALL, ("unknown", Outcome.UNKNOWN), ("unanswered", Outcome.REFUSED)),
        (99, ("unknown", Outcome.UNKNOWN), ("unanswered", Outcome.REFUSED)),
        (-4, ("unknown", Outcome.UNKNOWN), ("unanswered", Outcome.REFUSED)),
        (-1, ("unknown", Outcome.UNKNOWN), ("unanswered", Outcome.REFUSED)),
    ],
)
async def test_what_a_fault_comes_to(
    world: World, autojump_clock: MockClock, fault: int, write: tuple[str, Outcome], read: tuple[str, Outcome]
) -> None:
    standby = await world.start(says(fault))
    assert await pass_on(standby) == write
    assert await pass_on(standby, writes=False) == read
    assert len(world.asked) == 2


@pytest.mark.parametrize(
    ("rest", "is_over"),
    [
        ([Fault.OK, b"", 0], True),
        ([Fault.OK, "x", 0], True),
        ([Fault.OK, b"x", -1], True),
        ([Fault.OK], True),
        ([Fault.OK, bytes(PIECE_BYTES), 1], True),  # and so on, without end
        ([Fault.BUSY], False),
        (None, True),  # silence: it seems to be gone
    ],
)
async def test_an_answer_of_which_the_rest_does_not_come(
    world: World, autojump_clock: MockClock, rest: list[Any] | None, is_over: bool
) -> None:
    def answer(link: Link, call_id: int, request: Any) -> None:
        if isinstance(request, PassOn):
            link.answer(call_id, Fault.OK, [200, [], b"first", 1])
        elif rest is not None:
            link.answer(call_id, rest[0], rest[1:])

    standby = await world.start(answer)
    link = standby.link
    assert await pass_on(standby) == ("unknown", Outcome.UNKNOWN)
    assert await pass_on(standby, writes=False) == ("unanswered", Outcome.REFUSED)
    assert (standby.link is not link) is is_over  # else others go on over it


async def test_a_rest_may_take_longer_than_the_request(world: World, autojump_clock: MockClock) -> None:
    async def answer_slowly(link: Link, call_id: int, request: Any) -> None:
        if isinstance(request, PassOn):
            await trio.sleep(1.9)
            link.answer(call_id, Fault.OK, [200, [], b"1", 1])
        else:
            await trio.sleep(3)
            link.answer(call_id, Fault.OK, [b"2", 0])

    standby = await world.start(lambda *call: world.nursery.start_soon(answer_slowly, *call))
    assert await pass_on(standby) == (200, {}, b"12")


async def test_no_answer_in_time(world: World, autojump_clock: MockClock) -> None:
    standby = await world.start(lambda *_: None)
    began_s = trio.current_time()
    assert await pass_on(standby) == ("unknown", Outcome.UNKNOWN)
    assert await pass_on(standby, writes=False) == ("unanswered", Outcome.REFUSED)
    assert trio.current_time() - began_s < 2 * (2.0 + 0.5 + 2 * passing.SWEEP_S)


async def test_a_master_that_leads_no_more_has_done_nothing_so_the_next_one_is_asked(
    world: World, autojump_clock: MockClock
) -> None:
    answers = [says(Fault.OK, 204, [], b"", 0), says(Fault.NOT_LEADING, "x:1"), says(Fault.NOT_LEADING)]
    standby = await world.start(lambda *call: answers.pop()(*call))
    assert await pass_on(standby) == (204, {}, b"")
    assert len(world.asked) == 3


async def test_a_master_that_says_for_ever_that_it_does_not_lead(world: World, autojump_clock: MockClock) -> None:
    standby = await world.start(says(Fault.NOT_LEADING))
    assert await pass_on(standby) == ("no_leader", Outcome.REFUSED)
    assert 2 < len(world.asked) <= 2.0 / passing.AGAIN_S + 1


async def test_two_standbys_that_take_each_other_for_the_leader_make_no_circle(
    world: World, autojump_clock: MockClock
) -> None:
    standby = await world.start(says(Fault.OK, 204, [], b"", 0), role="standby")
    assert "no master that leads" in standby.why_not
    assert await pass_on(standby) == ("no_leader", Outcome.REFUSED)
    assert world.asked == []


async def test_a_standby_names_the_leader_and_passes_nothing_on(world: World, autojump_clock: MockClock) -> None:
    standby = await world.start(says(Fault.OK, 204, [], b"", 0))
    listening = await world.transport.listen(SECOND.address)
    await world.nursery.start(serve_standby_links, standby, listening)
    third = world.passing_of(THIRD)
    heard: list[tuple[int, list[Any]]] = []
    link = await Peer(SECOND.address, third.hello, Doors(world.transport))._dial()
    world.nursery.start_soon(link.run)
    deadline_s = trio.current_time() + 1
    for op, arguments in (
        (Op.PASS_ON, request_of(b"x" * 100_000).to_wire()),
        (Op.PASS_PART, [1, bytes(PIECE_BYTES)]),
        (Op.PASS_REST, [1]),
        (Op.ENLIST, ["127.0.0.1:9"]),
    ):
        link.call(op, arguments, deadline_s, lambda fault, payload: heard.append((fault, payload)))
    await until(lambda: len(heard) == 4)
    assert heard == [(Fault.NOT_LEADING, [LEADER.address])] * 4
    assert world.asked == []
    link.call(Op.LIST, ["i", [], b"", None, 1, False], deadline_s, lambda fault, _: heard.append((fault, [])))
    await until(lambda: len(heard) == 5)
    assert heard[-1] == (Fault.LOST, [])  # what is asked of workers ends the link


async def test_a_leader_that_is_replaced_may_still_answer_what_it_was_asked(
    world: World, autojump_clock: MockClock
) -> None:
    waiting: list[tuple[Link, int]] = []
    standby = await world.start(lambda link, call_id, _: waiting.append((link, call_id)))
    answers: list[Any] = []

    async def write() -> None:
        answers.append(await pass_on(standby))

    world.nursery.start_soon(write)
    await until(lambda: waiting)
    await world.leader.give_up_lead()
    while standby.leader is not None:
        await standby.changed.wait()
    await trio.sleep(0.3)
    link, call_id = waiting[0]
    link.answer(call_id, Fault.OK, [204, [], b"", 0])
    await until(lambda: answers)
    assert answers == [(204, {}, b"")]
    await trio.sleep(2 * passing.SWEEP_S)
    assert await pass_on(standby) == ("no_leader", Outcome.REFUSED)


async def test_more_than_may_wait_is_refused_and_the_rest_arrives(world: World, autojump_clock: MockClock) -> None:
    standby = await world.start(says(Fault.OK, 204, [], b"", 0))
    world.transport.hold(LEADER.address)
    outcomes: list[Any] = []
    body = bytes(2 * PIECE_BYTES)

    async def write() -> None:
        outcomes.append(await pass_on(standby, body=body, timeout_s=30))

    for _ in range(HELD_BYTES_MAX // len(body) + 5):
        world.nursery.start_soon(write)
    await trio.testing.wait_all_tasks_blocked()
    refused = len(outcomes)
    assert refused >= 5
    assert set(outcomes) == {("overloaded", Outcome.REFUSED)}
    assert standby.held_bytes <= HELD_BYTES_MAX
    assert standby.link is not None
    assert standby.link.queue_bytes <= QUEUE_BYTES_MAX
    world.transport.release(LEADER.address)
    await until(lambda: len(outcomes) == HELD_BYTES_MAX // len(body) + 5)
    assert [each for each in outcomes[refused:] if each != (204, {}, b"")] == []
    assert sum(isinstance(request, PassOn) for request in world.asked) == len(outcomes) - refused


# --- at the leader ----------------------------------------------------------------------------------------------------


async def start_both(world: World, serve: passing.Serve) -> tuple[PassedOn, Passing]:
    passed_on = PassedOn()
    await world.nursery.start(passed_on.run)
    world.nursery.start_soon(_serve_for_ever, passed_on, serve)
    return passed_on, await world.start(lambda link, call_id, request: passed_on.handle(link, call_id, 2000, request))


async def _serve_for_ever(passed_on: PassedOn, serve: passing.Serve) -> None:
    with passed_on.served_by(serve):
        await trio.sleep_forever()


@pytest.mark.parametrize("size_bytes", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 8 * PIECE_BYTES + 7])
async def test_bodies_and_answers_of_any_size_go_through(
    world: World, autojump_clock: MockClock, size_bytes: int
) -> None:
    async def echo(request: PassOn) -> Told:
        return 200, {"x": "y"}, request.body

    passed_on, standby = await start_both(world, echo)
    body = (bytes(range(251)) * (size_bytes // 251 + 1))[:size_bytes]
    assert await pass_on(standby, body=body) == (200, {"x": "y"}, body)
    assert passed_on.held_bytes == standby.held_bytes == 0


async def test_an_error_in_one_request_is_that_requests_alone(world: World, autojump_clock: MockClock) -> None:
    async def fail(request: PassOn) -> Told:
        if request.body == b"leads no more":
            raise NotLeading
        if request.body == b"cannot be sent":
            return 200, {"x": object()}, b""  # type: ignore[dict-item]
        raise RuntimeError(request.body)

    passed_on, standby = await start_both(world, fail)
    assert await pass_on(standby, body=b"odd") == ("unknown", Outcome.UNKNOWN)
    assert await pass_on(standby, body=b"leads no more") == ("no_leader", Outcome.REFUSED)
    assert await pass_on(standby, body=b"cannot be sent") == ("unknown", Outcome.UNKNOWN)
    await passed_on.wait_idle()
    assert passed_on.held_bytes == 0


async def test_an_answer_for_which_there_is_no_room_leaves_a_write_unknown(
    world: World, autojump_clock: MockClock
) -> None:
    async def much(_request: PassOn) -> Told:
        return 200, {}, bytes(HELD_BYTES_MAX + 1)

    _, standby = await start_both(world, much)
    assert await pass_on(standby) == ("unknown", Outcome.UNKNOWN)
    assert await pass_on(standby, writes=False) == ("unanswered", Outcome.REFUSED)


async def test_requests_beyond_the_bound_are_refused(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passing, "REQUESTS_MAX", 3)

    async def wait(_request: PassOn) -> Told:
        await trio.sleep(1)
        return 204, {}, b""

    passed_on, standby = await start_both(world, wait)
    outcomes: list[Any] = []

    async def write() -> None:
        outcomes.append(await pass_on(standby))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(write)
    assert sorted(map(str, outcomes)) == sorted(map(str, 2 * [("overloaded", Outcome.REFUSED)] + 3 * [(204, {}, b"")]))
    assert await pass_on(standby) == (204, {}, b"")
    await passed_on.wait_idle()


async def test_pieces_that_nobody_completes_are_forgotten(world: World, autojump_clock: MockClock) -> None:
    async def serve(_request: PassOn) -> Told:
        return 204, {}, b""

    passed_on, standby = await start_both(world, serve)
    link = standby.link
    assert link is not None
    faults: list[int] = []

    async def send(count: int, of: int) -> None:
        for _ in range(count):
            arguments = [of, bytes(PIECE_BYTES)]
            link.call(Op.PASS_PART, arguments, trio.current_time() + 1, lambda fault, _: faults.append(fault))
            await trio.testing.wait_all_tasks_blocked()

    await send(HELD_BYTES_MAX // PIECE_BYTES - 1, of=1)
    assert set(faults) == {Fault.OK}
    await send(2, of=2)
    assert faults[-1] == Fault.BUSY
    assert passed_on.held_bytes <= HELD_BYTES_MAX
    missed: list[int] = []
    deadline_s = trio.current_time() + 1
    link.call(Op.PASS_ON, request_of()._replace(parts=2).to_wire(), deadline_s, lambda fault, _: missed.append(fault))
    await trio.testing.wait_all_tasks_blocked()
    assert missed == [Fault.BUSY]  # its pieces were dropped, and it was not begun
    await trio.sleep(HELD_S)
    await send(1, of=3)
    assert faults[-1] == Fault.OK
    assert passed_on.held_bytes == PIECE_BYTES


async def test_answers_of_which_nobody_fetches_the_rest_hold_up_others_for_moments_only(
    world: World, autojump_clock: MockClock
) -> None:
    """So it is where clients went away."""

    async def serve(request: PassOn) -> Told:
        return (204, {}, b"") if request.body else (200, {}, bytes(HELD_BYTES_MAX // 4))

    passed_on, standby = await start_both(world, serve)
    link = standby.link
    assert link is not None
    for _ in range(4):
        link.call(Op.PASS_ON, request_of().to_wire(), trio.current_time() + 1, lambda _fault, _payload: None)
    await trio.testing.wait_all_tasks_blocked()
    assert passed_on.held_bytes == HELD_BYTES_MAX
    assert await pass_on(standby, body=b"x") == ("overloaded", Outcome.REFUSED)
    await trio.sleep(KEPT_S)
    assert await pass_on(standby, body=b"x") == (204, {}, b"")
    assert passed_on.held_bytes == 0


async def test_a_rest_is_asked_for_once_and_by_its_own_link(world: World, autojump_clock: MockClock) -> None:
    passed_on, standby = await start_both(world, lambda _: _large())
    link = standby.link
    assert link is not None
    heard: list[tuple[int, list[Any]]] = []
    for rest in (0, 1, 7, EPOCH_MAX):
        link.call(Op.PASS_REST, [rest], trio.current_time() + 1, lambda *told: heard.append(told))
    await trio.testing.wait_all_tasks_blocked()
    assert [fault for fault, _ in heard] == [Fault.BUSY] * 4
    assert await pass_on(standby) == await _large()
    assert passed_on.held_bytes == 0


async def _large() -> Told:
    return 200, {}, bytes(2 * PIECE_BYTES)


async def test_a_leader_that_stops_begins_nothing_more(world: World, autojump_clock: MockClock) -> None:
    async def serve(_request: PassOn) -> Told:
        await trio.sleep(1)
        return 204, {}, b""

    passed_on, standby = await start_both(world, serve)
    outcomes: list[Any] = []

    async def write() -> None:
        outcomes.append(await pass_on(standby))

    world.nursery.start_soon(write)
    await trio.testing.wait_all_tasks_blocked()
    passed_on.stop()
    world.nursery.start_soon(write)
    await passed_on.wait_idle()
    await trio.testing.wait_all_tasks_blocked()
    assert outcomes == [(204, {}, b"")]
    await trio.sleep(5)
    assert outcomes[1:] == [("no_leader", Outcome.REFUSED)]


# --- the shapes of the calls ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        (Op.PASS_ON, []),
        (Op.PASS_ON, request_of().to_wire()[:-1]),
        (Op.PASS_ON, [*request_of().to_wire(), 0]),
        *((Op.PASS_ON, [*request_of().to_wire()[:at], None, *request_of().to_wire()[at + 1 :]]) for at in range(9)),
        (Op.PASS_ON, request_of()._replace(parts=-1).to_wire()),
        (Op.PASS_ON, request_of()._replace(headers={"a": "b\nc"}).to_wire()),
        (Op.PASS_PART, [True, b""]),
        (Op.PASS_PART, [1, "x"]),
        (Op.PASS_PART, [1, b""]),  # any number of these would fit a frame
        (Op.PASS_PART, [1, bytes(PIECE_BYTES + 1)]),
        (Op.PASS_ON, request_of()._replace(path=bytes(1 << 20)).to_wire()),
        (Op.PASS_ON, request_of()._replace(query=bytes(1 << 20)).to_wire()),
        (Op.PASS_ON, request_of()._replace(headers={"a": "b" * (1 << 20)}).to_wire()),
        (Op.PASS_REST, [1 << 64]),
        (Op.PASS_REST, []),
    ],
)
def test_a_call_of_another_shape_is_refused(op: Op, arguments: list[Any]) -> None:
    with pytest.raises(PeerError):
        parse(op, arguments)


def test_calls_that_pass_on_are_read_as_they_were_written() -> None:
    request = request_of(b"body")._replace(parts=3)
    assert parse(Op.PASS_ON, request.to_wire()) == request
    assert parse(Op.PASS_PART, [3, bytes(PIECE_BYTES)]) == PassPart(3, bytes(PIECE_BYTES))
    assert parse(Op.PASS_REST, [4]) == PassRest(4)
