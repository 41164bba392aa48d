"""One real cluster for all of these tests: a master and three workers as processes, quorum, in memory."""

import http.client
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import httpx
import pytest

from trikv.testing.processes.cluster import LocalCluster


class Told(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


Ask = Callable[..., Told]
Wire = Callable[[], socket.socket]

HEAD = b"PUT /v1/kv/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


def read_to_end(connection: socket.socket) -> bytes:
    answer = b""
    try:
        while piece := connection.recv(65_536):
            answer += piece
    except ConnectionResetError:
        pass  # it had sent what it would not read
    return answer


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(workers=3, timeout_s=20.0) as running:
        yield running


@pytest.fixture
def web(cluster: LocalCluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.url, trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture
def ask(cluster: LocalCluster) -> Ask:
    """Send a request whose target goes out letter by letter: URL libraries tidy `..` and `//` away."""

    def ask(method: str, target: str, body: bytes | None = None, **headers: str) -> Told:
        connection = http.client.HTTPConnection("127.0.0.1", cluster.master.http_port, timeout=30)
        try:
            connection.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return Told(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    return ask


@pytest.fixture
def wire(cluster: LocalCluster) -> Iterator[Wire]:
    """Bare connections to the HTTP port, closed at the end."""
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", cluster.master.http_port), timeout=30))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()
