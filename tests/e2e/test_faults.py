"""What must end in one clear line or one truthful answer: bad starts, strangers, paused and full workers."""

import contextlib
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.e2e.conftest import Trikv
from trikv.client import TrikvError
from trikv.core.errors import Outcome
from trikv.core.text import last_words
from trikv.testing.judge.expectations import Expectations
from trikv.testing.processes.cluster import LocalCluster, NodeProcess, wait_until

REPLY_DEADLINE_S = 30.0  # for a peer that must hang up by itself


def assert_one_line(ended: "CompletedProcess[bytes]", code: int, *words: str) -> None:
    """A node says it in JSON, unless it is a word of the command line that is wrong."""
    lines = ended.stderr.decode().splitlines()
    assert ended.returncode == code, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ") or json.loads(lines[0])["level"] == "error"
    for word in words:
        assert word in last_words(lines[0])


# --- starts that fail -------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_named(trikv_process: Trikv, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        memory = ("--storage", "memory", "--data-dir", tmp_path)
        assert_one_line(trikv_process("worker", port, *memory), 1, port, "in use", "another port")
        assert_one_line(
            trikv_process("master", port, "--http", "127.0.0.1:0", "--data-dir", tmp_path / "m1"), 1, port, "in use"
        )
        http = f"127.0.0.1:{port}"
        assert_one_line(trikv_process("master", "0", "--http", http, "--data-dir", tmp_path / "m2"), 1, port, "in use")


def test_a_data_directory_in_use_is_named(quiet_cluster: LocalCluster, trikv_process: Trikv) -> None:
    used = quiet_cluster.directory / "master"
    start = ("master", "0", "--http", "127.0.0.1:0", "--data-dir", used)
    assert_one_line(trikv_process(*start), 1, str(used), "in use", str(quiet_cluster.master.pid))


def test_a_data_directory_of_another_format_is_refused(trikv_process: Trikv, tmp_path: Path) -> None:
    with LocalCluster(workers=1, replicas=1, storage="rocksdb", directory=tmp_path):
        pass
    for role in ("master", "worker-1"):
        form = tmp_path / role / "FORMAT"
        assert form.exists()
        form.write_text(form.read_text().replace("1", "999"))
    start = ("worker", "0", "--storage", "rocksdb", "--data-dir", tmp_path / "worker-1")
    assert_one_line(trikv_process(*start), 1, "worker-1", "999")
    assert_one_line(
        trikv_process("master", "0", "--http", "127.0.0.1:0", "--data-dir", tmp_path / "master"), 1, "master", "999"
    )


def test_the_founding_command_line_repeated_after_a_switch_brings_the_master_back(tmp_path: Path) -> None:
    with LocalCluster(mode="quorum", workers=1, replicas=1, directory=tmp_path) as cluster:
        with cluster.client() as client:
            client.set_mode("sync")
        cluster.master.stop()
        cluster.master.start()  # with --mode quorum, as a supervisor would
        with cluster.client() as client:
            assert client.mode()["mode"] == "sync"
    told = [line for line in (tmp_path / "master.log").read_text().splitlines() if "mode sync, not quorum" in line]
    assert len(told) == 1
    assert json.loads(told[0])["level"] == "warning"


def test_a_founded_cluster_without_its_document_is_refused(trikv_process: Trikv, tmp_path: Path) -> None:
    cluster = LocalCluster(workers=0, replicas=1, directory=tmp_path)
    document = tmp_path / "master" / "cluster.sqlite"
    start = ("master", "0", "--http", "127.0.0.1:0", "--data-dir", tmp_path / "master")
    # An unknown mode is answered with the modes there are, and founds nothing.
    assert_one_line(trikv_process(*start, "--mode", "sink"), 2, "sink", "sync", "async", "chain", "quorum")
    try:
        cluster.master.start()
        cluster.master.kill()  # the document is written before anything is served
    finally:
        cluster.stop()
    assert document.stat().st_size
    remedy = ("restore the file from a backup", "--data-dir")
    document.write_bytes(b"")
    assert_one_line(trikv_process(*start), 1, f"config store {document} is empty", *remedy)
    document.unlink()
    assert_one_line(trikv_process(*start), 1, f"config store {document} is missing", *remedy)
    assert not document.exists()


def test_an_address_beyond_loopback_needs_a_word_of_consent(trikv_process: Trikv, tmp_path: Path) -> None:
    start = ("worker", "0", "--host", "0.0.0.0", "--storage", "memory", "--data-dir", tmp_path)
    assert_one_line(trikv_process(*start), 2, "0.0.0.0", "--insecure")


# --- strangers on the ports -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 10,
        b"\xff" * 4096,
        b"\x7f\xff\xff\xff" + b"x" * 100,
    ],
    ids=["http", "ones", "a frame of 2 GiB"],
)
def test_garbage_on_an_rpc_port_is_hung_up_on_and_disturbs_nobody(quiet_cluster: LocalCluster, garbage: bytes) -> None:
    with contextlib.ExitStack() as open_ones:
        strangers = [open_ones.enter_context(dial(node)) for node in nodes_of(quiet_cluster)]
        for stranger in strangers:
            stranger.sendall(garbage)
        assert_works(quiet_cluster)  # while they are still there
        for stranger in strangers:
            read_to_the_end(stranger)
    assert_works(quiet_cluster)


