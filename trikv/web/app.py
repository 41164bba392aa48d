"""The Quart-Trio app: the adapter between Quart and the routes of `routes.py`, the page, and the stream of events.

Each request takes the same steps. The guard refuses a request of a foreign page (`guard.py`). The app reads the body
within its bound, calls the handler, and translates the handler's answer, or its exception by the error table. A handler
that changes something runs in the master's own nursery: when its client disconnects, only the wait for the answer is
cancelled. An unexpected exception is logged with its traceback; the client is told `internal`, outcome unknown.

The framework routes paths, but handlers take keys from the path as it was sent. The framework's decoded form does not
tell `%2F` from `/` and does not keep bytes that are not UTF-8; and slashes that follow each other belong to a key.

A handler begins only when the whole body has arrived, even if it takes no body. So a request that turns out to be
broken is never carried out.

Bounds: each route has one for its body (`Route.body_bytes_max`), and a body has `BODY_TIMEOUT_S` to arrive.
`server.py` has the bounds of connections. A body beyond its bound is refused on its announced length, and the
connection is closed, since the bytes that follow may be the rest of that body.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, cast
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

from trikv.config import is_loopback
from trikv.core.errors import Refused, TrikvError
from trikv.core.serving import request_id
from trikv.web.desk import Desk, OwnDesk, answer_passed, internal_error
from trikv.web.events import make_stream
from trikv.web.guard import opens_page, refuse_foreign
from trikv.web.lane import ExpressLane
from trikv.web.live import LiveFeed
from trikv.web.message import (
    SAFE_HEADERS,
    Request,
    RequestIds,
    Response,
    choice_of,
    parse_query,
    problem_response,
)
from trikv.web.page import EVENTS_SHOWN, PAGE_HEADERS, REFRESH_S, TOO_MANY_TO_SHOW, view_of
from trikv.web.routes import BODY_BYTES_MAX, ROUTES, SMALL_BODY_BYTES_MAX, Route
from trikv.web.server import GRACE_S, serve_app
from trikv.web.services import Services
from trikv.web.streams import STREAM_HEADERS, Stream, Streams

BODY_TIMEOUT_S: Final = 30
APART: Final = ("/", "/v1/events", "/v1/live")  # what is not in `ROUTES`

_STATIC: Final = Path(__file__).parent / "static"
_STATIC_FILES: Final = frozenset(str(file.relative_to(_STATIC)) for file in _STATIC.rglob("*") if file.is_file())

_PART: Final = re.compile(r"\{(\w+)(\.\.\.)?\}")  # of a route's path

_log = logging.getLogger(__name__)


class _Connection(TrioASGIHTTPConnection):
    """One request. A disconnect cancels its handler, but not an answer that is being sent.

    The server reports a disconnect also when an answer is complete, and it cleans up in the task that sends the last
    part. quart-trio would cancel that task, and the connection would be neither closed nor timed out. A stream does not
    end by itself, so a disconnect ends it.
    """

    _answering = False
    _stream: Stream | None = None

    def __init__(self, app: Quart, scope: HTTPScope) -> None:
        scope["path"] = _path_to_route(scope["path"])
        super().__init__(app, scope)

    async def handle_messages(  # type: ignore[override]  # quart-trio's takes a nursery, quart's does not
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
    """The path of a request's target, which may be in the absolute form. A target without a path becomes `/*`, which
    has no route.

    Quart itself would expect a first letter (`GET ?key=k`), fail on some absolute forms (`GET http://[/`), and take
    several slashes in front for one.
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
        """Routes are the same for every host, so `Host` is not read here: it may be no host name at all."""
        if request is None:
            return None
        return self.url_map.bind("localhost", path_info=request.path, default_method=request.method)

    async def send_static_file(self, filename: str) -> quart.Response:
        """Send one of the files that exist. A name that is too long for the file system is not found either."""
        if filename not in _STATIC_FILES:
            raise NotFound
        return await super().send_static_file(filename)


class _Rest(BaseConverter):
    """All that is left of the path: it may have slashes and line ends, and it may be empty."""

    regex = r"[\s\S]*"
    part_isolating = False


def _spell_part(part: re.Match[str]) -> str:
    """A part of a route's path in the framework's spelling."""
    return f"<rest:{part[1]}>" if part[2] else f"<{part[1]}>"


def create_app(
    services: Services,
    *,
    loopback_only: bool = True,
    streams: Streams | None = None,
    feed: LiveFeed | None = None,
) -> QuartTrio:
    """The app of a master that leads. `feed` is to be run beside it; without, the live stream says nothing."""
    streams = streams or Streams()
    feed = feed or LiveFeed(services)
    apart: dict[str, Callable[[], Awaitable[quart.Response]]] = {
        "/": partial(_serve_page, services),
        "/v1/events": partial(_serve_stream, lambda request: make_stream(streams, services.events, request)),
        "/v1/live": partial(_serve_stream, lambda request: feed.make_stream(streams, request)),
    }
    return _make_app(OwnDesk(services), apart, loopback_only=loopback_only)


def create_standby_app(
    desk: Desk, redirect: Callable[[Request], Awaitable[Response]], *, loopback_only: bool = True
) -> QuartTrio:
    """The app of a master that stands by. `redirect` answers what is not passed on (`APART`)."""

    async def view() -> quart.Response:
        return _to_quart(await redirect(await _read_request(0)))

    return _make_app(desk, dict.fromkeys(APART, view), loopback_only=loopback_only)


