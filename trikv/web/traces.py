"""Traces over HTTP: what a request sent to which replica, and what came of it (`coordinator/trace.py`).

    GET /v1/traces                      those that are kept, the newest first
    GET /v1/trace/{id}                  one, as JSON; `?format=text` and `?format=svg` draw it; with `&style=none` the
                                        picture has no style of its own, for a page that links `/timeline.css`

A data request with the header `Trikv-Trace: 1` is traced, and the same header of its answer names the trace. What comes
after the answer is added as it comes: asked for again, the trace has more.

A picture shows when a message was sent and when its end was known, both measured where the coordinator runs. When it
was at the replica is not measured: it is drawn half-way between, and marked "about here".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from trikv.coordinator.replicas import describe_fault
from trikv.coordinator.trace import RequestTrace
from trikv.core.errors import Fault, Refused, TrikvError
from trikv.timeline import RULES, ClientCall, Lane, Mark, Message, Role, Timeline, to_svg, to_text
from trikv.web.message import Request, Response, choice_of, json_response, parse_query, percent_decode
from trikv.web.services import Services

HEADER: Final = "trikv-trace"
_PATH: Final = b"/v1/trace/"
_CLIENT: Final = "client"
_COORDINATOR: Final = "coordinator"
# The picture brings its style. It has no scripts, and all text in it is escaped.
_SVG_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
}


async def traced(
    services: Services, request: Request, operate: Callable[[RequestTrace | None], Awaitable[Response]]
) -> Response:
    """Run a data request, with a trace if it asks for one; the answer, or the refusal, names it."""
    if HEADER not in request.headers:
        return await operate(None)
    trace = services.coordinator.traces.make()
    try:
        answer = await operate(trace)
    except TrikvError as error:
        error.extra["trace"] = trace.id
        raise
    return answer._replace(headers={**answer.headers, HEADER: trace.id})


async def latest(services: Services, request: Request) -> Response:
    parse_query(request.query)
    traces = [trace for trace in services.coordinator.traces.latest() if trace.what]
    return json_response({"traces": [_brief(trace) for trace in traces]})


async def show(services: Services, request: Request) -> Response:
    parameters = parse_query(request.query, "format", "style")
    form = choice_of(parameters, "format", "json", "text", "svg")
    with_style = choice_of(parameters, "style", "own", "none") == "own"
    trace_id = percent_decode(request.path[len(_PATH) :], "the id").decode(errors="replace")
    trace = services.coordinator.traces.find(trace_id)
    if trace is None:
        raise Refused("no_route", f"there is no trace {trace_id!r}: only the latest are kept (GET /v1/traces)")
    if form == "json":
        return json_response(trace.describe(describe_fault))
    headers = {"cache-control": "no-store"}
    if form == "text":
        text = to_text(draw(trace)) + "\n"
        return Response(200, headers | {"content-type": "text/plain; charset=utf-8"}, text.encode())
    picture = to_svg(draw(trace), standalone=with_style)
    return Response(200, headers | {"content-type": "image/svg+xml", **_SVG_HEADERS}, picture.encode())


async def style(services: Services, request: Request) -> Response:
    """The rules of the pictures, for a page that has the colours: `--ink`, `--quiet` and so on."""
    parse_query(request.query)
    return Response(200, {"content-type": "text/css; charset=utf-8", "cache-control": "no-cache"}, RULES.encode())


def _brief(trace: RequestTrace) -> dict[str, Any]:
    told = trace.describe(describe_fault)
    return {**told, "messages": len(told["messages"])}


def draw(trace: RequestTrace) -> Timeline:
    """The trace as a space-time diagram, in seconds since the request began."""
    key = trace.key.decode(errors="replace")
    replicas = dict.fromkeys(note.replica for note in trace.notes)
    marks = [] if trace.promised_s is None else [Mark(_COORDINATOR, trace.promised_s, f"promise of {trace.mode} met")]
    messages: list[Message] = []
    for each in trace.notes:
        if each.ended_s is None:
            messages.append(Message(_COORDINATOR, each.replica, each.sent_s, None, each.what, is_under_way=True))
        elif each.fault != Fault.OK:
            text = f"{each.what}: {describe_fault(each.fault or 0)}"
            messages.append(Message(_COORDINATOR, each.replica, each.sent_s, None, text))
        else:
            there_s = (each.sent_s + each.ended_s) / 2
            messages.append(Message(_COORDINATOR, each.replica, each.sent_s, there_s, f"{each.what} (about here)"))
            messages.append(Message(each.replica, _COORDINATOR, there_s, each.ended_s, "done", is_answer=True))
    answer = f"{trace.outcome}: {trace.detail}" if trace.detail else trace.outcome
    return Timeline(
        lanes=(
            Lane(_CLIENT, Role.CLIENT),
            Lane(_COORDINATOR, Role.COORDINATOR),
            *(Lane(name, Role.REPLICA) for name in replicas),
        ),
        messages=tuple(messages),
        calls=(ClientCall(_CLIENT, 0.0, trace.ended_s, f"{trace.what} {key}", answer),),
        marks=tuple(marks),
        in_ms=True,
    )
