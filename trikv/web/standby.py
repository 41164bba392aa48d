"""HTTP at a master that stands by: the same interface as at the leader, by passing each request on.

Both fronts work as they do at a leader, down to the express lane; their desk (`desk.py`) sends the request over the
link to the leader (`trikv.master.passing`) and answers what the leader answered. So the answers are those of the
leader, byte for byte, but for `Date`. The guard against foreign pages is here; the leader takes what is passed on as
data, and of the headers only those that a handler reads (`PASSED_HEADERS`).

What is not passed on:

    /livez, /readyz, /metrics, /v1/masters    this master's own; /readyz?safe_to_stop=WORKER is passed on
    /, /v1/events, /v1/live                   307 to the leader's HTTP address: a page and streams that go on
    /static/...                               files, the same everywhere

*Deadlines.* The deadline of a request for keys is its `timeout`, or this master's own. While no master leads the
request waits; what is left of its time is then the `timeout` that the leader is told. Other requests wait for a leader
for this master's own timeout, and then for the answer as long as it takes.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Final

import trio
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from trikv.config import is_loopback
from trikv.core.calls import PassOn
from trikv.core.errors import Outcome, Refused, TrikvError
from trikv.core.serving import request_id
from trikv.master.masters import describe_masters
from trikv.master.passing import GRACE_S, Passing
from trikv.master.standby import serve_standby_links
from trikv.net.doors import Listening
from trikv.web.app import create_standby_app
from trikv.web.cluster import answer_readiness
from trikv.web.desk import Desk
from trikv.web.exposition import answer, counters, gauge
from trikv.web.lane import ExpressLane
from trikv.web.message import Request, Response, json_response, parse_query, percent_decode, timeout_of
from trikv.web.routes import Route
from trikv.web.server import serve_app

PASSED_HEADERS: Final = ("accept", "content-type", "if-match", "if-none-match", "trikv-trace")
PATIENCE_S: Final = 30.0  # for a read that has no deadline
UNHURRIED_S: Final = 24 * 3600.0  # for a change that has none
END_S: Final = 0.2  # the next leader waits for it; for answers that are on their way when this master stops standing by

_SLACK_S: Final = 0.01  # a request that has waited no longer is passed on as it was sent


class StandbyDesk(Desk):
    """
    Args:
      timeout_s: the deadline of a request that names none.
    """

    def __init__(self, passing: Passing, timeout_s: float) -> None:
        self.answered: Counter[tuple[str, str, int]] = Counter()
        self.outcomes: Counter[str] = Counter()  # of requests that were to be passed on
        self.passing = passing
        self.timeout_s = timeout_s
        self.began_s = trio.current_time()

    async def answer(self, route: Route, request: Request) -> Response:
        if (own := _OWN.get(route.path)) is not None and not _is_about_worker(route, request):
            return await own(self, request)
        try:
            answered = await self._pass_on(route, request)
        except TrikvError as error:
            self.outcomes[error.kind.outcome.value] += 1
            raise
        self.outcomes["answered"] += 1
        return answered

    async def answer_detached(self, route: Route, request: Request) -> Response:
        return await self.answer(route, request)  # what was sent goes on at the leader in any case

    async def _pass_on(self, route: Route, request: Request) -> Response:
        now = trio.current_time()
        timeout_s, query_for = self.timeout_s, None
        if route.timed:
            timeout_s, query_for = _read_timeout(request.query, self.timeout_s)
        patience_s = GRACE_S if route.timed else UNHURRIED_S if route.detached else PATIENCE_S
        headers = {name: request.headers[name] for name in PASSED_HEADERS if name in request.headers}

        def make(left_s: float) -> PassOn:
            is_late = query_for is not None and left_s < timeout_s - _SLACK_S
            query = query_for(left_s) if query_for is not None and is_late else request.query
            return PassOn(
                request_id.get(),
                request.method,
                (route.method, route.path),
                request.path,
                query,
                headers,
                request.body,
            )

        answered = await self.passing.pass_on(
            make, len(request.body), writes=route.detached, deadline_s=now + timeout_s, patience_s=patience_s
        )
        return Response(*answered)


async def stand_by(
    passing: Passing,
    listening: Listening,
    sock: socket.socket,
    timeout_s: float,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """All that a standby does: keep the link to the leader, and serve the RPC port and HTTP, until cancelled.

    At the end, requests that wait for a leader are refused, and those without an answer yet end as they would if the
    leader were lost. Their answers have `END_S` to be sent.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(passing.run)
        await nursery.start(serve_standby_links, passing, listening)
        await nursery.start(serve_standby_http, StandbyDesk(passing, timeout_s), sock)
        task_status.started()


