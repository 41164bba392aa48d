"""Load at a fixed rate: each request is sent once, in turn, and its latency counts from when it was due."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bench.openloop import send_at_rate

OK = b"HTTP/1.1 204 \r\n\r\n"
REFUSED = b"HTTP/1.1 503 \r\ncontent-length: 0\r\n\r\n"


class Server:
    """Answers requests on one connection at a time; `rules` say how, by the number of the request."""

    def __init__(self, rules: dict[int, bytes], hold: tuple[int, int] | None = None) -> None:
        self.seen: list[bytes] = []
        self._rules = rules
        self._hold = hold or (-1, -1)
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve_one, args=[connection]).start()

    def _serve_one(self, connection: socket.socket) -> None:
        held, until = self._hold
        with connection:
            while request := connection.recv(1_000):
                with self._lock:
                    number = len(self.seen)
                    self.seen.append(request)
                if number == until:
                    self._released.set()
                if number == held:
                    assert self._released.wait(20)
                connection.sendall(self._rules.get(number, OK))


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        thread.join()


def test_requests_go_round_and_what_is_refused_counts_as_a_failure() -> None:
    with serving(Server({2: REFUSED, 5: REFUSED})) as server:
        latencies_s, failures = send_at_rate(
            server.port, [b"a\r\n\r\n", b"b\r\n\r\n"], rate=200.0, seconds=0.1, connections=1
        )
    assert server.seen == [b"a\r\n\r\n", b"b\r\n\r\n"] * 10
    assert (len(latencies_s), failures) == (18, 2)
    assert min(latencies_s) > 0


def test_a_slow_answer_delays_no_other_request_and_its_latency_is_the_longest() -> None:
    """The first is answered when the last has come: in a closed loop that would be never."""
    with serving(Server({}, hold=(0, 19))) as server:
        latencies_s, failures = send_at_rate(server.port, [b"a\r\n\r\n"], rate=100.0, seconds=0.2, connections=4)
    assert (len(latencies_s), failures) == (20, 0)
    assert max(latencies_s) >= 19 / 100.0  # from when it was due to when the last one was


def test_what_nobody_answers_counts_as_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert send_at_rate(port, [b"a\r\n\r\n"], rate=100.0, seconds=0.05, connections=2) == ([], 5)
