"""The log of real processes, for programs and for people: on each line the node, and of a request its id and epoch."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from trikv.testing.processes.cluster import LocalCluster, NodeFailed, NodeProcess, wait_until

DEADLINE_S = 60.0

# A mode whose write always fails, in an ordinary package. It says so through `logging`, and through structlog.
STRATEGY = """
import logging
import structlog
from trikv.api import Promise, Strategy, hookimpl

class Failing(Strategy):
    name = "failing"
    promise = Promise.AP
    gives_up = use_when = protocol = "Everything."
    def copies(self, n): return 1
    async def write(self, write, replicas):
        logging.getLogger("failing").warning("about to write %s", write.key)
        structlog.get_logger("failing").warning("about to fail", key=write.key.decode())
        raise RuntimeError("as it must\\x1b[2J")
    async def read(self, key, replicas):
        return None

@hookimpl
def trikv_strategies():
    return [Failing()]
"""


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    package = tmp_path / "site"
    (package / "failing-1.dist-info").mkdir(parents=True)
    (package / "failing.py").write_text(STRATEGY)
    (package / "failing-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1\n")
    (package / "failing-1.dist-info" / "entry_points.txt").write_text("[trikv]\nfailing = failing\n")
    monkeypatch.setenv("PYTHONPATH", f"{package}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with LocalCluster(mode="failing", workers=1, replicas=1, directory=tmp_path / "data", min_copies=1) as running:
        yield running


def objects(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_each_line_has_its_node_and_that_of_a_request_its_id_and_epoch(failing: LocalCluster) -> None:
    answer = httpx.put(f"{failing.url}/v1/kv/key", content=b"v", headers={"X-Request-Id": "mine-1"}, trust_env=False)
    assert answer.status_code == 503
    assert answer.headers["x-request-id"] == "mine-1"
    log = failing.master.log
    wait_until(lambda: sum("mine-1" in line for line in log.read_text().splitlines()) == 3, what="three lines")
    with failing.client() as client:
        state = client.cluster()
    lines = objects(log)
    of_request = [line for line in lines if line.get("request") == "mine-1"]
    assert [line["event"] for line in of_request] == [
        "about to write b'key'", "about to fail", "strategy failing failed in write",
    ]  # fmt: skip
    assert {line["epoch"] for line in of_request} == {"1.1"}
    assert of_request[1]["key"] == "key"
    assert of_request[2]["exception"].splitlines()[-1] == r"RuntimeError: as it must\x1b[2J"
    for line in lines:
        assert line.items() >= {"role": "master", "node": state["cluster"], "term": 1}.items(), line
    worker = failing.workers[0]
    failing.stop()
    lines = objects(worker.log)
    assert any("enlisted with the master" in line["event"] for line in lines)
    assert all(line.items() >= {"role": "worker", "node": worker.id}.items() for line in lines)
    assert lines[-1]["term"] == 1
    assert "request" not in lines[-1]


@pytest.mark.parametrize(
    "given",
    ["", "x" * 129, "two words", "an,comma and more", "é", "\x7f"],
)
def test_an_id_that_is_none_is_replaced(quiet_cluster: LocalCluster, given: str) -> None:
    ids = set()
    for _ in range(2):
        answer = httpx.get(
            f"{quiet_cluster.url}/livez", headers=[(b"X-Request-Id", given.encode("latin-1"))], trust_env=False
        )
        assert answer.status_code == 200
        ids.add(answer.headers["x-request-id"])
    assert len(ids) == 2
    assert all(re.fullmatch(r"[0-9a-f]{8}-\d+", each) for each in ids)


@pytest.mark.parametrize(
    ("path", "status"), [("/nope", 404), ("/", 200), ("/v1/kv/absent", 404), ("/static/nope", 404)]
)
def test_every_answer_names_its_request(quiet_cluster: LocalCluster, path: str, status: int) -> None:
    answer = httpx.get(quiet_cluster.url + path, headers={"X-Request-Id": "a/b:c.1"}, trust_env=False)
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "a/b:c.1")
    foreign = httpx.get(quiet_cluster.url + path, headers={"Origin": "http://evil.example"}, trust_env=False)
    assert foreign.status_code == 403
    assert foreign.headers["x-request-id"]


def worker_words(directory: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "trikv", "worker", "0", "--master", "none", "--data-dir", str(directory),
        "--config", os.devnull, *more,
    ]  # fmt: skip


def on_a_terminal(words: list[str], environ: dict[str, str], until: str) -> str:
    """What a process writes to a terminal until that is there and it has been told to stop."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(words, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs, env=environ)
    os.close(theirs)
    told = b""
    deadline = time.monotonic() + DEADLINE_S
    try:
        while time.monotonic() < deadline:
            ready, _, _ = select.select([ours], [], [], 0.1)
            if ready:
                try:
                    told += os.read(ours, 65_536)
                except OSError:  # its end is closed
                    break
            elif until.encode() in told:
                process.send_signal(signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return told.decode()


def test_on_a_terminal_lines_are_for_people(tmp_path: Path) -> None:
    (tmp_path / "trikv.toml").write_text("")
    plain = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "TRIKV_CONFIG": ""}
    with NodeDir(tmp_path):
        words = [word for word in worker_words(tmp_path / "data") if word not in ("--config", os.devnull)]
        told = on_a_terminal(words, plain, "settings are taken from")
    line = next(line for line in told.splitlines() if "settings are taken from" in line)
    assert "role=worker" in line
    assert "{" not in line
    assert "\x1b" not in told
    failed = on_a_terminal(worker_words(tmp_path / "data", "--storage", "nope"), plain, "\n")
    assert failed.splitlines()[-1].startswith("error: ")


class NodeDir:
    """A working directory for a while."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._before = Path.cwd()

    def __enter__(self) -> None:
        os.chdir(self._directory)

    def __exit__(self, *_: object) -> None:
        os.chdir(self._before)


@pytest.mark.parametrize("style", ["console", "json", "auto"])
def test_why_a_child_did_not_start_is_told_in_either_style(tmp_path: Path, style: str) -> None:
    def command(node: NodeProcess) -> list[str]:
        return ["worker", "0", "--storage", "nope", "--log", style, "--data-dir", str(tmp_path / "data")]

    node = NodeProcess("worker-1", command, log=tmp_path / "worker.log")
    with pytest.raises(NodeFailed, match=r"^worker-1 did not start \(exit code 2\): 'nope' is no installed"):
        node.start()
    assert node.log.read_text().startswith("{") == (style != "console")


def test_another_style_is_a_usage_error(tmp_path: Path) -> None:
    ended = subprocess.run(
        worker_words(tmp_path / "data", "--log", "xml"), capture_output=True, text=True, check=False, timeout=DEADLINE_S
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --log: 'xml' is none of auto, console, json")
