"""The routes as data: they need no HTTP server, and a front of ten lines serves a whole cluster with them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from trikv.core.errors import TrikvError
from trikv.masterprocess import services_of
from trikv.testing.inprocess import InProcessCluster
from trikv.web.app import create_app
from trikv.web.message import Request, Response, problem_response
from trikv.web.routes import BODY_BYTES_MAX, ROUTES, Route

Front = Callable[..., Awaitable[Response]]


def find(method: str, path: str) -> Route:
    """The first route of the table that the path fits."""

    def fits(pattern: str) -> bool:
        spelt = re.sub(r"\\{\w+\\\.\\\.\\\.\\}", ".*", re.escape(pattern))
        return re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", spelt), path) is not None

    return next(route for route in ROUTES if route.method == method and fits(route.path))


@pytest.fixture
async def front(nursery: trio.Nursery, autojump_clock: MockClock) -> Front:
    services = services_of((await InProcessCluster.start(nursery, mode="quorum")).master)

    async def ask(method: str, path: str, query: bytes = b"", body: bytes = b"") -> Response:
        route = find(method, path)
        handle = partial(route.handle, services, Request(method, path.encode(), query, {}, body))
        try:
            return await (services.run_detached(handle) if route.detached else handle())
        except TrikvError as error:
            return problem_response(error)

    return ask


def test_they_are_had_without_an_http_server() -> None:
    script = "import sys, trikv.web.routes; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = set(loaded.stdout.split())
    assert "trikv.web.keys" in modules
    assert not {"quart", "quart_trio", "hypercorn", "werkzeug", "trikv.master.master"} & modules


def test_each_is_there_once() -> None:
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


def test_what_takes_a_body_or_is_asked_to_change_something_is_detached() -> None:
    assert [route for route in ROUTES if route.body_bytes_max and not route.detached] == []
    assert [route for route in ROUTES if route.method != "GET" and not route.detached] == []
    assert max(route.body_bytes_max for route in ROUTES) == BODY_BYTES_MAX


def test_the_app_has_them_all() -> None:
    cluster_free = create_app(cast("Any", SimpleNamespace(answered=Counter())))  # nothing is asked of it
    rules = {(method, rule.rule) for rule in cluster_free.url_map.iter_rules() for method in rule.methods or ()}
    served = {(method, re.sub(r"<rest:(\w+)>", r"{\1...}", path)) for method, path in rules}
    served = {(method, path.replace("<", "{").replace(">", "}")) for method, path in served}
    assert {(route.method, route.path) for route in ROUTES} <= served


async def test_another_front_serves_keys(front: Front) -> None:
    put = await front("PUT", "/v1/kv/a/b", body=b"1")
    assert put.status == 204
    got = await front("GET", "/v1/kv/a/b")
    assert (got.status, got.body, got.headers["etag"]) == (200, b"1", put.headers["etag"])
    page = json.loads((await front("GET", "/v1/kv")).body)
    assert [item["key"] for item in page["items"]] == ["a/b"]
    line = await front("GET", "/put", b"key=c&value=2")
    assert line.body == b"OK (Mode: quorum)\n"
    items = [{"op": "get", "key": "c"}, {"op": "delete", "key": "a/b"}]
    results = json.loads((await front("POST", "/v1/batch", body=json.dumps({"items": items}).encode())).body)["results"]
    assert [result["status"] for result in results] == [200, 204]
    gone = await front("GET", "/v1/kv/a/b")
    assert (gone.status, json.loads(gone.body)["code"]) == (404, "not_found")


async def test_another_front_shows_and_steers_the_cluster(front: Front) -> None:
    assert json.loads((await front("GET", "/v1/cluster")).body)["mode"] == "quorum"
    assert json.loads((await front("GET", "/readyz")).body)["ready"] is True
    switched = await front("PUT", "/v1/mode", body=b'{"mode": "chain"}')
    assert json.loads(switched.body)["outcome"] == "committed"
    assert json.loads((await front("GET", "/v1/mode")).body)["mode"] == "chain"
    refused = await front("POST", "/v1/workers/w-9/drain")
    assert (refused.status, json.loads(refused.body)["code"]) == (404, "unknown_worker")
