"""Breaking the cluster on purpose over HTTP (`master/breaking.py`).

    GET  /v1/faults    whether it is allowed, the condition of each worker's process and link, and what can be done
    POST /v1/faults    {"kind": "pause", "worker": ID}: do that; with "slow": "delay_ms", too

A worker is named by its id or by its address. The answer is the worker's condition.
"""

from __future__ import annotations

from trikv.core.breaking import DELAY_MOST_MS, BreakKind
from trikv.core.errors import Refused
from trikv.web.message import Request, Response, json_response, members_of, parse_json, parse_query
from trikv.web.operate import find_worker
from trikv.web.services import Services


async def describe(services: Services, request: Request) -> Response:
    parse_query(request.query)
    return json_response(services.breaking.describe())


async def inject(services: Services, request: Request) -> Response:
    parse_query(request.query)
    body = members_of(parse_json(request), "the body", required=["kind", "worker"], optional=["delay_ms"])
    kind, worker, delay_ms = body["kind"], body["worker"], body.get("delay_ms")
    if not isinstance(kind, str) or kind not in list(BreakKind):
        raise Refused("bad_request", f"kind must be one of {', '.join(BreakKind)}")
    if not isinstance(worker, str):
        raise Refused("bad_request", "worker must be a string, the id of a worker or its address")
    if (kind == BreakKind.SLOW) != ("delay_ms" in body):
        raise Refused("bad_request", "delay_ms, by how much a link is slowed, goes with the kind slow alone")
    if kind == BreakKind.SLOW:
        delay_ms = _delay(delay_ms)
    known = find_worker(services.status.workers, worker)
    condition = await services.breaking.inject(BreakKind(kind), known, delay_ms or 0.0)
    return json_response({"outcome": "committed", "kind": kind, **condition})


def _delay(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value <= DELAY_MOST_MS:
        raise Refused("bad_request", f"delay_ms must be a number of milliseconds from 1 to {DELAY_MOST_MS:,.0f}")
    return value
