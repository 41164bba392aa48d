"""Metrics of a worker for Prometheus: `GET /metrics`, served where `trikv worker --metrics HOST:PORT` says.

A worker has no other HTTP, so this is an ASGI app of its own and not the master's: it needs no framework, and nothing
of it is imported unless it is asked for. Requests are guarded, bounded and answered as the master's are (`guard.py`,
`server.py`).

What the master knows of its workers is in the master's metrics, as `trikv_worker_...`. What a worker knows of itself is
here, as `trikv_replica_...`: a Prometheus that scrapes both tells them apart.

Counts rise from the start of this process. Everything is read when it is asked for, except what `worker/counts.py` and
the registers count as it happens. A scrape takes some 3 ms.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import trio
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from trikv.config import is_loopback
from trikv.core.calls import Full, Op
from trikv.core.errors import Refused, TrikvError, Unknown
from trikv.web.exposition import answer, counter, counters, gauge, gauges, histogram
from trikv.web.guard import refuse_foreign
from trikv.web.message import SAFE_HEADERS, Response, parse_query, problem_response
from trikv.web.server import serve_app
from trikv.worker.counts import FAULTS
from trikv.worker.worker import Worker

PATH: Final = "/metrics"
BODY_BYTES_MAX: Final = 64 * 1024  # no request here needs a body; what is sent is dropped
BODY_TIMEOUT_S: Final = 30.0

_DATA_CALLS: Final = (Op.STORE, Op.FETCH, Op.LIST, Op.DISCARD, Op.DIGEST, Op.FORGET)

_Receive = Callable[[], Awaitable[Mapping[str, Any]]]
_Send = Callable[[Mapping[str, Any]], Awaitable[None]]
_App = Callable[[Mapping[str, Any], _Receive, _Send], Awaitable[None]]

_log = logging.getLogger(__name__)


async def serve_metrics(
    worker: Worker,
    sock: socket.socket,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on `sock`, which is bound, until `stop`."""
    began_s = trio.current_time()

    def measure() -> Response:
        return answer("worker", trio.current_time() - began_s, _Worker(worker))

    app = create_app(measure, loopback_only=is_loopback(sock.getsockname()[0]))
    await serve_app(app, sock, stop, task_status=task_status)


def create_app(measure: Callable[[], Response], *, loopback_only: bool = True) -> _App:
    """The ASGI app. `measure` makes the answer to each request that is in order."""
    return partial(_serve, measure, loopback_only)


async def _serve(
    measure: Callable[[], Response], loopback_only: bool, scope: Mapping[str, Any], receive: _Receive, send: _Send
) -> None:
    try:
        refuse_foreign(_headers(scope), loopback_only=loopback_only)
        if not await _receive_body(receive):
            return  # the client has left
        _check(scope)
        response = measure()
    except TrikvError as error:
        response = problem_response(error)
    except Exception:  # noqa: BLE001 a scrape that fails must not end the worker
        _log.exception("%s %s failed", scope["method"], scope["path"])
        response = problem_response(
            Unknown("this node met a condition that its authors did not foresee", code="internal")
        )
    headers = {**SAFE_HEADERS, **response.headers, "content-length": str(len(response.body))}
    await send(
        {
            "type": "http.response.start",
            "status": response.status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": response.body})  # the server leaves it out for HEAD


def _headers(scope: Mapping[str, Any]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


async def _receive_body(receive: _Receive) -> bool:
    """Drop the body. False: the client left before it had arrived.

    Raises:
      Refused: it is too large, or takes too long.
    """
    size_bytes = 0
    with trio.move_on_after(BODY_TIMEOUT_S):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            size_bytes += len(message.get("body", b""))
            if size_bytes > BODY_BYTES_MAX:
                raise Refused("value_too_large", f"the body has more than {BODY_BYTES_MAX:,} bytes")
            if not message.get("more_body", False):
                return True
    raise Refused("too_slow", f"the body did not arrive within {BODY_TIMEOUT_S:g} s")


def _check(scope: Mapping[str, Any]) -> None:
    """
    Raises:
      Refused: it does not ask for the metrics.
    """
    if scope["path"] != PATH:
        raise Refused("no_route", f"a worker serves {PATH} alone; keys and the cluster's state are at its master")
    if scope["method"] not in ("GET", "HEAD"):
        raise Refused("bad_method", f"{scope['method']} cannot be asked of {PATH}", allow=["GET", "HEAD"])
    parse_query(scope["query_string"])


class _Worker(Collector):
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        yield from self._calls()
        yield from self._records()
        yield from self._fence()
        yield from self._disk()

    def _calls(self) -> Iterator[Metric]:
        worker = self._worker
        calls = {op.name.lower(): worker.counts.calls[op] for op in Op if op is not Op.ENLIST}
        yield counters("trikv_replica_calls", "Calls that arrived, by kind", "call", calls)
        faults = CounterMetricFamily(
            "trikv_replica_call_faults",
            "Calls that were not served, by kind and fault; late: its deadline passed while it waited",
            labels=["call", "fault"],
        )
        for op in _DATA_CALLS:
            for fault in FAULTS:
                faults.add_metric([op.name.lower(), fault], worker.counts.faults[op, fault])
        yield faults
        yield gauge("trikv_replica_queue_calls", "Calls that wait for the committer", worker.waiting)
        yield gauge("trikv_replica_queue_bytes", "Their keys and values", worker.waiting_bytes)
        yield gauge("trikv_replica_queue_listings", "Listings that wait for their turn", worker.listings_waiting)
        yield gauge("trikv_replica_chain_links", "Links to the next members of chains", len(worker.neighbours))

    def _records(self) -> Iterator[Metric]:
        registers = self._worker.registers
        yield gauge("trikv_replica_keys", "Keys that have a value", registers.keys)
        yield gauge("trikv_replica_bytes", "Keys and values of all records", registers.size_bytes)
        yield counter("trikv_replica_commits", "Batches made durable since its directory was made", registers.batches)
        yield histogram(
            "trikv_replica_commit_duration_seconds",
            "A batch, from its write to the end of its fsync",
            registers.commit_times,
        )
        yield histogram(
            "trikv_replica_commit_records", "Records that were made durable by one fsync", registers.commit_sizes
        )

    def _fence(self) -> Iterator[Metric]:
        fence = self._worker.registers.fence
        yield gauge("trikv_replica_term", "The highest term that it has promised", fence.term)
        yield gauge("trikv_replica_partitions_promised", "Partitions of which it has promised an epoch", len(fence))

    def _disk(self) -> Iterator[Metric]:
        worker = self._worker
        full = worker.vitals().full
        kinds = {"keys": full is Full.KEYS, "disk": full is Full.DISK}
        yield gauges("trikv_replica_full", "1: it has no room, for another key or on its disk", "what", kinds)
        if worker.max_keys is not None:
            yield gauge("trikv_replica_keys_limit", "So many keys it may hold", worker.max_keys)
        if (room := worker.room()) is not None:
            yield gauge("trikv_replica_disk_free_bytes", "Free space for records", room.free_bytes)
            yield gauge("trikv_replica_disk_reserve_bytes", "With less, it takes deletes alone", room.reserve_bytes)
