"""Standard streams that are closed or full, and settings that a node cannot use: one line, and the right exit code."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trikv.core.text import last_words
from trikv.testing.processes.cluster import LocalCluster, wait_until

DEADLINE_S = 60.0


def shell(line: str, url: str = "", **environ: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a line of the shell in which $T is the command."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRIKV_")}
    return subprocess.run(
        ["bash", "-c", f"T='{sys.executable} -m trikv'; {line}"],
        capture_output=True, timeout=DEADLINE_S, check=False,
        env={**clean, **environ, **({"TRIKV_URL": url} if url else {})},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        ("$T get streams/k >&-", 1, b"standard output cannot be written"),
        ("$T get streams/k >/dev/full", 1, b"standard output cannot be written: No space left on device"),
        ("$T status >/dev/full", 1, b"standard output cannot be written"),
        ("$T scan streams/ >&-", 1, b"standard output cannot be written"),
        ("$T --help >/dev/full", 1, b"standard output cannot be written"),
        ("$T put streams/w v >/dev/full", 0, b"done, and standard output cannot be written"),
        ("$T put streams/w v >&-", 0, b"done, and standard output cannot be written"),
        ("$T delete streams/none --json >/dev/full", 0, b"done, and standard output cannot be written"),
        ("$T put streams/w - <&-", 1, b"standard input cannot be read"),
        ("$T get streams/none 2>/dev/full", 3, None),
        ("$T get streams/none 2>&-", 3, None),
        ("$T put streams/k v --if-absent --json 2>/dev/full", 5, None),
        ("$T get streams/k --timeout x 2>/dev/full", 2, None),
        ("$T put streams/w v >/dev/full 2>/dev/full", 0, None),
        ("$T put streams/w v <&- >&- 2>&-", 0, None),
    ],
)
def test_the_exit_code_is_the_outcomes(quiet_cluster: LocalCluster, line: str, code: int, told: bytes | None) -> None:
    with quiet_cluster.client() as client:
        client.put(b"streams/k", b"hello")
    ended = shell(line, quiet_cluster.url)
    assert ended.returncode == code, ended
    if told is None:
        assert ended.stderr == b""
    else:
        assert told in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def test_a_reader_that_has_left_takes_no_outcome_back(quiet_cluster: LocalCluster) -> None:
    ended = shell("$T put streams/w v | true; exit ${PIPESTATUS[0]}", quiet_cluster.url)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("streams", [">/dev/full 2>&1", ">&- 2>&-", "<&- >/dev/full"])
def test_a_node_serves_whatever_becomes_of_its_streams(tmp_path: Path, streams: str) -> None:
    command = f"exec {sys.executable} -m trikv worker 0 --master none --data-dir {tmp_path}/data {streams}"
    with subprocess.Popen(["bash", "-c", command], stderr=subprocess.PIPE) as node:
        try:
            wait_until(lambda: (tmp_path / "data" / "records").exists() or node.poll() is not None, what="it is open")
            wait_until(lambda: _handles_sigterm(node.pid) or node.poll() is not None, what="it serves")
            assert node.poll() is None
        finally:
            node.send_signal(signal.SIGTERM)
        assert node.wait(timeout=DEADLINE_S) == 0


def _handles_sigterm(pid: int) -> bool:
    """proc(5): the signals that it catches, as a mask."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) & 1 << (signal.SIGTERM - 1))


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("worker", "0", "--master", "none", "--data-dir", "~nosuchuser/x"), 2, b"--data-dir: '~nosuchuser/x'"),
        (("worker", "0", "--master", "none", "--data-dir", b"\xff"), 2, b"is not UTF-8"),
        (
            ("worker", "0", "--host", "nosuch.invalid", "--insecure", "--storage", "memory"),
            1,
            b"'nosuch.invalid' cannot be resolved",
        ),
        (("worker", "0", "--host", "a" * 70 + ".test", "--insecure", "--storage", "memory"), 1, b"cannot be resolved"),
        (("master", "0", "--http", "nosuch.invalid:0", "--insecure"), 1, b"'nosuch.invalid' cannot be resolved"),
    ],
)
def test_what_a_node_cannot_use_is_one_line(
    tmp_path: Path, words: tuple[str | bytes, ...], code: int, told: bytes
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "trikv", *words], capture_output=True, timeout=DEADLINE_S, check=False, cwd=tmp_path
    )
    assert ended.returncode == code, ended
    assert told in ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr


def test_the_first_line_of_the_log_names_a_file_that_nobody_named(tmp_path: Path) -> None:
    (tmp_path / "trikv.toml").write_text("[master]\nhttp = '127.0.0.1:0'\nport = 0\n")
    service = {"TRIKV_MASTER_PORT": "tcp://10.0.0.1:8000", "TRIKV_MASTER_SERVICE_HOST": "10.0.0.1"}
    with subprocess.Popen(
        [sys.executable, "-m", "trikv", "master", "--mode", "nope"],
        stderr=subprocess.PIPE, cwd=tmp_path, env={**os.environ, **service},
    ) as node:  # fmt: skip
        _, told = node.communicate(timeout=DEADLINE_S)
    lines = told.decode().splitlines()
    assert str(tmp_path / "trikv.toml") in lines[0]
    assert "TRIKV_MASTER_PORT, TRIKV_MASTER_SERVICE_HOST" in lines[1]
    assert "nope" in last_words(lines[2])