def test_slow_bytes_on_an_rpc_port_are_hung_up_on_and_hold_nobody_up(quiet_cluster: LocalCluster) -> None:
    with contextlib.ExitStack() as open_ones:
        strangers = [open_ones.enter_context(dial(node)) for node in nodes_of(quiet_cluster) for _ in range(20)]
        for number, stranger in enumerate(strangers):
            stranger.sendall(b"\x00\x00\x00\x03\x82\x01" if number % 2 else b"\x00")  # half a frame, half a length
        assert_works(quiet_cluster)
        for stranger in strangers:
            read_to_the_end(stranger)


def nodes_of(cluster: LocalCluster) -> list[NodeProcess]:
    return [cluster.master, cluster.workers[0]]


def dial(node: NodeProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", node.port), timeout=REPLY_DEADLINE_S)


def test_garbage_and_slow_bytes_on_the_http_port_hold_nobody_up(quiet_cluster: LocalCluster) -> None:
    address = ("127.0.0.1", quiet_cluster.master.http_port)
    with (
        socket.create_connection(address, timeout=REPLY_DEADLINE_S) as slow,
        socket.create_connection(address, timeout=REPLY_DEADLINE_S) as stranger,
    ):
        slow.sendall(b"PUT /v1/kv/slow HTTP/1.1\r\nhost: x\r\ncontent-len")
        stranger.sendall(b"\x00\xff\r\n\r\n" * 100)
        assert_works(quiet_cluster)
        read_to_the_end(stranger)
    assert_works(quiet_cluster)


def read_to_the_end(stranger: socket.socket) -> None:
    """Return when the peer has hung up; a timeout of the socket is the failure."""
    try:
        while stranger.recv(4096):
            pass
    except ConnectionResetError:
        pass  # it hung up without reading all that we had sent


def assert_works(cluster: LocalCluster) -> None:
    with cluster.client() as client:
        client.put(b"works", b"yes")
        found = client.get(b"works")
    assert found is not None
    assert found.value == b"yes"


# --- workers that do not do what they should --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four_workers() -> Iterator[LocalCluster]:
    """One worker more than replicas, so that some partitions need a worker and some do not."""
    with LocalCluster(workers=4) as cluster:
        yield cluster


@pytest.mark.parametrize("mode", ["sync", "async", "chain", "quorum"])
def test_a_paused_worker_lets_every_request_end_and_the_others_go_on(four_workers: LocalCluster, mode: str) -> None:
    keys = [b"paused-%s-%02d" % (mode.encode(), i) for i in range(40)]
    expected = Expectations(stale_reads=mode == "async")
    waits = mode in ("sync", "chain")  # for every replica, so what needs the paused worker ends by its deadline
    with four_workers.client(timeout_s=2.0 if waits else 20.0, patience_s=60.0) as client:
        client.set_mode(mode)
        assert [error for key in keys if (error := expected.put(client, key, b"before"))] == []
        paused = four_workers.workers[1]
        paused.pause()
        try:
            with ThreadPoolExecutor(len(keys)) as pool:  # all within the deadline of the first
                errors = [error for error in pool.map(lambda key: expected.put(client, key, b"after"), keys) if error]
                reads = list(pool.map(lambda key: expected.read_back(client, [key]), keys))
        finally:
            paused.resume()
        refusals = [error for read in reads for error in read.refused.values()]
        # The cluster itself has answered, by its own deadline, before the client gave up.
        assert [error for error in errors + refusals if "no answer came in time" in error.detail] == []
        assert {error.kind.outcome for error in refusals} <= {Outcome.REFUSED}
        assert [lie for read in reads for lie in read.lies] == []
        if waits:
            assert 0 < len(errors) < len(keys), "some partitions need the paused worker, and some do not"
            assert len(refusals) < len(keys)
        else:
            assert (errors, refusals) == ([], [])
        wait_until(lambda: not expected.read_back(client).refused, what="all keys can be read")
        assert expected.read_back(client).lies == []


def test_a_full_worker_refuses_new_keys_and_still_updates_those_it_has(trikv: Trikv) -> None:
    most = 20
    with LocalCluster(workers=3, max_keys=most, timeout_s=20.0) as cluster, cluster.client() as client:
        for i in range(most):
            client.put(b"key-%02d" % i, b"value")
        wait_until(
            lambda: all(w["full"] for w in client.cluster()["workers"]), what="the workers say that they are full"
        )
        with pytest.raises(TrikvError) as refusal:
            client.put(b"one too many", b"value")
        assert refusal.value.kind.code == "full"
        assert trikv("put", "one too many", "value", url=cluster.url).returncode == 4
        assert client.get(b"one too many") is None

        client.put(b"key-00", b"another value")
        found = client.get(b"key-00")
        assert found is not None
        assert found.value == b"another value"
