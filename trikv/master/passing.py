"""Passing requests on, from a master that stands by to the one that leads, over one link between the two.

A standby has no coordinator, no workers and no document. Its fronts hand each request to `Passing`, which sends it to
the leader as a call (`core/calls.py`, PASS_ON) and returns the leader's answer. All requests share the link, and those
of one moment share a frame. At the leader, `PassedOn` has each request answered as its own front would.

*What the client is told.* A request that was never sent, or that reached a master which does not lead, has certainly
not happened. It waits for a leader, within its deadline, and is then refused (`no_leader`). A request that was sent and
has no answer is unknown if it may change something, and refused if it reads. A request is passed on once: a standby
that is asked to pass one on answers NOT_LEADING, so two standbys that take each other for the leader make no circle.

*Who leads* is what the config store last told. That may be out of date: a request that reaches a deposed leader meets
what a client meets that asks it directly (`leadership.py`).

Bounds: the link's own (`QUEUE_BYTES_MAX` waiting to leave, `CALLS_MAX` under way); at the leader, `REQUESTS_MAX` under
way, `HELD_BYTES_MAX` in their bodies and in answers of which the rest is not fetched yet, and for each link
`ANSWERS_BYTES_MAX` of answers that wait to leave. Beyond a bound a request is refused, and has not happened. Bodies and
answers of more than `PIECE_BYTES` go in pieces, so that a large one does not hold up the others on the link.

Left out: a second link for large bodies. They share the one that there is.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import trio

from trikv.core.calls import (
    PIECE_BYTES,
    Op,
    PassedAnswer,
    PassOn,
    PassPart,
    PassRest,
    passed_from_wire,
    rest_from_wire,
)
from trikv.core.errors import Fault, Refused, TrikvError, Unknown
from trikv.core.session import Hello, MasterId, PeerError
from trikv.master.leadership import Candidate, SharedConfigStore
from trikv.net.doors import Doors
from trikv.net.link import CALLS_MAX, QUEUE_BYTES_MAX, Link
from trikv.net.peers import Peer
from trikv.net.signal import Signal, wait_any

REQUESTS_MAX: Final = 4096  # as many as a front has connections
HELD_BYTES_MAX: Final = 64 * 1024 * 1024
ANSWERS_BYTES_MAX: Final = 64 * 1024 * 1024
HELD_S: Final = 60.0  # the longest timeout that a client can ask for
GRACE_S: Final = 0.5  # the leader knows the deadline too, and its answer says more than silence does
REST_S: Final = 10.0  # for a further piece of an answer; the first one came in time
KEPT_S: Final = 2 * REST_S  # how long the leader keeps it: the one before may take its time, and so may the question
SWEEP_S: Final = 0.1
AGAIN_S: Final = 0.1  # after a master said that it does not lead

_CALL_BYTES: Final = 256  # what a call takes beside its path, query and body

_log = logging.getLogger(__name__)

Serve = Callable[[PassOn], Awaitable[tuple[int, Mapping[str, str], bytes]]]


class NotLeading(Exception):
    """This master has stopped leading, and the request was not begun."""


class Passing:
    """A standby's link to whichever master leads. Others may read `leader` and wait for `changed`."""

    def __init__(
        self, store: SharedConfigStore, me: Candidate, cluster: Callable[[], str | None], doors: Doors
    ) -> None:
        """`cluster`: the cluster's name, or None while this master has not read it."""
        self.changed = Signal()  # given when there is another leader, or the link to it came or broke
        self.store = store
        self.me = me
        self._cluster = cluster
        self._told_cluster: str | None = None  # by a leader, where this master had not read it
        self._doors = doors
        self._peer: Peer | None = None
        self._scope = trio.CancelScope()
        self._stopped = False
        self._next_parts = 0
        self.held_bytes = 0  # of the bodies of requests that wait or are under way

    @property
    def leader(self) -> Candidate | None:
        """The master that leads, as the config store last told; None also where it names this one."""
        leader = self.store.leader
        return None if leader is None or leader.master.name == self.me.name else leader.master

    @property
    def leader_term(self) -> int | None:
        """The term of the leader, as its greeting names it; None while there is no link to it."""
        link = self.link
        return None if link is None else MasterId.parse(link.peer.incarnation).term

    @property
    def link(self) -> Link | None:
        return None if self._peer is None else self._peer.link

    @property
    def why_not(self) -> str:
        """Why nothing can be passed on, for a person; empty if it can be."""
        leader = self.leader
        if leader is None:
            return "no master leads"
        if self.link is None:
            reason = "" if self._peer is None else self._peer.why_not
            return f"the master at {leader.address} leads, and there is no link to it: {reason or 'not dialled yet'}"
        return ""

    @property
    def cluster(self) -> str | None:
        return self._cluster() or self._told_cluster

    def hello(self) -> Hello:
        return Hello("standby", self.me.name, self.me.name, self.cluster)

    async def run(self) -> None:
        """Keep a link to the leader, whichever that is, until cancelled."""
        try:
            await self._follow_leader()
        finally:
            self._stopped = True  # what waits is refused, since nothing will come of it
            self._peer = None
            self.changed.notify()

    async def _follow_leader(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep_forever)
            while True:
                leader = self.leader
                if self._peer is not None:
                    nursery.start_soon(self._let_end, self._peer, self._scope)
                self._peer = None
                if leader is not None:
                    self._peer = Peer(
                        leader.address, self.hello, self._doors, judge=self._judge, on_link=self._note_link
                    )
                    self._scope = trio.CancelScope()
                    nursery.start_soon(self._run_peer, self._peer, self._scope)
                self.changed.notify()
                while self.leader == leader:
                    await self.store.changed.wait()

    async def _run_peer(self, peer: Peer, scope: trio.CancelScope) -> None:
        with scope:
            await peer.run()

    async def _let_end(self, peer: Peer, scope: trio.CancelScope) -> None:
        """Let a former leader answer what it was asked."""
        link, until_s = peer.link, trio.current_time() + HELD_S
        while link is not None and peer.link is link and link.in_flight and trio.current_time() < until_s:
            await trio.sleep(SWEEP_S)
            link.sweep(trio.current_time())
        scope.cancel()

    def _note_link(self, link: Link | None) -> None:
        if link is not None and self.cluster is None:
            self._told_cluster = link.peer.cluster
        self.changed.notify()

    def _judge(self, hello: Hello) -> str | None:
        if hello.role != "master":
            return f"a {hello.role} answers there, and no master that leads"
        if self.cluster not in (None, hello.cluster):
            return f"it is a master of cluster {hello.cluster}, and this is {self.cluster}"
        return None

    async def _sweep_forever(self) -> None:
        while True:
            await trio.sleep(SWEEP_S)
            if (link := self.link) is not None:
                link.sweep(trio.current_time())

    # --- a request ----------------------------------------------------------------------------------------------------

    async def wait_for_leader(self, deadline_s: float) -> Candidate:
        """
        Raises:
          Refused: no master leads by then.
        """
        while (leader := self.leader) is None:
            await self._wait(deadline_s)
        return leader

    async def pass_on(
        self, request: Callable[[float], PassOn], size_bytes: int, *, writes: bool, deadline_s: float, patience_s: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """The leader's answer: status, headers, body.

        Args:
          request: makes the request when it can be sent, told how much time is left to the deadline.
          size_bytes: of its body.
          writes: it may change something.
          deadline_s: it is sent before this `trio.current_time`, or not at all.
          patience_s: how long to wait for the answer beyond that.

        Raises:
          Refused: it has not happened, or it reads and there is no answer.
          Unknown: it was sent, and there is no answer.
        """
        if self.held_bytes + size_bytes > HELD_BYTES_MAX:
            raise Refused("overloaded", "too much waits for the leader already")
        self.held_bytes += size_bytes
        try:
            return await self._pass_on(request, writes, deadline_s, deadline_s + patience_s)
        finally:
            self.held_bytes -= size_bytes

    async def _pass_on(
        self, request: Callable[[float], PassOn], writes: bool, deadline_s: float, until_s: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        while True:
            link = self.link
            now = trio.current_time()
            if link is None or now >= deadline_s:
                await self._wait(deadline_s)
                continue
            before = self.changed.count
            fault, payload = await self._send(link, request(deadline_s - now), until_s)
            if fault == Fault.OK:
                return await self._read_answer(link, payload, writes)
            if fault in (Fault.CROWDED, Fault.BUSY):
                raise Refused("overloaded", "too much waits for the leader already")
            if fault == Fault.NOT_LEADING or (fault == Fault.NOT_SENT and self.changed.count == before):
                with trio.move_on_after(AGAIN_S):  # what the store tells of another leader may be on its way
                    await wait_any((self.changed, self.store.changed))
            elif fault != Fault.NOT_SENT:
                raise _without_answer(fault, writes)

    async def _wait(self, deadline_s: float) -> None:
        """Wait for a change of the leader or of the link.

        Raises:
          Refused: the deadline has passed.
        """
        patience_s = deadline_s - trio.current_time()
        if patience_s <= 0 or self._stopped:
            raise Refused("no_leader", self.why_not or "the master that led has stopped leading")
        await wait_any((self.changed, self.store.changed), patience_s)

    async def _send(self, link: Link, request: PassOn, until_s: float) -> tuple[int, list[Any]]:
        """Send the request, its body in pieces where it is large; the answer's fault and payload."""
        body = request.body
        if len(body) > PIECE_BYTES:
            pieces = [body[at : at + PIECE_BYTES] for at in range(0, len(body), PIECE_BYTES)]
            if link.queue_bytes + len(body) > QUEUE_BYTES_MAX or link.in_flight + len(pieces) > CALLS_MAX:
                return Fault.CROWDED, []  # some pieces without the others would be of no use
            self._next_parts += 1
            for piece in pieces[:-1]:
                link.call(Op.PASS_PART, [self._next_parts, piece], until_s, _ignore, len(piece) + _CALL_BYTES)
            request = request._replace(body=pieces[-1], parts=self._next_parts)
        size_bytes = _CALL_BYTES + len(request.path) + len(request.query) + len(request.body)
        return await _ask(link, Op.PASS_ON, request.to_wire(), until_s, size_bytes)

    async def _read_answer(self, link: Link, payload: list[Any], writes: bool) -> tuple[int, Mapping[str, str], bytes]:
        """
        Raises:
          Refused, Unknown: it is no answer, or its rest does not come.
        """
        try:
            answer = passed_from_wire(payload)
            fault, body = await self._whole_body(link, answer)
        except PeerError as error:
            _log.warning("the leader answers what is no answer: %s", error)
            link.end()
            raise _without_answer(Fault.LOST, writes) from error
        if fault != Fault.OK:
            raise _without_answer(fault, writes)
        return answer.status, answer.headers, body

    async def _whole_body(self, link: Link, answer: PassedAnswer) -> tuple[int, bytes]:
        """The answer's body with its rest, where that came: else why not, a fault.

        Raises:
          PeerError: the rest is none.
        """
        pieces, rest = [answer.body], answer.rest
        size_bytes = len(answer.body)
        while rest:
            if size_bytes > HELD_BYTES_MAX:
                raise PeerError("an answer without end")
            fault, payload = await _ask(link, Op.PASS_REST, [rest], trio.current_time() + REST_S)
            if fault != Fault.OK:
                return (fault if fault == Fault.LATE else Fault.LOST), b""
            piece, rest = rest_from_wire(payload)
            pieces.append(piece)
            size_bytes += len(piece)
        return Fault.OK, b"".join(pieces) if len(pieces) > 1 else answer.body


def _ignore(_fault: int, _payload: list[Any]) -> None:
    """A piece that did not arrive is missed by the request that it belongs to."""


async def _ask(link: Link, op: Op, arguments: list[Any], until_s: float, size_bytes: int = 64) -> tuple[int, list[Any]]:
    answered = trio.Event()
    told: tuple[int, list[Any]] = (Fault.LOST, [])

    def done(fault: int, payload: list[Any]) -> None:
        nonlocal told
        told = (fault, payload)
        answered.set()

    link.call(op, arguments, until_s, done, size_bytes)
    await answered.wait()
    return told


def _without_answer(fault: int, writes: bool) -> TrikvError:
    why = _WHY.get(fault, f"answered with fault {fault}")
    if writes:
        return Unknown(f"the request was passed on to the master that leads, which {why}")
    return Refused("unanswered", f"the master that leads {why}")


_WHY: Final[dict[int, str]] = {
    Fault.LATE: "gave no answer in time",
    Fault.LOST: "could not be reached any more before it answered",
    Fault.NO_ROOM: "carried it out and had no room for its answer",
}


class PassedOn:
    """At the leader: has the requests answered that standbys pass on.

    A front says how, for as long as it serves (`served_by`). Without one, each request is answered NOT_LEADING.
    """

    def __init__(self) -> None:
        self._serve: Serve | None = None
        self._nursery: trio.Nursery | None = None
        self._requests = 0
        self._idle = trio.Event()
        self._idle.set()
        self.held_bytes = 0
        # By link and number: until when they are kept, and the bytes.
        self._parts: dict[tuple[Link, int], tuple[float, list[bytes]]] = {}
        self._rests: dict[tuple[Link, int], tuple[float, bytes, int]] = {}  # and where the next piece begins
        self._next_rest = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    @contextmanager
    def served_by(self, serve: Serve) -> Iterator[None]:
        self._serve = serve
        try:
            yield
        finally:
            self._serve = None

    def stop(self) -> None:
        """Begin nothing more: what is passed on from now on has not happened."""
        self._serve = None

    async def wait_idle(self) -> None:
        """Wait until no request is under way."""
        await self._idle.wait()

    def handle(self, link: Link, call_id: int, budget_ms: int, request: PassOn | PassPart | PassRest) -> None:
        if isinstance(request, PassRest):
            self._answer_rest(link, call_id, request.rest)
        elif isinstance(request, PassPart):
            self._keep_part(link, call_id, budget_ms, request)
        elif self._serve is None or self._nursery is None:
            link.answer(call_id, Fault.NOT_LEADING, [])
        elif (parts := self._take_parts(link, request.parts)) is None or not self._has_room(link, request):
            link.answer(call_id, Fault.BUSY, [])
        else:
            if parts:
                request = request._replace(body=b"".join([*parts, request.body]))
            self._requests += 1
            self._idle = trio.Event() if self._idle.is_set() else self._idle
            self.held_bytes += len(request.body)
            self._nursery.start_soon(self._answer, link, call_id, self._serve, request)

    def _has_room(self, link: Link, request: PassOn) -> bool:
        if self.held_bytes + len(request.body) > HELD_BYTES_MAX:
            self._forget_late()
        return (
            self._requests < REQUESTS_MAX
            and self.held_bytes + len(request.body) <= HELD_BYTES_MAX
            and link.answers_bytes <= ANSWERS_BYTES_MAX
        )

    async def _answer(self, link: Link, call_id: int, serve: Serve, request: PassOn) -> None:
        try:
            status, headers, body = await serve(request)
            answer = self._first_piece(link, PassedAnswer(status, headers, body))
            if answer is None:
                link.answer(call_id, Fault.NO_ROOM, [])
            else:
                link.answer(call_id, Fault.OK, answer.to_wire(), len(answer.body) + _CALL_BYTES)
        except NotLeading:
            link.answer(call_id, Fault.NOT_LEADING, [])
        except Exception:  # noqa: BLE001 any error is this request's alone
            _log.exception("%s %s, which a standby passed on, failed", request.method, request.path)
            link.answer(call_id, Fault.BAD_CALL, [])
        finally:
            self.held_bytes -= len(request.body)
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    # --- pieces -------------------------------------------------------------------------------------------------------

    def _keep_part(self, link: Link, call_id: int, budget_ms: int, part: PassPart) -> None:
        self._forget_late()
        key = (link, part.parts)
        until_s, pieces = self._parts.get(key) or (trio.current_time() + min(HELD_S, budget_ms / 1000), [])
        if self.held_bytes + len(part.piece) > HELD_BYTES_MAX:
            self._take_parts(link, part.parts)  # without this one they are of no use
            link.answer(call_id, Fault.BUSY, [])
            return
        self.held_bytes += len(part.piece)
        pieces.append(part.piece)
        self._parts[key] = (until_s, pieces)
        link.answer(call_id, Fault.OK, [])

    def _take_parts(self, link: Link, number: int) -> list[bytes] | None:
        """The pieces that were kept under this number; None: there are none, and should be."""
        if not number:
            return []
        _, pieces = self._parts.pop((link, number), (0.0, None))
        self.held_bytes -= sum(map(len, pieces or ()))
        return pieces

    def _first_piece(self, link: Link, answer: PassedAnswer) -> PassedAnswer | None:
        """The answer, or the first piece of it, of which the rest is kept; None: there is no room for the rest."""
        if len(answer.body) <= PIECE_BYTES:
            return answer
        self._forget_late()
        if self.held_bytes + len(answer.body) > HELD_BYTES_MAX:
            return None
        self._next_rest += 1
        self._rests[link, self._next_rest] = (trio.current_time() + KEPT_S, answer.body, PIECE_BYTES)
        self.held_bytes += len(answer.body)
        return answer._replace(body=answer.body[:PIECE_BYTES], rest=self._next_rest)

    def _answer_rest(self, link: Link, call_id: int, number: int) -> None:
        kept = self._rests.pop((link, number), None)
        if kept is None:
            link.answer(call_id, Fault.BUSY, [])
            return
        _, body, at = kept
        piece, at = body[at : at + PIECE_BYTES], at + PIECE_BYTES
        if at < len(body):
            self._rests[link, number] = (trio.current_time() + KEPT_S, body, at)
        else:
            self.held_bytes -= len(body)
        link.answer(call_id, Fault.OK, [piece, number if at < len(body) else 0], len(piece) + _CALL_BYTES)

    def _forget_late(self) -> None:
        """Forget what nobody completes or fetches any more."""
        now = trio.current_time()
        for link, number in [key for key, (until_s, _) in self._parts.items() if until_s <= now]:
            self._take_parts(link, number)
        for key in [key for key, (until_s, _, _) in self._rests.items() if until_s <= now]:
            self.held_bytes -= len(self._rests.pop(key)[1])
