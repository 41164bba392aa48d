"""Load by wrk on a cluster, and what it cost there: the rate, the latency, and the processor time of each role.

wrk is a closed loop: each connection sends its next request when the last was answered. Its script reads the keys from
a file and goes round it, so the same seed asks for the same keys in the same order. The processor time of wrk itself is
measured too (role `wrk`): it has one thread, and where that is busy all the time, wrk is the limit and not the cluster.
"""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Final

from bench.common import cpu_s_of, idle_s_of_machine
from trikv.testing.processes.cluster import LocalCluster
from trikv.testing.processes.connection import make_request

DRAWN: Final = 50_000  # keys in a file, which wrk's script goes round
INSTALL_WRK: Final = "wrk, which sends the load: apt-get install wrk"
OTHERS_MOST_CORES: Final = 0.3  # taken by other programs: beyond it, rates say nothing
_IS_BUSY: Final = 0.9  # of a core: a process with one busy thread that takes so much is what limits the rate
_IS_FULL: Final = 0.15  # idle cores

# wrk's script: it reads the targets of its requests from a file, one a line, and ends with one line of figures.
_SCRIPT: Final = """
local targets, n = {}, %(first)d
for line in io.lines("%(file)s") do targets[#targets + 1] = line end
%(setup)s
request = function()
  n = n %% #targets + 1
  return wrk.format("%(method)s", %(path)s, nil, %(body)s)
end
done = function(summary, latency, requests)
  local errors = summary.errors
  print(string.format("FIGURES %%d %%d %%d %%.1f %%.1f %%.1f", summary.requests, summary.duration,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"""
_FIGURES: Final = re.compile(r"FIGURES (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+) ([\d.]+)")


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one server under one load. Processor time is for one request, in microseconds, by role; `wrk` is one.

    `others_cores`: how many cores were taken by what is not of this run; `idle_cores`: by nothing.
    """

    rate: float
    failures: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    cpu_us: Mapping[str, float]
    others_cores: float
    idle_cores: float

    def cores(self, role: str) -> float:
        """How many cores the role took."""
        return self.cpu_us[role] * self.rate / 1e6

    @property
    def limit(self) -> str:
        """What was busy all the time; empty if nothing was."""
        for role in ("wrk", "master"):  # each has one busy thread
            if role in self.cpu_us and self.cores(role) > _IS_BUSY:
                return role
        if self.idle_cores > _IS_FULL:
            return ""
        return "others" if self.others_cores > OTHERS_MOST_CORES else "cores"


def tell_cpu(rounds: Sequence[Measured]) -> str:
    """The processor time of each role for one request, with the cores that it took; then those of other programs."""
    told = [
        f"{role} {median(one.cpu_us[role] for one in rounds):.0f} ({median(one.cores(role) for one in rounds):.2f})"
        for role in rounds[0].cpu_us
    ]
    return ", ".join([*told, f"others ({median(one.others_cores for one in rounds):.2f})"])


class Server(ABC):
    """A cluster that runs. `pids`: its processes, by role."""

    name: str
    port: int
    pids: Mapping[str, Sequence[int]]

    @abstractmethod
    def script(self, what: str, file: Path, first: int, value_bytes: int) -> str:
        """wrk's script for puts or gets of the keys in a file, from the one with that number on."""

    @abstractmethod
    def put_request(self, key: str, value_bytes: int) -> bytes:
        """The same put as one request, for a load that is not wrk's."""

    def _spell(
        self, file: Path, first: int, path: str, *, method: str = "GET", body: str = "nil", setup: str = ""
    ) -> str:
        """The script. `path` and `body` are Lua; `setup` runs once."""
        return _SCRIPT % {
            "file": file, "first": first, "setup": setup, "method": method, "path": path, "body": body
        }  # fmt: skip


