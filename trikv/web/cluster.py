"""The cluster over HTTP: its state, and whether it is alive and ready. `operate.py` steers it.

    GET  /v1/cluster, /status        the whole state, as JSON
    GET  /v1/history                 the last quarter of an hour in numbers, a sample a second
    GET  /v1/masters                 the masters, which one leads, and since when
    GET  /v1/locate?key=             which workers hold a key, in the order of its preference list
    GET  /livez                      this process answers
    GET  /readyz                     the cluster has formed, and every partition can be read; 503 otherwise
    GET  /readyz?safe_to_stop=WORKER that worker may be stopped and everything stays on enough others; 503 otherwise

Nothing here is on the path of a request for keys. The state is computed when it is asked for, in some milliseconds.
"""

from __future__ import annotations

from typing import Any

from trikv.master.sampling import STEP_S
from trikv.web.message import (
    RETRY_AFTER_S,
    Request,
    Response,
    choice_of,
    json_response,
    parse_query,
    read_bytes,
    require,
)
from trikv.web.operate import find_worker
from trikv.web.services import Services


async def describe(services: Services, request: Request) -> Response:
    parse_query(request.query)
    return json_response(services.status.describe())


async def masters(services: Services, request: Request) -> Response:
    parse_query(request.query)
    return json_response(services.status.masters() or {"leader": None, "masters": [], "config_store": None})


async def history(services: Services, request: Request) -> Response:
    parse_query(request.query)
    return json_response({"step_s": STEP_S, "columns": services.sampling.columns()})


async def locate(services: Services, request: Request) -> Response:
    parameters = parse_query(request.query, "key", "encoding")
    raw = require(parameters, "key")[0]
    key = read_bytes(raw, choice_of(parameters, "encoding", "text", "base64"), "the key")
    return json_response(services.status.locate(key))


async def livez(services: Services, request: Request) -> Response:
    parse_query(request.query)
    return json_response({"alive": True})


async def readyz(services: Services, request: Request) -> Response:
    parameters = parse_query(request.query, "safe_to_stop")
    if "safe_to_stop" in parameters:
        name = parameters["safe_to_stop"].decode(errors="replace")
        safe, detail = await services.operations.safe_to_stop_soon(find_worker(services.status.workers, name))
        return answer_readiness({"safe": safe, "detail": detail}, safe)
    state = services.status.describe()
    forming, partitions = state["forming"], state["partitions"]
    ready = forming is None and partitions["readable"] == partitions["total"]
    if ready:
        detail = "every partition can be read"
    elif forming is not None:
        detail = forming["detail"]
    else:
        unreadable = partitions["total"] - partitions["readable"]
        detail = f"{unreadable:,} of {partitions['total']:,} partitions cannot be read"
    document = {"ready": ready, "role": "leader", "detail": detail, "forming": forming, "partitions": partitions}
    return answer_readiness(document, ready)


def answer_readiness(document: dict[str, Any], good: bool) -> Response:
    """The document of a probe, with the status that tells a load balancer whether it is good."""
    if good:
        return json_response(document)
    return json_response(document, status=503, **{"retry-after": str(RETRY_AFTER_S)})
