"""The cluster over HTTP: its state, its mode, its workers, and whether it is alive and ready.

    GET  /v1/cluster, /status    everything there is to know, as JSON
    GET  /v1/locate?key=         which workers hold a key, in the order of its preference list
    PUT  /v1/mode, POST /config  {"mode": NAME}
    POST /v1/workers             {"address": "localhost:8006"}: enlist the worker that listens there
    GET  /livez                  this process answers
    GET  /readyz                 the cluster has formed, and every partition can be read; 503 otherwise

Nothing here is on the path of a data request. The state is computed when it is asked for, in some milliseconds.
"""

from __future__ import annotations

from trikv.core.errors import Refused
from trikv.node import view
from trikv.node.master import Master
from trikv.web.message import (
    RETRY_AFTER_S,
    Request,
    Response,
    choice_of,
    json_response,
    members_of,
    parse_json,
    parse_query,
    read_bytes,
    require,
)


async def describe(master: Master, request: Request) -> Response:
    parse_query(request.query)
    return json_response(view.describe_cluster(master))


async def locate(master: Master, request: Request) -> Response:
    parameters = parse_query(request.query, "key", "encoding")
    raw = require(parameters, "key")[0]
    key = read_bytes(raw, choice_of(parameters, "encoding", "text", "base64"), "the key")
    return json_response(view.locate(master, key))


async def set_mode(master: Master, request: Request) -> Response:
    """The mode in force is confirmed; a cluster keeps the mode that it was founded with."""
    parse_query(request.query)
    name = members_of(parse_json(request), "the body", required=["mode"])["mode"]
    if not isinstance(name, str):
        raise Refused("bad_request", "mode must be a string")
    mode = master.registry.strategy(name).name
    founded = master.cluster.mode
    if mode != founded:
        raise Refused(
            "mode_fixed",
            f"this cluster was founded with mode {founded}, and keeps it; "
            f"for mode {mode}, found another with trikv master --mode {mode} and a --data-dir of its own",
            mode=founded,
        )
    return json_response({"outcome": "committed", "mode": founded})


async def enlist(master: Master, request: Request) -> Response:
    parse_query(request.query)
    address = members_of(parse_json(request), "the body", required=["address"])["address"]
    if not isinstance(address, str):
        raise Refused("bad_request", "address must be a string, host:port")
    return json_response({"outcome": "committed", **await master.enlist(address)})


async def livez(master: Master, request: Request) -> Response:
    parse_query(request.query)
    return json_response({"alive": True})


async def readyz(master: Master, request: Request) -> Response:
    parse_query(request.query)
    state = view.describe_cluster(master)
    forming, partitions = state["forming"], state["partitions"]
    ready = forming is None and partitions["readable"] == partitions["total"]
    if ready:
        detail = "every partition can be read"
    elif forming is not None:
        detail = forming["detail"]
    else:
        unreadable = partitions["total"] - partitions["readable"]
        detail = f"{unreadable:,} of {partitions['total']:,} partitions cannot be read"
    document = {"ready": ready, "detail": detail, "forming": forming, "partitions": partitions}
    if ready:
        return json_response(document)
    return json_response(document, status=503, **{"retry-after": str(RETRY_AFTER_S)})