class PlainServer(Server):
    """One with `/put` and `/get`: trikv, and the Go baseline."""

    def __init__(self, name: str, port: int, pids: Mapping[str, Sequence[int]]) -> None:
        self.name, self.port, self.pids = name, port, pids

    def script(self, what: str, file: Path, first: int, value_bytes: int) -> str:
        rest = f' .. "&value={"x" * value_bytes}"' if what == "put" else ""
        return self._spell(file, first, f'"/{what}?key=" .. targets[n]{rest}')

    def put_request(self, key: str, value_bytes: int) -> bytes:
        return make_request("GET", f"/put?key={key}&value={'x' * value_bytes}")


class KeyServer(PlainServer):
    """trikv by its own API, whose values may be large: they are bodies."""

    def script(self, what: str, file: Path, first: int, value_bytes: int) -> str:
        path = '"/v1/kv/" .. targets[n]'
        if what == "get":
            return self._spell(file, first, path)
        return self._spell(
            file, first, path, method="PUT", body="value", setup=f'local value = string.rep("x", {value_bytes})'
        )


def pids_of(cluster: LocalCluster) -> dict[str, list[int]]:
    """By role."""
    return {"master": [cluster.master.pid], "workers": [node.pid for node in cluster.workers]}


def spell_key(number: int) -> str:
    """All have as many letters as base64 wants."""
    return f"key{number:09d}"


def draw_keys(skew: str, keys: int, seed: int) -> list[str]:
    """Keys in the order in which they are asked for. `skew`: uniform, or zipf1.2 for Zipf's law with that exponent."""
    dice = random.Random(seed)
    if skew == "uniform":
        drawn = [dice.randrange(keys) for _ in range(DRAWN)]
    else:
        weights = list(accumulate(1 / (rank + 1) ** float(skew.removeprefix("zipf")) for rank in range(keys)))
        drawn = dice.choices(range(keys), cum_weights=weights, k=DRAWN)
    return [spell_key(number) for number in drawn]


def check_wrk() -> None:
    if shutil.which("wrk") is None:
        raise SystemExit(f"error: this run needs {INSTALL_WRK}")


def run_wrk(server: Server, script: str, connections: int, seconds: float) -> Measured:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        before, idle_s, began_s = _cpu_s(server), idle_s_of_machine(), time.perf_counter()
        ended = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "-s", file.name, f"http://127.0.0.1:{server.port}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        took_s = time.perf_counter() - began_s
        after, idle_cores = _cpu_s(server), (idle_s_of_machine() - idle_s) / took_s
    found = _FIGURES.search(ended.stdout)
    if found is None:
        raise SystemExit(f"error: wrk told no figures: {ended.stdout}{ended.stderr}")
    requests, took_us, failures = (int(found[i]) for i in (1, 2, 3))
    p50_us, p99_us, p999_us = (float(found[i]) for i in (4, 5, 6))
    if not requests:
        raise SystemExit(
            f"error: {server.name} answered nothing to {connections} connections in {seconds:g} s "
            f"({failures} failed); its processes are {dict(server.pids)}. If they run, give them longer: --seconds"
        )
    spent_s = {role: after[role] - before[role] for role in after}
    cpu_us = {role: round(1e6 * role_s / requests, 1) for role, role_s in spent_s.items()}
    others_cores = max(0.0, (os.cpu_count() or 1) - idle_cores - sum(spent_s.values()) / took_s)
    return Measured(
        requests / took_us * 1e6, failures, p50_us / 1e3, p99_us / 1e3, p999_us / 1e3, cpu_us,
        round(others_cores, 2), round(idle_cores, 2),
    )  # fmt: skip


def _cpu_s(server: Server) -> dict[str, float]:
    own = resource.getrusage(resource.RUSAGE_CHILDREN)  # of children that have ended: wrk, since the cluster's run on
    cluster = {role: sum(map(cpu_s_of, pids)) for role, pids in server.pids.items()}
    return {**cluster, "wrk": own.ru_utime + own.ru_stime}