def _make_app(
    desk: Desk, apart: Mapping[str, Callable[[], Awaitable[quart.Response]]], *, loopback_only: bool
) -> QuartTrio:
    """`apart`: the views of what is not in `ROUTES`. `loopback_only`: refuse a `Host` that does not name this machine's
    loopback (see `guard.py`)."""
    app = _App("trikv.web", template_folder="templates", static_folder="static")
    app.config.update(MAX_CONTENT_LENGTH=BODY_BYTES_MAX, BODY_TIMEOUT=BODY_TIMEOUT_S, RESPONSE_TIMEOUT=None)
    app.url_map.merge_slashes = False
    app.url_map.converters["rest"] = _Rest
    changing = set()
    for route in ROUTES:
        endpoint = f"{route.method} {route.path}"
        app.add_url_rule(
            _PART.sub(_spell_part, route.path),
            endpoint=endpoint,
            view_func=partial(_serve, desk, route),
            methods=[route.method],
            strict_slashes=False,
            provide_automatic_options=False,
        )
        if route.detached:
            changing.add(endpoint)
    for rule in app.url_map.iter_rules():
        if rule.endpoint in changing and rule.methods is not None:
            rule.methods.discard("HEAD")  # Quart adds it to GET, and HEAD must change nothing
    for path, view_func in apart.items():
        app.add_url_rule(path, path, view_func, methods=["GET"], provide_automatic_options=False)
    app.before_request(partial(_name_request, RequestIds()))
    app.before_request(partial(_guard, loopback_only))
    app.after_request(_make_safe)
    app.after_request(partial(_count, desk))
    app.register_error_handler(TrikvError, _answer_error)
    app.register_error_handler(HTTPException, _answer_http_error)
    app.register_error_handler(Exception, _answer_surprise)
    return app


async def serve_http(
    services: Services,
    sock: socket.socket,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on `sock`, which is bound, until `stop`; then let the requests under way end, and close it."""
    loopback_only = is_loopback(sock.getsockname()[0])
    streams = Streams()
    feed = LiveFeed(services)
    app = create_app(services, loopback_only=loopback_only, streams=streams, feed=feed)
    passed_on = services.passed_on
    async with trio.open_nursery() as nursery:
        nursery.start_soon(streams.end_all, stop)
        nursery.start_soon(feed.run)
        lane = ExpressLane(OwnDesk(services), loopback_only=loopback_only)
        with passed_on.served_by(partial(answer_passed, services)):
            nursery.start_soon(_call_at, stop, passed_on.stop)
            await serve_app(app, sock, stop, lane=lane, task_status=task_status)
            with trio.move_on_after(GRACE_S):
                await passed_on.wait_idle()
        nursery.cancel_scope.cancel()


async def _call_at(event: trio.Event, call: Callable[[], None]) -> None:
    await event.wait()
    call()


# --- translation ------------------------------------------------------------------------------------------------------


async def _serve(desk: Desk, route: Route, **_path: str) -> quart.Response:
    request = await _read_request(route.body_bytes_max)
    return _to_quart(await (desk.answer_detached if route.detached else desk.answer)(route, request))


async def _serve_page(services: Services) -> quart.Response:
    parameters = parse_query(quart.request.query_string, "refresh")
    refresh = choice_of(parameters, "refresh", "on", "off") == "on"
    page = await quart.render_template(
        "cluster.html",
        view=view_of(services.status.describe(), services.events.latest(EVENTS_SHOWN, but=TOO_MANY_TO_SHOW)),
        host=quart.request.host,
        refresh_s=REFRESH_S if refresh else None,
    )
    return quart.Response(page, headers=PAGE_HEADERS, content_type="text/html; charset=utf-8")


async def _serve_stream(make: Callable[[Request], Stream]) -> quart.Response:
    request = await _read_request(0)
    if request.method == "HEAD":
        return quart.Response(b"", headers=STREAM_HEADERS)
    return _StreamResponse(make(request))


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
    if not path.startswith(b"/"):  # the absolute form, http://host/path, which a server must accept
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


async def _name_request(ids: RequestIds) -> None:
    request_id.set(ids.of(quart.request.headers.get("x-request-id", "")))


async def _guard(loopback_only: bool) -> None:
    headers = _headers()
    from_anywhere = opens_page(quart.request.method, quart.request.path, headers)
    refuse_foreign(headers, loopback_only=loopback_only, from_anywhere=from_anywhere)


async def _make_safe(response: quart.Response) -> quart.Response:
    for name, value in SAFE_HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["x-request-id"] = request_id.get()
    return response


async def _count(desk: Desk, response: quart.Response) -> quart.Response:
    rule = quart.request.url_rule
    method, route = ("", "none") if rule is None else (quart.request.method, rule.endpoint.rpartition(" ")[2])
    desk.answered[method, route, response.status_code] += 1
    return response


# --- errors
# -------------------------------------------------------------------------------------------------------------


async def _answer_error(error: TrikvError) -> quart.Response:
    return _to_quart(problem_response(error))


async def _answer_http_error(error: HTTPException) -> quart.Response:
    """A refusal of the framework itself, as a problem document."""
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
            refused = Refused("value_too_large", f"no body may have more than {BODY_BYTES_MAX:,} bytes")
        case _:
            refused = Refused("bad_request", error.description or error.name)
    return await _answer_error(refused)


async def _answer_surprise(error: Exception) -> quart.Response:
    _log.error("%s %s failed", quart.request.method, quart.request.path, exc_info=error)
    return await _answer_error(internal_error())
