"""Steering the cluster over HTTP: its mode, its workers, repair and recovery.

    GET    /v1/mode                     the mode in force, and how far a switch or a repair has come
    PUT    /v1/mode, POST /config       {"mode": NAME}: switch; answers at its end, with a certificate of the switch
    POST   /v1/workers                  {"address": "localhost:8006"}: enlist the worker that listens there
    GET    /v1/workers/plan             what would move if the spare workers that are up were given their share
    POST   /v1/workers/{id}/drain       have the cluster empty a worker; answers at once, with the plan
    POST   /v1/workers/{id}/undrain     let a worker that is being emptied keep its place
    DELETE /v1/workers/{id}             forget a worker that holds nothing
    POST   /v1/repair                   compare all copies, and mend those that differ
    POST   /v1/recover                  {"accept_loss": true}: go on without what cannot be found any more

A worker is named by its id or by its address. `?plan=true` (mode), `?dry_run=true` (drain, repair) and
`{"accept_loss": false}` (recover) change nothing; the answer says what would be done.

A switch of the mode and a repair have no deadline, and they go on when the client that asked for them has gone. If the
document cannot be written, the client is told so within seconds (`Master.carry_out`). The operations themselves are in
`trikv.master.operations`; here requests are read and answers written.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from trikv.core.configuration import WorkerEntry
from trikv.core.errors import Refused
from trikv.net.doors import split_address
from trikv.web.message import (
    Request,
    Response,
    choice_of,
    json_response,
    members_of,
    parse_json,
    parse_query,
    percent_decode,
)
from trikv.web.services import Services

NAMED_MAX: Final = 8  # an error names so many workers at most

_WORKERS_PATH: Final = b"/v1/workers/"


async def show_mode(services: Services, request: Request) -> Response:
    parse_query(request.query)
    strategy = services.status.mode
    return json_response(
        {"mode": strategy.name, "promise": strategy.promise.value, "progress": services.operations.progress()}
    )


async def set_mode(services: Services, request: Request) -> Response:
    parameters = parse_query(request.query, "plan")
    name = members_of(parse_json(request), "the body", required=["mode"])["mode"]
    if not isinstance(name, str):
        raise Refused("bad_request", "mode must be a string")
    if _is_on(parameters, "plan"):
        return json_response(services.operations.plan_mode(name))
    switched = await services.carry_out(partial(services.operations.switch_mode, name))
    return json_response({"outcome": "committed", **switched})


async def enlist(services: Services, request: Request) -> Response:
    parse_query(request.query)
    address = members_of(parse_json(request), "the body", required=["address"])["address"]
    if not isinstance(address, str):
        raise Refused("bad_request", "address must be a string, host:port")
    try:
        split_address(address)
    except ValueError as error:
        raise Refused("bad_request", str(error)) from error
    enlisted = await services.carry_out(partial(services.enlisting.enlist, address))
    return json_response({"outcome": "committed", **enlisted})


async def plan_workers(services: Services, request: Request) -> Response:
    parse_query(request.query)
    return json_response(await services.operations.plan_join())


async def drain(services: Services, request: Request) -> Response:
    dry_run = _is_on(parse_query(request.query, "dry_run"), "dry_run")
    worker = _worker_in_path(services, request)
    if dry_run:
        return json_response(await services.operations.plan_drain(worker))
    drained = await services.carry_out(partial(services.operations.drain, worker))
    return json_response({"outcome": "committed", **drained})


async def undrain(services: Services, request: Request) -> Response:
    parse_query(request.query)
    worker = _worker_in_path(services, request)
    undrained = await services.carry_out(partial(services.operations.undrain, worker))
    return json_response({"outcome": "committed", **undrained})


async def remove(services: Services, request: Request) -> Response:
    parse_query(request.query)
    worker = _worker_in_path(services, request)
    removed = await services.carry_out(partial(services.operations.remove, worker))
    return json_response({"outcome": "committed", **removed})


async def repair(services: Services, request: Request) -> Response:
    dry_run = _is_on(parse_query(request.query, "dry_run"), "dry_run")
    report = await services.operations.repair(dry_run=dry_run)
    return json_response(report if dry_run else {"outcome": "committed", **report})


async def recover(services: Services, request: Request) -> Response:
    parse_query(request.query)
    accept_loss = members_of(parse_json(request), "the body", required=["accept_loss"])["accept_loss"]
    if not isinstance(accept_loss, bool):
        raise Refused("bad_request", "accept_loss must be true or false")
    report = await services.carry_out(partial(services.operations.recover, accept_loss=accept_loss))
    return json_response({"outcome": "committed", **report} if accept_loss else report)


def find_worker(workers: Mapping[str, WorkerEntry], name: str) -> str:
    """The id of the worker that has the id or the address `name`.

    Raises:
      Refused: no worker has it, or several workers have that address.
    """
    if name in workers:
        return name
    spellings = {name, name.replace("localhost:", "127.0.0.1:"), name.replace("127.0.0.1:", "localhost:")}
    found = sorted(worker.worker for worker in workers.values() if worker.address in spellings)
    if len(found) == 1:
        return found[0]
    if found:
        raise Refused("bad_request", f"workers {', '.join(found)} were all seen at {name}; name one by its id")
    known = ", ".join(sorted(workers)[:NAMED_MAX]) + (", ..." if len(workers) > NAMED_MAX else "")
    detail = f"there is no worker {name!r}; there are {known}" if known else f"{name!r}; none has enlisted"
    raise Refused("unknown_worker", detail, workers=sorted(workers))


def _worker_in_path(services: Services, request: Request) -> str:
    raw = request.path.removeprefix(_WORKERS_PATH).partition(b"/")[0]
    return find_worker(services.status.workers, percent_decode(raw, "the worker").decode(errors="replace"))


def _is_on(parameters: Mapping[str, bytes], name: str) -> bool:
    return choice_of(parameters, name, "false", "true") == "true"
