"""Clients that send garbage, send it slowly, or go away."""

import random
import socket

import httpx
import pytest

from tests.web.conftest import HEAD, Wire, read_to_end
from trikv.testing.processes.cluster import LocalCluster, wait_until

GARBAGE = {
    "noise": random.Random(7).randbytes(4096),
    "nul": b"\0" * 100_000,
    "no version": b"GET /\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "bytes in the target": b"GET /v1/kv/\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no path": b"GET ?key=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "another protocol's path": b"GET gopher HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "half an address": b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "a method in small letters": b"HEaD /v1/kv/a HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "negative length": b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a length and a coding": (
        b"PUT /v1/kv/smuggled HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\nv\r\n0\r\n\r\n"
    ),
    "bad chunk": b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "endless header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000,
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
}


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_answered_or_hung_up_on(wire: Wire, web: httpx.Client, cluster: LocalCluster, sent: bytes) -> None:
    connection = wire()
    try:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it has hung up already
    answer = read_to_end(connection)
    assert answer[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 403", b"HTTP/1.1 404", b"HTTP/1.1 431"), answer[:200]
    assert web.get("/livez").status_code == 200
    assert "Traceback" not in cluster.master.log.read_text()


def test_slow_clients_hold_up_nobody(wire: Wire, web: httpx.Client) -> None:
    sent = HEAD % (b"slow", 5) + b"hello"
    slow = [wire() for _ in range(50)]
    for at in range(len(sent) - 1):
        for connection in slow[:1] if at else slow:
            connection.sendall(sent[at : at + 1])
        if at % 20 == 0:
            assert web.put("/v1/kv/quick", content=b"x").status_code == 204
    assert web.get("/v1/kv/slow").status_code == 404
    slow[0].sendall(sent[-1:])
    assert slow[0].recv(65_536).startswith(b"HTTP/1.1 204")
    assert web.get("/v1/kv/slow").content == b"hello"


def test_a_client_that_leaves_before_its_value_is_complete_has_written_nothing(wire: Wire, web: httpx.Client) -> None:
    web.put("/v1/kv/torn", content=b"before")
    connection = wire()
    connection.sendall(HEAD % (b"torn", 10) + b"after")
    connection.close()
    assert web.get("/v1/kv/torn").content == b"before"
    assert web.put("/v1/kv/torn", content=b"later").status_code == 204


def test_requests_can_follow_each_other_closely(wire: Wire) -> None:
    connection = wire()
    connection.sendall(
        HEAD % (b"first", 1) + b"1" + HEAD % (b"second", 1) + b"2"
        + b"GET /v1/kv/second HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )  # fmt: skip
    answers = read_to_end(connection)
    assert answers.count(b"HTTP/1.1 204") == 2
    assert answers.endswith(b"\r\n\r\n2")


def test_a_client_that_leaves_does_not_stop_its_write_half_way() -> None:
    """Sync writes to the others first and to the first replica last; the client is gone before either has answered."""
    with LocalCluster(mode="sync", workers=3, storage="memory") as cluster:
        with httpx.Client(base_url=cluster.url, trust_env=False) as web:
            web.put("/v1/kv/left", content=b"before").raise_for_status()
            for worker in cluster.workers:
                worker.pause()
            try:
                leaving = socket.create_connection(("127.0.0.1", cluster.master.http_port), timeout=30)
                leaving.sendall((HEAD % (b"left", 5)).replace(b" HTTP", b"?timeout=60 HTTP") + b"after")
                wait_until(lambda: web.get("/v1/cluster").json()["in_flight"] == 1, what="the write is under way")
                leaving.close()
                web.get("/v1/cluster")
            finally:
                for worker in cluster.workers:
                    worker.resume()
            wait_until(lambda: web.get("/v1/cluster").json()["in_flight"] == 0, what="the write has ended")
            assert web.get("/v1/kv/left").content == b"after"
            state = web.get("/v1/cluster").json()
            assert (state["operations"]["unknown"], state["pending"]) == (0, 0)