async def serve_standby_http(
    desk: StandbyDesk,
    sock: socket.socket,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on `sock`, which is bound, until cancelled; then send the answers that there are, and close it."""
    loopback_only = is_loopback(sock.getsockname()[0])
    app = create_standby_app(desk, partial(_redirect, desk), loopback_only=loopback_only)
    lane = ExpressLane(desk, loopback_only=loopback_only)
    stop = trio.Event()

    async def stop_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            stop.set()
            ending.deadline = trio.current_time() + END_S

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_when_cancelled)
        with trio.CancelScope(shield=True) as ending:
            await serve_app(app, sock, stop, lane=lane, task_status=task_status)


async def _redirect(desk: StandbyDesk, request: Request) -> Response:
    leader = await desk.passing.wait_for_leader(trio.current_time() + desk.timeout_s)
    query = b"?" + request.query if request.query else b""
    target = (request.path + query).decode("latin-1")
    return Response(307, {"location": f"http://{leader.http}{target}", "cache-control": "no-store"})


def _is_about_worker(route: Route, request: Request) -> bool:
    return route.path == "/readyz" and b"safe_to_stop" in request.query


def _read_timeout(query: bytes, default_s: float) -> tuple[float, Callable[[float], bytes] | None]:
    """The request's timeout, and what makes its query with another one; None: it is the leader's to refuse."""
    others, timeout_s = [], None
    for piece in query.split(b"&") if query else ():
        name, _, value = piece.partition(b"=")
        if name == b"timeout" and timeout_s is None:
            try:
                timeout_s = timeout_of({"timeout": percent_decode(value, "timeout")})
            except Refused:
                return default_s, None
        elif name == b"timeout" or b"%" in name:
            return default_s, None
        else:
            others.append(piece)
    timeout_s = default_s if timeout_s is None else timeout_s
    return timeout_s, lambda left_s: b"&".join([*others, b"timeout=%.3f" % max(left_s, 0.001)])


# --- this master's own ------------------------------------------------------------------------------------------------


async def _livez(_desk: StandbyDesk, request: Request) -> Response:
    parse_query(request.query)
    return json_response({"alive": True})


async def _readyz(desk: StandbyDesk, request: Request) -> Response:
    parse_query(request.query, "safe_to_stop")
    passing = desk.passing
    leader = passing.leader
    why_not = passing.why_not
    return answer_readiness(
        {
            "ready": not why_not,
            "role": "standby",
            "leader": None if leader is None else leader._asdict(),
            "detail": why_not or "requests are passed on to the master that leads",
        },
        not why_not,
    )


async def _masters(desk: StandbyDesk, request: Request) -> Response:
    parse_query(request.query)
    return json_response(describe_masters(desk.passing.store, desk.passing.me, desk.passing.leader_term))


async def _metrics(desk: StandbyDesk, request: Request) -> Response:
    parse_query(request.query)
    return answer("standby", trio.current_time() - desk.began_s, _Standby(desk))


class _Standby(Collector):
    def __init__(self, desk: StandbyDesk) -> None:
        self._desk = desk

    def collect(self) -> Iterator[Metric]:
        desk, link = self._desk, self._desk.passing.link
        yield gauge("trikv_leader_linked", "1: there is a connection to the master that leads", link is not None)
        yield gauge("trikv_passed_on_in_flight", "Calls to it that are not answered yet", link.in_flight if link else 0)
        yield gauge("trikv_passed_on_queue_bytes", "Calls to it that wait to leave", link.queue_bytes if link else 0)
        yield counters(
            "trikv_passed_on", "Requests that were passed on, by what came of it: an answer of the leader, or none",
            "outcome", {"answered": 0, Outcome.REFUSED.value: 0, Outcome.UNKNOWN.value: 0} | desk.outcomes,
        )  # fmt: skip
        requests = CounterMetricFamily(
            "trikv_http_requests",
            "HTTP requests that were answered; route none: there is no such",
            labels=["method", "route", "status"],
        )
        for (method, route, status), count in sorted(desk.answered.items()):
            requests.add_metric([method, route, str(status)], count)
        yield requests


_OWN: Final[Mapping[str, Callable[[StandbyDesk, Request], Awaitable[Response]]]] = {
    "/livez": _livez,
    "/readyz": _readyz,
    "/metrics": _metrics,
    "/v1/masters": _masters,
}
