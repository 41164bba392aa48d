"""A worker's own metrics: what it counts, and that nobody but a scraper gets anything else from that port."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio

from tests.web.conftest import read_to_end
from tests.web.scraped import Samples, flaws, samples_of, value
from trikv.core.calls import Op
from trikv.core.errors import Fault
from trikv.core.session import Hello, MasterId
from trikv.net.doors import Doors
from trikv.net.peers import Peer
from trikv.testing.processes.cluster import LocalCluster, NodeProcess
from trikv.web.worker_metrics import BODY_BYTES_MAX

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(scope="module")
def measured() -> Iterator[LocalCluster]:
    """Three workers on disk that serve metrics; one may hold no more than 1,000 keys."""
    with LocalCluster(workers=3, storage="rocksdb", max_keys=1000, metrics=True) as running:
        yield running


def scrape(node: NodeProcess) -> Samples:
    answer = httpx.get(f"http://127.0.0.1:{node.http_port}/metrics", trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert flaws(answer.text) == []
    return samples_of(answer.text)


def test_what_it_did_is_counted(measured: LocalCluster) -> None:
    before = [scrape(node) for node in measured.workers]
    with measured.client() as client:
        for number in range(20):
            client.put(b"k%d" % number, bytes(100))
        client.delete(b"k0")
        client.get(b"k1")
    after = [scrape(node) for node in measured.workers]
    for old, new in zip(before, after, strict=True):
        rises = {name: value(new, name) - value(old, name) for name in ("trikv_replica_keys", "trikv_replica_bytes")}
        assert value(new, "trikv_replica_calls_total", call="store") >= 20
        assert value(new, "trikv_replica_keys_limit") == 1000
        assert value(new, "trikv_replica_term") == 1
        assert value(new, "trikv_replica_disk_free_bytes") > 0
        assert value(new, "trikv_replica_full", what="disk") == value(new, "trikv_replica_full", what="keys") == 0
        assert value(new, "trikv_replica_commit_records_sum") >= 20
        commits = value(new, "trikv_replica_commit_duration_seconds_count")
        assert 0 < value(new, "trikv_replica_commit_records_count") <= commits
        assert value(new, "trikv_build_info", role="worker") == 1
        assert rises["trikv_replica_keys"] >= 18  # quorum: a copy may still be on its way
        assert rises["trikv_replica_bytes"] >= 18 * 100
    reads = [value(new, "trikv_replica_calls_total", call="fetch", default=0.0) for new in after]
    assert sum(reads) >= 2


def test_calls_that_are_not_served_are_counted_by_fault(measured: LocalCluster) -> None:
    """A store of an epoch from before is stale; a store for another life is for another member."""
    node = measured.workers[0]
    before = scrape(node)
    assert value(before, "trikv_replica_call_faults_total", call="store", fault="stale") == 0
    faults = trio.run(_store_in_the_past, measured, node)
    assert faults == [Fault.STALE, Fault.OTHER_MEMBER]
    after = scrape(node)
    assert value(after, "trikv_replica_call_faults_total", call="store", fault="stale") == 1
    assert value(after, "trikv_replica_call_faults_total", call="store", fault="other_member") == 1


async def _store_in_the_past(cluster: LocalCluster, node: NodeProcess) -> list[int]:
    with cluster.client() as client:
        state = client.cluster()
    life = next(worker["incarnation"] for worker in state["workers"] if worker["id"] == node.id)
    me = Hello("master", state["cluster"], str(MasterId(state["term"], "test")), state["cluster"])
    peer = Peer(node.address, lambda: me, Doors())
    faults = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        with trio.fail_after(20):
            while peer.link is None:
                await peer.wait_changed()
        for incarnation in (life, "another"):
            fault, _ = await peer.ask(Op.STORE, [1, 0, incarnation, b"k", 0, 1, 0, 1, b"v"], 20)
            faults.append(fault)
        nursery.cancel_scope.cancel()
    return faults


REFUSED = [
    pytest.param("GET", "/", {}, 404, id="another path"),
    pytest.param("GET", "/v1/kv/k", {}, 404, id="a key"),
    pytest.param("GET", "//metrics", {}, 404, id="two slashes"),
    pytest.param("POST", "/metrics", {}, 405, id="another method"),
    pytest.param("GET", "/metrics?x=1", {}, 400, id="a parameter"),
    pytest.param("GET", "/metrics", {"Host": "evil.example"}, 403, id="a foreign name of this address"),
    pytest.param("GET", "/metrics", {"Origin": "http://evil.example"}, 403, id="a page of another origin"),
    pytest.param("GET", "/metrics", {"Sec-Fetch-Site": "cross-site"}, 403, id="an image on a foreign page"),
]


@pytest.mark.parametrize(("method", "target", "headers", "status"), REFUSED)
def test_everything_else_is_refused(
    measured: LocalCluster, method: str, target: str, headers: dict[str, str], status: int
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", measured.workers[0].http_port, timeout=30)
    connection.request(method, target, headers=headers)
    answer = connection.getresponse()
    assert answer.status == status
    assert answer.getheader("content-type") == "application/problem+json"
    assert b'"outcome": "refused"' in answer.read()
    connection.close()


def test_head_has_no_body_and_the_connection_goes_on(measured: LocalCluster) -> None:
    with socket.create_connection(("127.0.0.1", measured.workers[0].http_port), timeout=30) as wire:
        head = b"HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
        wire.sendall(head + head + b"HEAD /nope HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = read_to_end(wire)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert answer.count(b"HTTP/1.1 404") == 1
    assert b"# HELP" not in answer


BODIES = [
    pytest.param(b"Content-Length: 5\r\n\r\nhello", b"200", id="a small one is dropped"),
    pytest.param(b"Content-Length: 99999999\r\n\r\n" + bytes(2 * BODY_BYTES_MAX), b"413", id="a large one"),
    pytest.param(b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400", id="a broken one"),
]


@pytest.mark.parametrize(("rest", "status"), BODIES)
def test_bodies_are_bounded(measured: LocalCluster, rest: bytes, status: bytes) -> None:
    with socket.create_connection(("127.0.0.1", measured.workers[0].http_port), timeout=30) as wire:
        wire.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + rest)
        assert read_to_end(wire).startswith(b"HTTP/1.1 " + status)
    scrape(measured.workers[0])


def test_strangers_at_the_port_do_the_worker_no_harm(measured: LocalCluster) -> None:
    node = measured.workers[1]
    for nonsense in (
        b"\x00" * 100,
        b"\x16\x03\x01" + bytes(200),
        b"GET\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"",
    ):
        with socket.create_connection(("127.0.0.1", node.http_port), timeout=30) as wire:
            wire.sendall(nonsense)
            wire.shutdown(socket.SHUT_WR)
            read_to_end(wire)
    assert node.running
    scrape(node)


def test_a_worker_that_is_not_asked_for_metrics_pays_for_none_of_it(tmp_path: Path) -> None:
    program = (
        "import sys, trikv.daemon, trikv.registry; trikv.registry.load_registry();"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'prometheus_client', 'hypercorn', 'quart'}))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert told.stdout == "[]\n"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("0.0.0.0:0", "0.0.0.0 can be reached from other machines"),
        ("127.0.0.1:{taken}", "choose another with --metrics HOST:PORT"),
        ("no port", "--metrics"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(tmp_path: Path, address: str, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [
            sys.executable, "-m", "trikv", "worker", "0", "--storage", "memory", "--master", "none",
            "--config", os.devnull,
            "--metrics", address.format(taken=taken.getsockname()[1]),
        ]  # fmt: skip
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert told.returncode != 0
    assert said in told.stderr.splitlines()[-1]
    assert "Traceback" not in told.stderr


def test_a_full_worker_says_so() -> None:
    with LocalCluster(workers=1, replicas=1, max_keys=1, metrics=True, min_copies=1) as cluster:
        with cluster.client() as client:
            client.put(b"k", b"v")
        samples = scrape(cluster.workers[0])
    assert value(samples, "trikv_replica_full", what="keys") == 1
