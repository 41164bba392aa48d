"""The routes of the HTTP API as data: for each method and path the handler, and how it is to be run.

Nothing here belongs to one HTTP server. A front that serves these routes reads a request up to `body_bytes_max`, calls
`handle`, and writes the `Response`, or the problem document of the `TrikvError` that was raised. `app.py` does so with
Quart.

Three paths are not in the table, since their answers are no plain `Response`: `/` is made from a template, and
`/v1/events` and `/v1/live` are streams.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from trikv.core.record import VALUE_BYTES_MAX
from trikv.web import batch, cluster, faults, keys, metrics, operate, probe, traces
from trikv.web.message import Request, Response
from trikv.web.services import Services

SMALL_BODY_BYTES_MAX: Final = 64 * 1024


class Route(NamedTuple):
    """One method of one path.

    Attributes:
      path: `{name}` stands for one segment, and `{name...}`, at the end, for all that is left, slashes included. The
        handler reads such a part from `Request.path`, as it was sent.
      body_bytes_max: 0: the handler takes no body, and what is sent is dropped.
      detached: the handler changes something, so it runs to its end when its client goes away. A HEAD request is served
        as the GET of its path, unless that is detached.
      timed: the handler takes `timeout`; a request without it has the master's own deadline.
    """

    method: str
    path: str
    handle: Callable[[Services, Request], Awaitable[Response]]
    body_bytes_max: int = 0
    detached: bool = False
    timed: bool = False


ROUTES: Final = (
    Route("GET", "/v1/kv/{key...}", keys.get, timed=True),
    Route("PUT", "/v1/kv/{key...}", keys.put, VALUE_BYTES_MAX, detached=True, timed=True),
    Route("DELETE", "/v1/kv/{key...}", keys.delete, detached=True, timed=True),
    Route("GET", "/v1/kv", keys.scan, timed=True),
    Route("POST", "/v1/batch", batch.batch, batch.BODY_BYTES_MAX, detached=True, timed=True),
    Route("GET", "/v1/cluster", cluster.describe),
    Route("GET", "/v1/masters", cluster.masters),
    Route("GET", "/v1/history", cluster.history),
    Route("GET", "/v1/locate", cluster.locate),
    Route("GET", "/v1/mode", operate.show_mode),
    Route("PUT", "/v1/mode", operate.set_mode, SMALL_BODY_BYTES_MAX, detached=True),
    Route("POST", "/v1/workers", operate.enlist, SMALL_BODY_BYTES_MAX, detached=True),
    Route("GET", "/v1/workers/plan", operate.plan_workers),
    Route("POST", "/v1/workers/{worker}/drain", operate.drain, detached=True),
    Route("POST", "/v1/workers/{worker}/undrain", operate.undrain, detached=True),
    Route("DELETE", "/v1/workers/{worker}", operate.remove, detached=True),
    Route("POST", "/v1/repair", operate.repair, detached=True),
    Route("POST", "/v1/recover", operate.recover, SMALL_BODY_BYTES_MAX, detached=True),
    Route("GET", "/v1/faults", faults.describe),
    Route("POST", "/v1/faults", faults.inject, SMALL_BODY_BYTES_MAX, detached=True),
    Route("GET", "/v1/probe", probe.show),
    Route("GET", "/v1/traces", traces.latest),
    Route("GET", "/v1/trace/{id}", traces.show),
    Route("GET", "/timeline.css", traces.style),
    Route("GET", "/metrics", metrics.metrics),
    Route("GET", "/livez", cluster.livez),
    Route("GET", "/readyz", cluster.readyz),
    Route("GET", "/put", keys.put_by_query, SMALL_BODY_BYTES_MAX, detached=True, timed=True),
    Route("POST", "/put", keys.put_by_query, SMALL_BODY_BYTES_MAX, detached=True, timed=True),
    Route("GET", "/get", keys.get_by_query, timed=True),
    Route("GET", "/status", cluster.describe),
    Route("POST", "/config", operate.set_mode, SMALL_BODY_BYTES_MAX, detached=True),
)

BODY_BYTES_MAX: Final = max(route.body_bytes_max for route in ROUTES)
