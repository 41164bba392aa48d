"""An etcd of one member or several as child processes of this one: for tests, demos and benchmarks.

    with EtcdCluster(directory, members=3) as etcd:
        etcd.url                                         etcd://127.0.0.1:...,127.0.0.1:...
        etcd.members[0].kill()                           SIGKILL; pause() is SIGSTOP, resume() wakes it
        etcd.members[0].start()                          the same ports, the same directory
        etcd.pause(); etcd.resume()                      all of them

It is the `etcd` of the system's packages, on loopback. `etcd_missing()` says in a sentence if there is none.

Nothing is left behind: a shell beside each member holds a pipe of this process, and kills the member once the pipe is
closed, which the system does if this process is killed outright. The directory is the caller's.

What it costs: about 0.3 s for one member and 0.6 s for three, which have to elect a leading one, and a few percent of a
core. What it leaves out: users, which a caller may set up by `EtcdMember.call`, and TLS between the members.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

from trikv.testing.processes.process import STOP_DEADLINE_S, wait_until

HEALTHY_DEADLINE_S: Final = 30.0
_TRIES: Final = 3  # a port that was free may be taken by the time etcd binds it


def etcd_missing() -> str | None:
    """None if etcd is installed."""
    if shutil.which("etcd") is None:
        return "etcd is not installed: install the system's package (Debian and Ubuntu: etcd-server)"
    return None


class EtcdFailed(RuntimeError):
    """etcd is not installed, or did not come up. One line."""


class EtcdCertificates(NamedTuple):
    """Files in PEM. `clients_ca`: what has to have signed the certificates of clients; None: they need none."""

    certificate: Path
    key: Path
    clients_ca: Path | None = None


class EtcdMember:
    """One process; it may die and come back with the same ports and directory."""

    def __init__(
        self,
        name: str,
        directory: Path,
        certificates: EtcdCertificates | None,
        command: Callable[[EtcdMember], Sequence[str]],
    ) -> None:
        self.name = name
        self.certificates = certificates
        self.directory = directory
        self.log = directory / f"{name}.log"
        self.port = 0
        self.peer_port = 0
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http{'' if self.certificates is None else 's'}://{self.address}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    def start(self) -> None:
        """Start the process. Whether the cluster is healthy is another question: `EtcdCluster.await_healthy`."""
        assert not self.running, f"{self.name} runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(self), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        guard = ["sh", "-c", f"read _; kill -KILL {self.pid} 2> /dev/null"]
        self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)

    def kill(self) -> None:
        """SIGKILL. Returns once it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM; SIGKILL after `STOP_DEADLINE_S`."""
        self.resume()
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: its connections stay open, and it answers nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def call(self, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = 2.0) -> dict[str, Any]:
        """Ask it by its JSON gateway: GET, or POST of a body.

        Raises:
          OSError, ValueError: it does not answer; the first has what it answered as an HTTP error.
        """
        data = None if body is None else json.dumps(body).encode()
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self.certificates is not None:
            trusting = ssl.create_default_context(cafile=self.certificates.certificate)
            trusting.check_hostname = False
            trusting.verify_mode = ssl.CERT_NONE
            trusting.load_cert_chain(self.certificates.certificate, self.certificates.key)
            handlers.append(urllib.request.HTTPSHandler(context=trusting))
        with urllib.request.build_opener(*handlers).open(f"{self.url}{path}", data, timeout_s) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    @property
    def healthy(self) -> bool:
        """Does it answer, and reach most of the members?"""
        with suppress(OSError, ValueError):
            return bool(self.call("/health").get("health") == "true")
        return False

    @property
    def is_leading(self) -> bool:
        """Does it lead the members, by its own account?"""
        with suppress(OSError, ValueError):
            status = self.call("/v3/maintenance/status", {})
            return bool(status.get("leader") == status["header"]["member_id"])
        return False

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        self._signal(number)
        if self._process is not None:
            try:
                self._process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_DEADLINE_S)
        if self._guard is not None:  # before another process can be given that pid
            self._guard.kill()
            self._guard.communicate()
            self._guard = None


class EtcdCluster:
    """Members that know each other, as a context manager, or between calls of `start` and `stop`.

    Args:
      directory: for data and logs, which stay.
      members: 1, 3 or 5.
      prefix: in `url`.
      arguments: more of them, for each member's command line.
      certificates: with them the members serve TLS.
    """

    def __init__(
        self,
        directory: Path,
        *,
        members: int = 1,
        prefix: str = "trikv",
        arguments: Sequence[str] = (),
        certificates: EtcdCertificates | None = None,
    ) -> None:
        self.prefix = prefix
        self._arguments = arguments
        names = [f"etcd-{n}" for n in range(1, members + 1)]
        self.members = [EtcdMember(name, directory, certificates, self._command) for name in names]

    @property
    def url(self) -> str:
        scheme = "etcd" if self.members[0].certificates is None else "etcds"
        return f"{scheme}://{','.join(member.address for member in self.members)}/{self.prefix}"

    @property
    def leading(self) -> EtcdMember:
        """The member that leads the others.

        Raises:
          TimeoutError: none does.
        """
        found = wait_until(
            lambda: [member for member in self.members if member.running and member.is_leading],
            what="a leading member of etcd",
        )
        return found[0]

    def start(self) -> EtcdCluster:
        """Start all members, and return once each serves.

        Raises:
          EtcdFailed: etcd is not installed, or a member ended.
        """
        if (missing := etcd_missing()) is not None:
            raise EtcdFailed(missing)
        for tries_left in reversed(range(_TRIES)):
            self._choose_ports()
            for member in self.members:
                member.start()
            try:
                self.await_healthy()
            except EtcdFailed:
                self.stop()
                if not tries_left or not any("address already in use" in m.log.read_text() for m in self.members):
                    raise
                for member in self.members:
                    shutil.rmtree(member.directory / member.name, ignore_errors=True)
            except BaseException:
                self.stop()
                raise
            else:
                break
        return self

    def await_healthy(self, deadline_s: float = HEALTHY_DEADLINE_S) -> None:
        """Wait until each member that runs serves.

        Raises:
          EtcdFailed: a member ended, or the time is over.
        """
        waiting = [member for member in self.members if member.running]

        def healthy() -> bool:
            for member in waiting:
                if not member.running:
                    raise EtcdFailed(f"{member.name} ended; see {member.log}")
            return all(member.healthy for member in waiting)

        try:
            wait_until(healthy, what="etcd's health", deadline_s=deadline_s)
        except TimeoutError as error:
            raise EtcdFailed(f"{error}; see {self.members[0].log}") from error

    def pause(self) -> None:
        for member in self.members:
            member.pause()

    def resume(self) -> None:
        for member in self.members:
            member.resume()

    def stop(self) -> None:
        """End all members. What they stored goes with their directory, so they need no time."""
        for member in self.members:
            member.kill()

    def __enter__(self) -> EtcdCluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _choose_ports(self) -> None:
        ports = iter(_free_ports(2 * len(self.members)))
        for member in self.members:
            member.port, member.peer_port = next(ports), next(ports)

    def _command(self, member: EtcdMember) -> list[str]:
        client, peer = member.url, f"http://127.0.0.1:{member.peer_port}"
        everyone = ",".join(f"{each.name}=http://127.0.0.1:{each.peer_port}" for each in self.members)
        tls: list[str] = []
        if (files := member.certificates) is not None:
            tls += ["--cert-file", str(files.certificate), "--key-file", str(files.key)]
            tls += (
                [] if files.clients_ca is None else ["--client-cert-auth", "--trusted-ca-file", str(files.clients_ca)]
            )
        return [
            "etcd", "--name", member.name, "--data-dir", str(member.directory / member.name),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", everyone,
            "--logger", "zap", *tls, *self._arguments,
        ]  # fmt: skip


def _free_ports(number: int) -> list[int]:
    """All at once, so that they are different."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
