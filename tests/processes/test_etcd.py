"""The etcd that tests and demos start: it serves, comes back with what it had, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes_of import is_alive
from trikv.testing.processes.etcd import EtcdCluster, EtcdFailed, etcd_missing
from trikv.testing.processes.process import wait_until

KEY = {"key": "YQ=="}

needs_etcd = pytest.mark.skipif(etcd_missing() is not None, reason=etcd_missing() or "")

START_AND_WAIT = """
import sys
from pathlib import Path
from trikv.testing.processes.etcd import EtcdCluster

with EtcdCluster(Path(sys.argv[1])) as etcd:
    etcd.pause()
    print(etcd.members[0].pid, flush=True)
    sys.stdin.read()
"""


@needs_etcd
def test_three_members_serve_and_a_killed_one_comes_back_with_what_it_had(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path, members=3, prefix="mine") as etcd:
        assert etcd.url == f"etcd://{','.join(member.address for member in etcd.members)}/mine"
        leading = etcd.leading
        leading.call("/v3/kv/put", {**KEY, "value": "Yg=="})
        leading.kill()
        assert not leading.running
        assert etcd.leading is not leading
        leading.start()
        etcd.await_healthy()
        assert leading.call("/v3/kv/range", KEY)["kvs"][0]["value"] == "Yg=="
        pids = [member.pid for member in etcd.members]
    assert not any(map(is_alive, pids))


@needs_etcd
def test_it_ends_with_the_process_that_started_it_even_if_that_is_killed_and_it_is_stopped(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", START_AND_WAIT, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_alive(pid)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), what="the end of etcd")


def test_where_there_is_no_etcd_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EtcdFailed, match=r"^etcd is not installed: install the system's package \(.*etcd-server\)$"):
        EtcdCluster(tmp_path).start()
