"""The Quart-Trio app, and how it is served: translation, and what a server owes to clients that misbehave.

For every request: refuse what a foreign page is behind (`guard`), read the body within its bound, call the handler,
translate what it answers; or what it raises, by the error table. A handler that writes runs in the node's own nursery:
a client that disconnects cancels whoever waits for the answer, and not the write. What nobody expected is logged with
its traceback, and answered as `internal`, outcome unknown, without it.

Paths are routed by the framework, and keys are taken from the path as it was sent: the framework's decoded form
neither tells `%2F` from `/` nor keeps bytes that are not UTF-8, and slashes that follow each other belong to a key.

A handler begins when the body is there to its end, also where none is wanted, so that a request that turns out to be
broken was never carried out.

Bounds: a body by its route (`VALUE_BYTES_MAX`, `batch.BODY_BYTES_MAX`, `SMALL_BODY_BYTES_MAX`), and `BODY_TIMEOUT_S`
for it to arrive; `server.py` has those of connections. A body beyond its bound is refused on its announced length, and
the connection closed, since what follows may be the rest of it.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, cast
from urllib.parse import urlsplit

import quart
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope
from quart import Quart
from quart.asgi import ASGIHTTPConnection
from quart.typing import ResponseTypes
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import BaseConverter, MapAdapter

from trikv.core.errors import Refused, TrikvError, Unknown
from trikv.core.record import VALUE_BYTES_MAX
from trikv.master.master import Master
from trikv.web import batch, cluster, keys, operate
from trikv.web.events import STREAM_HEADERS, Stream, Streams
from trikv.web.guard import refuse_foreign
from trikv.web.message import (
    SAFE_HEADERS,
    Request,
    Response,
    choice_of,
    parse_query,
    problem_response,
)
from trikv.web.page import EVENTS_SHOWN, PAGE_HEADERS, REFRESH_S, TOO_MANY_TO_SHOW, view_of
from trikv.web.server import serve_app

SMALL_BODY_BYTES_MAX: Final = 64 * 1024
BODY_TIMEOUT_S: Final = 30

_STATIC_FILES: Final = frozenset(file.name for file in (Path(__file__).parent / "static").iterdir())

_log = logging.getLogger(__name__)


class Route(NamedTuple):
    """`detached`: it changes something, so it goes on when its client goes away."""

    path: str
    methods: str
    handle: Callable[[Master, Request], Awaitable[Response]]
    body_bytes_max: int = 0
    detached: bool = False


ROUTES: Final = (
    Route("/v1/kv/<rest:key>", "GET", keys.get),
    Route("/v1/kv/<rest:key>", "PUT", keys.put, VALUE_BYTES_MAX, detached=True),
    Route("/v1/kv/<rest:key>", "DELETE", keys.delete, detached=True),
    Route("/v1/kv", "GET", keys.scan),
    Route("/v1/batch", "POST", batch.batch, batch.BODY_BYTES_MAX, detached=True),
    Route("/v1/cluster", "GET", cluster.describe),
    Route("/v1/locate", "GET", cluster.locate),
    Route("/v1/mode", "GET", operate.show_mode),
    Route("/v1/mode", "PUT", operate.set_mode, SMALL_BODY_BYTES_MAX, detached=True),
    Route("/v1/workers", "POST", operate.enlist, SMALL_BODY_BYTES_MAX, detached=True),
    Route("/v1/workers/plan", "GET", operate.plan_workers),
    Route("/v1/workers/<worker>/drain", "POST", operate.drain, detached=True),
    Route("/v1/workers/<worker>/undrain", "POST", operate.undrain, detached=True),
    Route("/v1/workers/<worker>", "DELETE", operate.remove, detached=True),
    Route("/v1/repair", "POST", operate.repair, detached=True),
    Route("/v1/recover", "POST", operate.recover, SMALL_BODY_BYTES_MAX, detached=True),
    Route("/livez", "GET", cluster.livez),
    Route("/readyz", "GET", cluster.readyz),
    Route("/put", "GET POST", keys.put_by_query, SMALL_BODY_BYTES_MAX, detached=True),
    Route("/get", "GET", keys.get_by_query),
    Route("/status", "GET", cluster.describe),
    Route("/config", "POST", operate.set_mode, SMALL_BODY_BYTES_MAX, detached=True),
)


_CHANGING: Final = frozenset(f"{route.methods} {route.path}" for route in ROUTES if route.detached)


class _Connection(TrioASGIHTTPConnection):
    """One request, of which a disconnect cancels the handler, but not an answer that is under way.

    The server reports a disconnect also when an answer is complete, and cleans up in the task that sends the last of
    it. Were that task cancelled, as quart-trio does, connections would be neither closed nor timed out. A stream, which
    would not end by itself, is told to.
    """

    _answering = False
    _stream: Stream | None = None

    def __init__(self, app: Quart, scope: HTTPScope) -> None:
        scope["path"] = _path_to_route(scope["path"])
        super().__init__(app, scope)

    async def handle_messages(  # type: ignore[override]  # quart-trio's has a nursery more than quart's
        self, nursery: trio.Nursery, request: quart.Request, receive: ASGIReceiveCallable
    ) -> None:
        await ASGIHTTPConnection.handle_messages(self, request, receive)
        if self._stream is not None:
            self._stream.end()
        elif not self._answering:
            nursery.cancel_scope.cancel()

    async def _send_response(self, send: ASGISendCallable, response: ResponseTypes) -> None:
        self._answering = True
        if isinstance(response, _StreamResponse):
            self._stream = response.stream
            with response.stream:
                await super()._send_response(send, response)
        else:
            await super()._send_response(send, response)


def _path_to_route(path: str) -> str:
    """The path of a target, which may be of the absolute form. What is no path becomes `/*`, where there is nothing.

    Quart takes the first letter for granted (`GET ?key=k`), fails on some absolute forms (`GET http://[/`), and takes
    slashes in front for one.
    """
    if not path.startswith("/"):
        try:
            scheme, host, path, _, _ = urlsplit(path)
        except ValueError:
            return "/*"
        if scheme not in ("http", "https") or not host:
            return "/*"
    return path if path.startswith("/") and not path.startswith("//") else "/*"


class _StreamResponse(quart.Response):
    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, headers=STREAM_HEADERS)
        self.stream = stream


class _App(QuartTrio):
    asgi_http_class = _Connection

    def create_url_adapter(self, request: BaseRequestWebsocket | None) -> MapAdapter | None:
        """Routes are the same for every host, and a `Host` that is no host name is not to be read as one here."""
        if request is None:
            return None
        return self.url_map.bind("localhost", path_info=request.path, default_method=request.method)

    async def send_static_file(self, filename: str) -> quart.Response:
        """One of the files that are there: a name that is too long for the file system is no error of ours."""
        if filename not in _STATIC_FILES:
            raise NotFound
        return await super().send_static_file(filename)


class _Rest(BaseConverter):
    """All of the path that is left, slashes and line ends and nothing at all included."""

    regex = r"[\s\S]*"
    part_isolating = False


def create_app(master: Master, *, loopback_only: bool = True, streams: Streams | None = None) -> QuartTrio:
    """The app. `loopback_only`: answer to names of this machine's loopback alone (see `guard`)."""
    app = _App("trikv.web", template_folder="templates", static_folder="static")
    app.config.update(MAX_CONTENT_LENGTH=batch.BODY_BYTES_MAX, BODY_TIMEOUT=BODY_TIMEOUT_S, RESPONSE_TIMEOUT=None)
    app.url_map.merge_slashes = False
    app.url_map.converters["rest"] = _Rest
    for route in ROUTES:
        methods = route.methods.split()
        app.add_url_rule(
            route.path,
            endpoint=f"{route.methods} {route.path}",
            view_func=partial(_serve, master, route),
            methods=methods,
            strict_slashes=False,
            provide_automatic_options=False,
        )
    for rule in app.url_map.iter_rules():
        if rule.endpoint in _CHANGING and rule.methods is not None:
            rule.methods.discard("HEAD")  # which the framework adds to GET, and which must change nothing
    streamed = partial(_serve_events, master, streams or Streams())
    for path, view_func in (("/", partial(_serve_page, master)), ("/v1/events", streamed)):
        app.add_url_rule(path, path, view_func, methods=["GET"], provide_automatic_options=False)
    app.before_request(partial(_guard, loopback_only))
    app.after_request(_make_safe)
    app.register_error_handler(TrikvError, _answer_error)
    app.register_error_handler(HTTPException, _answer_http_error)
    app.register_error_handler(Exception, _answer_surprise)
    return app


