"""One connection: bytes behind a request, other protocols, and clients that leave before the answer."""

import contextlib
import http.client
import random
import resource
import socket
import struct
from pathlib import Path

import httpx
import pytest

from tests.web.conftest import HEAD, Wire, read_to_end
from trikv.testing.processes.cluster import LocalCluster, wait_until
from trikv.testing.processes.process import STOP_DEADLINE_S

UPGRADE = (
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
H2C = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


SETTINGS = frame(4, 0, 0, b"")
OTHER_PROTOCOLS = {
    "a web socket": UPGRADE + b"\r\n",
    "a web socket and a byte": UPGRADE + b"\r\nx",
    "a web socket with a body": UPGRADE + b"Content-Length: 5\r\n\r\nhello",
    "a web socket of another alphabet": UPGRADE + b"Sec-WebSocket-Protocol: caf\xe9\r\n\r\n",
    "web socket extensions of another alphabet": UPGRADE + b"Sec-WebSocket-Extensions: \xff\xff\r\n\r\n",
    "a connection of another alphabet": (
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade, caf\xe9\r\n\r\n"
    ),
    "h2c": H2C + b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n",
    "h2c with short settings": H2C + b"HTTP2-Settings: AAMA\r\n\r\n",
    "h2c with bad settings": H2C + b"HTTP2-Settings: \xff!\r\n\r\n",
    "h2c without settings": H2C + b"\r\n" + PREFACE + SETTINGS,
    "HTTP/2": PREFACE + SETTINGS + frame(1, 5, 1, bytes.fromhex("828684")),
    "HTTP/2 with bytes in the path": PREFACE + SETTINGS + frame(1, 5, 1, bytes.fromhex("828644 01ff")),
    "a thousand priorities": PREFACE + SETTINGS + frame(2, 0, 3, bytes(5)) * 1000,
    "data for no stream": PREFACE + SETTINGS + frame(0, 0, 1, b"x" * 1000),
    "HTTP/3.7": b"GET /livez HTTP/3.7\r\nHost: localhost\r\n\r\n",
    "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\nhello",
}


@pytest.mark.parametrize("sent", OTHER_PROTOCOLS.values(), ids=OTHER_PROTOCOLS)
def test_another_protocol_is_not_offered(wire: Wire, web: httpx.Client, cluster: LocalCluster, sent: bytes) -> None:
    connection = wire()
    connection.sendall(sent)
    connection.shutdown(socket.SHUT_WR)
    answer = read_to_end(connection)
    assert answer[:10] in (b"HTTP/1.1 2", b"HTTP/1.1 4"), answer[:200]
    assert web.get("/livez").status_code == 200
    assert cluster.master.running
    assert "Traceback" not in cluster.master.log.read_text()


@pytest.mark.parametrize("coding", [b"identity", b"gzip, chunked", b"chunked, chunked", b"xchunked"])
def test_a_transfer_coding_that_nobody_has_is_the_requests_fault(wire: Wire, coding: bytes) -> None:
    connection = wire()
    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: " + coding + b"\r\n\r\n")
    assert read_to_end(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("host", [b"a" * 64, b"a" * 64 + b".localhost", b"..", b"xn--a", b"\xe9"])
def test_a_host_that_is_no_name_is_refused(wire: Wire, cluster: LocalCluster, host: bytes) -> None:
    connection = wire()
    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
    assert read_to_end(connection)[:12] in (b"HTTP/1.1 200", b"HTTP/1.1 400", b"HTTP/1.1 403")
    assert "Traceback" not in cluster.master.log.read_text()


def test_a_refusal_that_has_begun_is_sent_to_its_end(wire: Wire) -> None:
    """It comes before the body is there, about when the client closes its half; so several tries."""
    for _ in range(40):
        connection = wire()
        connection.sendall(b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\nx")
        connection.recv(1, socket.MSG_PEEK)
        connection.shutdown(socket.SHUT_WR)
        head, _, body = read_to_end(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"content-length: %d" % len(body) in head.lower()


@pytest.mark.parametrize("wait_s", [0.0, 0.0005, 0.001, 0.002])
def test_a_line_end_behind_the_last_request_harms_nobody(
    wire: Wire, web: httpx.Client, cluster: LocalCluster, wait_s: float
) -> None:
    """It arrives about when the answer leaves, so several tries."""
    for _ in range(15):
        connection = wire()
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        connection.settimeout(wait_s or 30)
        try:
            head = connection.recv(1, socket.MSG_PEEK) if wait_s else b""
        except TimeoutError:
            head = b""
        connection.settimeout(30)
        try:
            connection.sendall(b"\r\n")
        except OSError:
            assert head
        assert read_to_end(connection).startswith(b"HTTP/1.1 200")
    assert web.get("/livez").status_code == 200
    assert cluster.master.running


BEHIND = {
    "POST /put": b"POST /put?key=%s&value=v HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "PUT": b"PUT /v1/kv/%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 1\r\n\r\nv",
    "HTTP/1.0": b"PUT /v1/kv/%s HTTP/1.0\r\nContent-Length: 1\r\n\r\nv",
    "HTTP/1.0, to be kept": b"PUT /v1/kv/%s HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nv",
    "chunked": b"PUT /v1/kv/%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"1\r\nv\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("behind", [b"\r\n", b"\0", b"GET /livez HTTP/1.0\r\n\r\n", b"garbage" * 20_000])
@pytest.mark.parametrize("request_", BEHIND.values(), ids=BEHIND)
def test_the_answer_is_the_operations_own_whatever_follows(
    wire: Wire, web: httpx.Client, request_: bytes, behind: bytes
) -> None:
    key = b"behind-%d-%d" % (len(request_), len(behind))
    connection = wire()
    with contextlib.suppress(ConnectionResetError):  # it does not read for ever
        connection.sendall(request_ % key + behind)
    assert read_to_end(connection)[:10] == b"HTTP/1.1 2"
    assert web.get(f"/v1/kv/{key.decode()}").content == b"v"


@pytest.mark.parametrize("method", ["DELETE", "PUT"])
def test_a_request_that_turns_out_to_be_broken_was_not_carried_out(wire: Wire, web: httpx.Client, method: str) -> None:
    web.put("/v1/kv/broken", content=b"before")
    connection = wire()
    head = f"{method} /v1/kv/broken HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nv\r\n"
    connection.sendall(head.encode())
    connection.sendall(b"no chunk\r\n")
    assert read_to_end(connection).startswith(b"HTTP/1.1 400")
    assert web.get("/v1/kv/broken").content == b"before"


def test_a_client_that_closes_its_half_and_waits_is_answered(wire: Wire, web: httpx.Client) -> None:
    connection = wire()
    connection.sendall(HEAD % (b"half", 5) + b"value" + b"GET /v1/kv/half HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
    connection.shutdown(socket.SHUT_WR)
    answers = read_to_end(connection)
    assert answers.startswith(b"HTTP/1.1 204")
    assert answers.count(b"\r\n\r\nvalue") == 2


def test_half_a_request_is_not_carried_out(wire: Wire, web: httpx.Client) -> None:
    connection = wire()
    connection.sendall(HEAD % (b"half-sent", 5) + b"val")
    connection.shutdown(socket.SHUT_WR)
    read_to_end(connection)
    assert web.get("/v1/kv/half-sent").status_code == 404


def test_a_body_that_is_too_large_is_answered_before_it_has_all_arrived(cluster: LocalCluster) -> None:
    """What is still on its way is read and dropped, so the client sees the answer and no reset."""
    connection = http.client.HTTPConnection("127.0.0.1", cluster.master.http_port, timeout=30)
    connection.putrequest("PUT", "/v1/kv/large")
    connection.putheader("Content-Length", str(4 << 20))
    connection.endheaders()
    connection.send(b"x" * 100_000)
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("connection")) == (413, "close")
    connection.close()


def descriptors(cluster: LocalCluster) -> int:
    return len(list(Path(f"/proc/{cluster.master.pid}/fd").iterdir()))


def test_a_connection_that_was_closed_keeps_no_descriptor(wire: Wire, web: httpx.Client, cluster: LocalCluster) -> None:
    web.get("/livez")
    before = descriptors(cluster)
    idle = [wire() for _ in range(50)]
    for connection in idle[::2]:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
    assert descriptors(cluster) >= before + 50
    for connection in idle:
        connection.close()
    wait_until(lambda: descriptors(cluster) <= before + 2, deadline_s=30, what="their descriptors are closed")


def operations(web: httpx.Client) -> int:
    return sum(web.get("/v1/cluster").json()["operations"].values())


def test_what_a_client_asked_for_before_it_left_is_not_read(wire: Wire, web: httpx.Client) -> None:
    web.put("/v1/kv/large-and-asked-for", content=b"x" * 1_000_000)
    before = operations(web)
    for _ in range(5):
        connection = wire()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.sendall(b"GET /v1/kv/large-and-asked-for HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    assert web.put("/v1/kv/after-they-left", content=b"x").status_code == 204
    wait_until(lambda: web.get("/v1/cluster").json()["in_flight"] == 0, what="nothing is under way")
    assert operations(web) - before < 5 * 20


def test_a_node_without_a_free_descriptor_goes_on() -> None:
    """Idle strangers take what there is; when they have gone it serves, and says in a line each time what was short."""
    with LocalCluster(mode="quorum", workers=3, storage="memory") as cluster:
        few = descriptors(cluster) + 5
        resource.prlimit(cluster.master.pid, resource.RLIMIT_NOFILE, (few, few))
        held = [socket.create_connection(("127.0.0.1", cluster.master.http_port), timeout=30) for _ in range(50)]
        wait_until(lambda: "open files" in cluster.master.log.read_text(), what="it says what is short")
        for connection in held:
            connection.close()
        with httpx.Client(base_url=cluster.url, trust_env=False) as web:
            assert web.put("/v1/kv/a", content=b"x").status_code == 204
            assert [w["state"] for w in web.get("/v1/cluster").json()["workers"]] == ["up"] * 3
        assert "Traceback" not in cluster.master.log.read_text()


def test_clients_that_take_their_answers_slowly_do_not_hold_a_stop_back() -> None:
    """The kernel's own time limit would not end them: they take something now and then."""
    with LocalCluster(mode="quorum", workers=3, storage="memory") as cluster:
        with httpx.Client(base_url=cluster.url, trust_env=False) as web:
            web.put("/v1/kv/large", content=b"x" * 1_000_000).raise_for_status()
        slow = [socket.socket() for _ in range(3)]
        for connection in slow:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(("127.0.0.1", cluster.master.http_port))
            connection.sendall(b"GET /v1/kv/large HTTP/1.1\r\nHost: localhost\r\n\r\n" * 40)
            assert connection.recv(1)
        cluster.master.ask_to_stop()

        def stopped() -> bool:
            for connection in slow:
                with contextlib.suppress(OSError):
                    connection.recv(1024, socket.MSG_DONTWAIT)
            return not cluster.master.running

        wait_until(stopped, deadline_s=STOP_DEADLINE_S, what="the master has stopped")
        assert cluster.master.wait(1) == 0
        for connection in slow:
            connection.close()


def test_pipelined_requests_are_all_answered_whenever_the_half_is_closed(wire: Wire) -> None:
    """Also between a head and its body, and while the answer before is just leaving: cut at random, a try each."""
    dice = random.Random(12)
    body = b'{"items": [{"op": "get", "key": "a"}]}'
    head = b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    sent = (
        b"POST /put?key=a&value=b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        + (head % len(body) + body) * 2
    )
    for _ in range(200):
        connection = wire()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        first, last = sorted(dice.randrange(len(sent)) for _ in range(2))
        connection.sendall(sent[:first])
        connection.sendall(sent[first:last])
        if first > 100:
            connection.recv(1, socket.MSG_PEEK)  # the first answer is leaving
        connection.sendall(sent[last:])
        connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection).count(b"HTTP/1.1 200") == 3
        connection.close()
