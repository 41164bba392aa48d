"""The clients of a history run beside code that blocks: what they record, and how they end with it."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trikv.core.errors import Outcome
from trikv.testing.processes.clients import Load
from trikv.testing.processes.process import NodeProcess, wait_until


def master_at(port: int) -> NodeProcess:
    """A node that was never started, for clients to ask at this port."""
    master = NodeProcess("master", lambda node: [], log=Path(os.devnull))
    master.http_port = port
    return master


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        yield listener


def test_a_master_that_does_not_listen_refuses_everything(free_tcp_port: int) -> None:
    with Load([master_at(free_tcp_port)], seed=1, clients=2, rate=200.0, keys=5) as load:
        wait_until(lambda: len(load.history) >= 10, what="some requests were tried")
    assert {(op.outcome, op.code) for op in load.history} == {(Outcome.REFUSED, "unreachable")}


def test_an_error_in_the_block_ends_the_clients_at_once(listener: socket.socket) -> None:
    before = threading.active_count()
    load = Load([master_at(listener.getsockname()[1])], seed=1, rate=200.0)

    def fail_while_it_waits_for_an_answer() -> None:
        with load:
            listener.accept()[0].close()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_it_waits_for_an_answer()
    assert threading.active_count() == before


def test_an_error_of_a_client_is_raised_where_the_block_ends(listener: socket.socket) -> None:
    def answer_what_no_master_answers() -> None:
        with Load([master_at(listener.getsockname()[1])], seed=1, clients=1):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 500 \r\ncontent-length: 1\r\n\r\n!")

    with pytest.raises(BaseExceptionGroup) as raised:
        answer_what_no_master_answers()
    assert raised.group_contains(json.JSONDecodeError)
