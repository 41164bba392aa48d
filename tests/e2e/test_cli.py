"""The command line against a cluster: what goes to stdout, and what the exit code says."""

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.e2e.conftest import Trikv
from trikv.testing.processes.cluster import LocalCluster

EVERY_BYTE = bytes(range(256))


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that takes one request and hangs up instead of answering."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take_and_hang_up() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)

        thread = threading.Thread(target=take_and_hang_up, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(timeout=30)


def test_values_pass_byte_for_byte(quiet_cluster: LocalCluster, trikv: Trikv, tmp_path: Path) -> None:
    url = quiet_cluster.url
    assert trikv("put", "bytes/stdin", "-", url=url, stdin=EVERY_BYTE).returncode == 0
    assert trikv("get", "bytes/stdin", url=url).stdout == EVERY_BYTE
    source = tmp_path / "value"
    source.write_bytes(EVERY_BYTE[::-1])
    assert trikv("put", "bytes/file", "--file", source, url=url).returncode == 0
    assert trikv("get", "bytes/file", url=url).stdout == EVERY_BYTE[::-1]
    assert trikv("put", "bytes/empty", "", url=url).returncode == 0
    assert trikv("get", "bytes/empty", url=url).stdout == b""


@pytest.mark.parametrize(
    "key",
    [
        b"a/b//c",
        b"/",
        b"..",
        b"a/../b",
        b"%2F?x=1&y#z",
        b"\xff\x00\xfe",
        "clé ☃".encode(),
        b" ",
        b"+",
        b"a\nb",
        pytest.param(b"x" * 4096, id="4 KiB"),
    ],
)
def test_any_key_comes_back_as_it_went(quiet_cluster: LocalCluster, trikv: Trikv, key: bytes) -> None:
    value = b"the value of " + key[:100]
    with quiet_cluster.client() as client:
        client.put(key, value)
        found = client.get(key)
        assert found is not None
        assert found.value == value
        assert key in {entry.key for entry in client.scan(key[:1])}
    coded = base64.b64encode(key).decode()
    assert trikv("get", "--base64", coded, url=quiet_cluster.url).stdout == value
    assert trikv("delete", "--base64", coded, url=quiet_cluster.url).returncode == 0
    assert trikv("get", "--base64", coded, url=quiet_cluster.url).returncode == 3


def test_the_workers_that_hold_a_key_can_be_asked_for(quiet_cluster: LocalCluster) -> None:
    with quiet_cluster.client() as client:
        holders = client.locate(b"locate/\xff")
        assert sorted(holders) == sorted(node.id for node in quiet_cluster.workers)
        firsts = {client.locate(b"locate/%d" % i)[0] for i in range(50)}
    assert firsts == set(holders), "first choices are spread"


def test_compare_and_set(quiet_cluster: LocalCluster, trikv: Trikv) -> None:
    url = quiet_cluster.url
    first = trikv("put", "cas", "1", "--if-absent", "--etag", url=url)
    assert first.returncode == 0
    etag = first.stdout.decode().strip()
    assert trikv("get", "cas", "--etag", url=url).stdout.decode().strip() == etag
    assert trikv("put", "cas", "2", "--if-absent", url=url).returncode == 5
    assert trikv("put", "cas", "2", "--if-match", etag, url=url).returncode == 0
    assert trikv("put", "cas", "3", "--if-match", etag, url=url).returncode == 5
    assert trikv("delete", "cas", "--if-match", etag, url=url).returncode == 5
    assert trikv("get", "cas", url=url).stdout == b"2"


def test_scan_lists_keys_in_byte_order(quiet_cluster: LocalCluster, trikv: Trikv) -> None:
    url = quiet_cluster.url
    with quiet_cluster.client() as client:
        for key in (b"scan/b", b"scan/a\n", b"scan/\xff", b"scan/B"):
            client.put(key, b"v")
    plain = trikv("scan", "scan/", url=url).stdout.decode().splitlines()
    assert plain == ["scan/B", r"scan/a\n", "scan/b", r"scan/\xff"]
    coded = trikv("scan", "--base64", base64.b64encode(b"scan/").decode(), url=url).stdout.split()
    assert [base64.urlsafe_b64decode(line) for line in coded] == [b"scan/B", b"scan/a\n", b"scan/b", b"scan/\xff"]
    rows = [json.loads(line) for line in trikv("scan", "scan/", "--json", "--limit", "2", url=url).stdout.splitlines()]
    assert [(row["key"], row["value"]) for row in rows] == [("scan/B", "v"), ("scan/a\n", "v")]
    assert trikv("scan", "scan/", "--after", "scan/b", "--limit", "1", url=url).stdout == b"scan/\\xff\n"


def test_status_and_mode_tell_the_price_in_the_modes_own_words(quiet_cluster: LocalCluster, trikv: Trikv) -> None:
    url = quiet_cluster.url
    state = json.loads(trikv("status", "--json", url=url).stdout)
    words = next(mode for mode in state["modes"] if mode["name"] == "quorum")
    shown = trikv("status", url=url).stdout.decode()
    assert words["gives_up"] in shown
    assert "all 1,024 settled" in shown
    assert all(worker["id"] in shown and worker["address"] in shown for worker in state["workers"])
    modes = trikv("mode", url=url).stdout.decode().splitlines()
    assert sorted(line.split("\t")[1] for line in modes) == ["async", "chain", "quorum", "sync"]
    assert [line.split("\t")[1] for line in modes if line.startswith("*")] == ["quorum"]
    unknown = trikv("mode", "sink", url=url)
    assert unknown.returncode == 2
    assert "chain" in unknown.stderr.decode()


def test_plugins_need_no_cluster(trikv: Trikv) -> None:
    listed = trikv("plugins")
    assert listed.returncode == 0
    rows = [line.split("\t") for line in listed.stdout.decode().splitlines()]
    assert {row[1] for row in rows if row[0] == "mode"} >= {"sync", "async", "chain", "quorum"}
    assert {row[1] for row in rows if row[0] == "storage"} >= {"memory", "rocksdb"}
    assert all(row[3].startswith("trikv ") for row in rows if row[1] in ("sync", "rocksdb"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(trikv: Trikv, shell: str) -> None:
    printed = trikv("completion", shell)
    assert printed.returncode == 0
    assert "_TRIKV_COMPLETE" in printed.stdout.decode()


def test_exit_codes(quiet_cluster: LocalCluster, trikv: Trikv, tmp_path: Path, free_tcp_port: int) -> None:
    url = quiet_cluster.url
    assert trikv("--version").returncode == 0
    assert trikv("get", "exit/absent", url=url).returncode == 3
    assert trikv("delete", "exit/absent", url=url).returncode == 0
    usage = [
        ("put", "exit/key"),
        ("put", "exit/key", "v", "--file", "also"),
        ("put", "exit/key", "v", "--if-match", "1.0-1", "--if-absent"),
        ("put", "", "v"),
        ("put", "x" * 4097, "v"),
        ("get", "--base64", "not base64!"),
        ("get", "exit/key", "--timeout", "soon"),
        ("get", "exit/key", "--url", "nonsense"),
        ("nothing",),
    ]
    assert [(words, code) for words in usage if (code := trikv(*words, url=url).returncode) != 2] == []
    assert trikv("put", "exit/large", "-", url=url, stdin=b"x" * (1024 * 1024 + 1)).returncode == 2
    assert trikv("put", "exit/largest", "-", url=url, stdin=b"x" * 1024 * 1024).returncode == 0
    assert trikv("put", "exit/key", "--file", tmp_path / "nowhere", url=url).returncode == 1
    nobody = trikv("get", "exit/key", url=f"http://127.0.0.1:{free_tcp_port}")
    assert nobody.returncode == 4
    assert nobody.stderr.decode().count("\n") == 1
    assert str(free_tcp_port) in nobody.stderr.decode()


def test_the_process_says_the_same(quiet_cluster: LocalCluster, trikv_process: Trikv) -> None:
    assert trikv_process("put", "process", "-", url=quiet_cluster.url, stdin=EVERY_BYTE).returncode == 0
    assert trikv_process("get", "process", url=quiet_cluster.url).stdout == EVERY_BYTE
    absent = trikv_process("get", "exit/absent", url=quiet_cluster.url)
    assert (absent.returncode, absent.stdout) == (3, b"")
    assert absent.stderr.decode().startswith("error: ")


def test_a_write_whose_answer_is_lost_is_unknown(trikv: Trikv, silent_server: str) -> None:
    lost = trikv("put", "key", "value", "--json", url=silent_server)
    assert lost.returncode == 6
    assert json.loads(lost.stderr)["outcome"] == "unknown"


def test_a_read_whose_answer_is_lost_is_refused(trikv: Trikv, silent_server: str) -> None:
    assert trikv("get", "key", url=silent_server).returncode == 4


class Stranger(BaseHTTPRequestHandler):
    """A server that is none of trikv's: it is content with everything, and asks to log in."""

    status = 200
    headers_sent: tuple[tuple[str, str], ...] = (("content-type", "text/html"),)
    body = b"<html>please log in</html>"

    def handle_one_request(self) -> None:
        super().handle_one_request()
        self.close_connection = True

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(self.status)
        for name, value in (*self.headers_sent, ("content-length", str(len(self.body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_PUT = do_DELETE = do_POST = answer  # noqa: N815 http.server names them

    def log_message(self, *_: object) -> None:
        pass


class JsonStranger(Stranger):
    """One whose answers look much like trikv's, but are not."""

    headers_sent = (("content-type", "application/json"), ("etag", '"1.0-1"'))
    body = b'{"outcome": "committed", "partitions": [], "results": [], "items": [], "after": null}'


class RefusingStranger(JsonStranger):
    status = 503
    body = b'{"outcome": "refused", "code": "unavailable", "detail": "no"}'


class GarbledStranger(Stranger):
    headers_sent = (("content-encoding", "gzip"),)


@pytest.fixture(scope="module", params=[Stranger, JsonStranger, RefusingStranger, GarbledStranger])
def stranger(request: pytest.FixtureRequest) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), request.param) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_what_is_not_trikv_is_not_believed(trikv: Trikv, stranger: str, tmp_path: Path) -> None:
    """Of a read there is then no answer (4), and the outcome of a change is unknown (6)."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "file").write_bytes(b"value")
    unanswered = [
        ("get", "k"), ("get", "k", "--json"), ("scan",), ("dump", tmp_path / "new"), ("status",), ("mode",),
        ("mode", "--plan", "sync"), ("workers",), ("workers", "plan"), ("workers", "drain", "--dry-run", "w"),
        ("events",), ("events", "--no-follow"), ("repair", "--dry-run"),
    ]  # fmt: skip
    unknown = [
        ("put", "k", "v"), ("put", "k", "v", "--json"), ("put", "k", "v", "--if-absent"), ("delete", "k"),
        ("load", files), ("mode", "sync"), ("workers", "drain", "w"), ("workers", "undrain", "w"),
        ("workers", "remove", "w"), ("repair",), ("recover", "--accept-loss"),
    ]  # fmt: skip
    for code, commands in ((4, unanswered), (6, unknown)):
        for words in commands:
            ended = trikv(*words, url=stranger)
            assert (ended.returncode, words) == (code, words), ended.stderr
            assert b"committed" not in ended.stdout
            assert len(ended.stderr.splitlines()) == 1
    from_load = json.loads(trikv("load", files, "--json", url=stranger).stdout)
    assert [name for name, _ in from_load["unknown"]] == ["file"]


@pytest.mark.parametrize("ending", ["?x=1", "/?", "#here", "/v1?a#b"])
def test_a_url_with_a_query_or_a_fragment_is_refused(trikv: Trikv, stranger: str, ending: str) -> None:
    for words in (("get", "k"), ("put", "k", "v")):
        ended = trikv(*words, "--url", stranger + ending)
        assert ended.returncode == 2
        assert b"query or a fragment" in ended.stderr


@pytest.mark.parametrize(
    "url", ["http://" + "a" * 70 + ".test", "http://[::1", "ftp://127.0.0.1", "http://", "http:/x"]
)
def test_a_url_of_nothing_is_one_line(trikv: Trikv, url: str) -> None:
    ended = trikv("get", "k", "--url", url)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr


def test_load_names_what_it_leaves_out(quiet_cluster: LocalCluster, trikv: Trikv, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "fine").write_bytes(EVERY_BYTE)
    (tmp_path / "huge").write_bytes(b"x" * (1024 * 1024 + 1))
    (tmp_path / "link").symlink_to("/etc/passwd")
    loaded = trikv("load", tmp_path, "--prefix", "load/", "--json", url=quiet_cluster.url)
    assert loaded.returncode == 1
    report = json.loads(loaded.stdout)
    assert (report["done"], [name for name, _ in report["skipped"]]) == (1, ["huge", "link"])
    with quiet_cluster.client() as client:
        assert [entry.key for entry in client.scan(b"load/")] == [b"load/sub/fine"]
    assert "huge" in trikv("load", tmp_path, "--prefix", "load/", url=quiet_cluster.url).stderr.decode()
    assert trikv("load", tmp_path / "nowhere", url=quiet_cluster.url).returncode == 1


def test_dump_writes_nothing_outside_its_directory(quiet_cluster: LocalCluster, trikv: Trikv, tmp_path: Path) -> None:
    bad = [b"../escape", b"/absolute", b"a/../../b", b"nul\0", b"dir/", b"link/through"]
    with quiet_cluster.client() as client:
        for name in (b"fine/file", *bad):
            client.put(b"dump/" + name, name)
    target = tmp_path / "inner" / "target"
    target.mkdir(parents=True)
    (target / "link").symlink_to(tmp_path)
    dumped = trikv("dump", target, "--prefix", "dump/", "--json", url=quiet_cluster.url)
    assert dumped.returncode == 1
    report = json.loads(dumped.stdout)
    assert report["done"] == 1
    assert sorted(name for name, _ in report["skipped"]) == sorted("dump/" + name.decode() for name in bad)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [target / "fine" / "file"]
    assert (target / "fine" / "file").read_bytes() == b"fine/file"


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may enter and read everything: be somebody else for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_load_takes_what_it_can_from_an_awkward_directory(quiet_cluster: LocalCluster, trikv: Trikv) -> None:
    with tempfile.TemporaryDirectory(prefix="trikv-") as name:  # whose parents anybody may enter
        source = Path(name)
        for directory, mode in (("entered", 0o755), ("listed", 0o744), ("shut", 0o700)):
            (source / directory).mkdir()
            (source / directory / "file").write_text("value")
            (source / directory).chmod(mode)
        (source / "locked").write_text("value")
        (source / "locked").chmod(0o000)
        (source / "loop").symlink_to("loop")
        (source / "up").symlink_to("..")
        os.mkfifo(source / "fifo")
        (source / "line\nend\x1b]0;title").write_text("odd")
        (source / "line\nend\x1b]0;title").chmod(0o000)
        source.chmod(0o755)
        if os.geteuid() != 0:
            (source / "listed").chmod(0o400)
            (source / "shut").chmod(0o000)
        with as_nobody():
            loaded = trikv("load", source, "--prefix", "awkward/", "--json", url=quiet_cluster.url)
            plain = trikv("load", source, "--prefix", "awkward/", url=quiet_cluster.url)
        for name in ("entered", "listed", "shut"):
            (source / name).chmod(0o700)
    report = json.loads(loaded.stdout)
    left_out = {"listed/file", "shut", "locked", "loop", "up", "fifo", "line\nend\x1b]0;title"}
    assert {name for name, _ in report["skipped"]} == left_out
    assert (report["done"], loaded.returncode, plain.returncode) == (1, 1, 1)
    assert len(plain.stderr.splitlines()) == len(left_out)
    assert b"\x1b" not in plain.stderr


def test_dump_harms_nothing_that_lies_in_its_way(quiet_cluster: LocalCluster, trikv: Trikv, tmp_path: Path) -> None:
    names = [b"fine", b"kept", b"loop/x", b"fifo", b"link", b"directory", b"file/x", b"\x1b]0;t\x07\nskipped: x/../y"]
    with quiet_cluster.client() as client:
        for name in (*names, b"x" * 300):
            client.put(b"ways/" + name, b"new")
    target = tmp_path / "target"
    (target / "directory").mkdir(parents=True)
    (target / "loop").symlink_to("loop")
    (tmp_path / "precious").write_text("precious")
    (target / "link").symlink_to(tmp_path / "precious")
    os.mkfifo(target / "fifo")
    (target / "file").write_text("old")
    (target / "kept").write_text("old")
    (target / "kept").chmod(0o640)
    dumped = trikv("dump", target, "--prefix", "ways/", url=quiet_cluster.url)
    assert (dumped.returncode, len(dumped.stderr.splitlines())) == (1, 7), dumped.stderr
    assert b"\x1b" not in dumped.stderr
    assert b"2 files written" in dumped.stdout
    assert [(target / name).read_text() for name in ("fine", "kept", "file")] == ["new", "new", "old"]
    assert (target / "kept").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "precious").read_text() == "precious"
    assert {entry.name for entry in target.iterdir()} == {"fine", "kept", "file", "loop", "link", "fifo", "directory"}


def test_dump_leaves_a_file_whole_where_there_is_no_room_for_another(
    quiet_cluster: LocalCluster, tmp_path: Path
) -> None:
    with quiet_cluster.client() as client:
        client.put(b"room/1", b"A" * 40_000)
        client.put(b"room/2", b"B")
    (tmp_path / "1").write_text("what was there")
    # The limit of a file's size stands in for a full disk: both end a write in its middle.
    code = "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    code += "from trikv.cli.main import main; main()"
    dumped = subprocess.run(
        [sys.executable, "-c", code, "dump", tmp_path, "--prefix", "room/", "--url", quiet_cluster.url],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert dumped.returncode == 1
    assert dumped.stderr.startswith(b"skipped: room/1: File too large"), dumped.stderr
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"1": "what was there", "2": "B"}


def test_a_client_command_does_not_load_the_web_framework() -> None:
    script = "import sys, trikv.cli.main, trikv.client; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert not {"quart", "hypercorn", "trio", "rocksdict"} & set(loaded.stdout.split())