async def serve_http(
    master: Master,
    sock: socket.socket,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on `sock`, which is bound already and is taken over, until `stop`; then let requests end."""
    loopback_only = ipaddress.ip_address(sock.getsockname()[0]).is_loopback
    streams = Streams()
    app = create_app(master, loopback_only=loopback_only, streams=streams)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(streams.end_all, stop)
        await serve_app(app, sock, stop, task_status=task_status)
        nursery.cancel_scope.cancel()


# --- translation ------------------------------------------------------------------------------------------------------


async def _serve(master: Master, route: Route, **_path: str) -> quart.Response:
    request = await _read_request(route.body_bytes_max)
    if route.detached:
        answer = await master.tasks.run_detached(partial(route.handle, master, request))
    else:
        answer = await route.handle(master, request)
    return _to_quart(answer)


async def _serve_page(master: Master) -> quart.Response:
    parameters = parse_query(quart.request.query_string, "refresh")
    refresh = choice_of(parameters, "refresh", "on", "off") == "on"
    page = await quart.render_template(
        "cluster.html",
        view=view_of(master.status.describe(), master.events.latest(EVENTS_SHOWN, but=TOO_MANY_TO_SHOW)),
        host=quart.request.host,
        refresh_s=REFRESH_S if refresh else None,
    )
    return quart.Response(page, headers=PAGE_HEADERS, content_type="text/html; charset=utf-8")


async def _serve_events(master: Master, streams: Streams) -> quart.Response:
    request = await _read_request(0)
    if request.method == "HEAD":
        return quart.Response(b"", headers=STREAM_HEADERS)
    return _StreamResponse(streams.make(master.events, request))


async def _read_request(body_bytes_max: int) -> Request:
    sent = quart.request
    announced = sent.content_length or 0
    wanted = body_bytes_max > 0
    body_bytes_max = body_bytes_max or SMALL_BODY_BYTES_MAX
    if announced > body_bytes_max:
        raise Refused("value_too_large", f"the body has {announced:,} bytes; here it may have {body_bytes_max:,}")
    body = cast("bytes", await sent.get_data(cache=False))
    if len(body) > body_bytes_max:
        raise Refused("value_too_large", f"the body has more than {body_bytes_max:,} bytes")
    return Request(sent.method, _path_as_sent(), sent.query_string, _headers(), body if wanted else b"")


def _path_as_sent() -> bytes:
    path = quart.request.scope["raw_path"]
    if not path.startswith(b"/"):  # the absolute form, http://host/path, which a server has to take
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    return path


def _headers() -> Mapping[str, str]:
    headers: dict[str, str] = {}
    for name, value in quart.request.headers:
        name = name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _to_quart(answer: Response) -> quart.Response:
    response = quart.Response(answer.body, status=answer.status)
    del response.headers["content-type"]
    response.headers.update(answer.headers)
    if answer.status in (204, 304):
        response.headers.remove("content-length")  # RFC 9110, section 8.6
    return response


async def _guard(loopback_only: bool) -> None:
    refuse_foreign(_headers(), loopback_only=loopback_only)


async def _make_safe(response: quart.Response) -> quart.Response:
    for name, value in SAFE_HEADERS.items():
        response.headers.setdefault(name, value)
    return response


# --- what goes wrong --------------------------------------------------------------------------------------------------


async def _answer_error(error: TrikvError) -> quart.Response:
    return _to_quart(problem_response(error))


async def _answer_http_error(error: HTTPException) -> quart.Response:
    """What the framework itself refuses, in our words."""
    path = quart.request.path
    match error.code:
        case 404:
            refused = Refused("no_route", f"there is nothing at {path}")
        case 405:
            allow = sorted((isinstance(error, MethodNotAllowed) and error.valid_methods) or ())
            refused = Refused("bad_method", f"{quart.request.method} cannot be asked of {path}", allow=allow)
        case 408:
            refused = Refused("too_slow", f"the body did not arrive within {BODY_TIMEOUT_S} s")
        case 413:
            refused = Refused("value_too_large", f"no body may have more than {batch.BODY_BYTES_MAX:,} bytes")
        case _:
            refused = Refused("bad_request", error.description or error.name)
    return await _answer_error(refused)


async def _answer_surprise(error: Exception) -> quart.Response:
    _log.error("%s %s failed", quart.request.method, quart.request.path, exc_info=error)
    return await _answer_error(Unknown("this node met a condition that its authors did not foresee", code="internal"))
