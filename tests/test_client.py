"""A client that knows several masters: to which of them a request goes, and when it is repeated at another.

The masters are small servers with one answer each; what a real master answers is in `tests/web`.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from trikv.client import Client
from trikv.core.errors import KINDS, TrikvError
from trikv.web.message import problem_document

Answer = tuple[int, dict[str, str], bytes]

COMMITTED: Answer = (204, {"trikv": "1", "etag": '"1.0-1"'}, b"")
FOUND: Answer = (200, {"trikv": "1", "etag": '"1.0-1"'}, b"value")
LOGIN_PAGE: Answer = (200, {}, b"<html>")


def refusal(code: str) -> Answer:
    body = json.dumps(problem_document(TrikvError(code, "because"))).encode()
    return KINDS[code].http, {"trikv": "1", "content-type": "application/problem+json"}, body


class Server:
    """Answers every request with `answer`; None: it hangs up instead. `asked`: the requests, method and path."""

    def __init__(self, answer: Answer | None) -> None:
        self.answer = answer
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def serve(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                server.asked.append(f"{self.command} {self.path}")
                if server.answer is None:
                    self.close_connection = True
                    return
                status, headers, body = server.answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = serve  # noqa: N815 http.server wants these names

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


Serve = Callable[[Answer | None], Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers = []

    def start(answer: Answer | None) -> Server:
        servers.append(server := Server(answer))
        Thread(target=server.http.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


@contextmanager
def nobody() -> Iterator[str]:
    """A URL at which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def test_one_that_cannot_be_reached_is_skipped_and_the_one_that_answered_is_asked_first(serve: Serve) -> None:
    first, second = serve(FOUND), serve(COMMITTED)
    with nobody() as gone, Client(f"{gone}, {second.url},{first.url}") as client:
        assert client.put(b"k", b"v") == "1.0-1"
        second.answer = FOUND
        assert client.get(b"k") is not None
    assert second.asked == ["PUT /v1/kv/k", "GET /v1/kv/k"]
    assert first.asked == []


@pytest.mark.parametrize("code", ["no_leader", "stopping"])
def test_a_write_goes_on_to_the_next_where_a_master_says_that_it_does_not_lead(serve: Serve, code: str) -> None:
    first, second = serve(refusal(code)), serve(COMMITTED)
    with Client(f"{first.url},{second.url}") as client:
        assert client.put(b"k", b"v") == "1.0-1"
    assert first.asked == second.asked == ["PUT /v1/kv/k"]


@pytest.mark.parametrize("answer", [None, LOGIN_PAGE, refusal("unknown"), refusal("internal")])
def test_a_write_that_may_have_been_carried_out_is_not_repeated(serve: Serve, answer: Answer | None) -> None:
    first, second = serve(answer), serve(COMMITTED)
    with Client(f"{first.url},{second.url}") as client, pytest.raises(TrikvError) as raised:
        client.put(b"k", b"v")
    assert raised.value.kind.outcome == "unknown"
    assert second.asked == []


@pytest.mark.parametrize("code", ["unavailable", "precondition_failed", "overloaded", "unanswered"])
def test_a_refusal_that_another_master_would_give_as_well_stands(serve: Serve, code: str) -> None:
    first, second = serve(refusal(code)), serve(FOUND)
    with Client(f"{first.url},{second.url}") as client, pytest.raises(TrikvError) as raised:
        client.get(b"k")
    assert raised.value.kind.code == code
    assert second.asked == []


@pytest.mark.parametrize("answer", [None, LOGIN_PAGE, (502, {}, b"bad gateway")])
def test_a_read_without_an_answer_is_asked_of_the_next(serve: Serve, answer: Answer | None) -> None:
    first, second = serve(answer), serve(FOUND)
    with Client(f"{first.url},{second.url}") as client:
        found = client.get(b"k")
    assert found is not None
    assert found.value == b"value"


def test_what_only_plans_a_change_is_a_read(serve: Serve) -> None:
    first, second = serve(None), serve((200, {"trikv": "1"}, b'{"mode": "sync"}'))
    with Client(f"{first.url},{second.url}") as client:
        assert client.plan_mode("sync") == {"mode": "sync"}
        second.answer = None
        with pytest.raises(TrikvError, match="the request was sent to"):
            client.set_mode("sync")
    assert len(second.asked) == 2
    assert len(first.asked) == 1


def test_the_error_names_all_that_were_tried(serve: Serve) -> None:
    standby = serve(refusal("no_leader"))
    with nobody() as gone, nobody() as gone_too:
        with Client(f"{gone},{gone_too}") as client, pytest.raises(TrikvError) as raised:
            client.put(b"k", b"v")
        assert raised.value.kind.code == "unreachable"
        assert gone in raised.value.detail
        assert gone_too in raised.value.detail
        with Client(f"{gone},{standby.url}") as client, pytest.raises(TrikvError) as raised:
            client.put(b"k", b"v")
        assert raised.value.kind.code == "no_leader"
        assert gone in raised.value.detail
        assert "because" in raised.value.detail


@pytest.mark.parametrize("url", ["", ",", " , ", "http://a,ftp://b", "http://a,http://b?x=1"])
def test_addresses_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(TrikvError) as raised:
        Client(url)
    assert raised.value.kind.code == "bad_request"


def test_events_follow_a_standby_to_the_leader(serve: Serve) -> None:
    event = b'id: 1-1\nevent: term\ndata: {"kind": "term"}\n\n'
    leader = serve((200, {"trikv": "1", "content-type": "text/event-stream"}, event))
    standby = serve((307, {"trikv": "1", "location": f"{leader.url}/v1/events?follow=false"}, b""))
    with nobody() as gone, Client(f"{gone},{standby.url}") as client:
        assert list(client.events(follow=False)) == [{"kind": "term"}]
    assert leader.asked == ["GET /v1/events?follow=false"]
