"""Runs every query of `grafana.json` in a real Prometheus, against a cluster under load that has faults.

    apt-get download prometheus && dpkg -x prometheus_*.deb DIRECTORY
    python bench/grafana.py --prometheus DIRECTORY/usr/bin/prometheus

The cluster has three workers on disk; the master scales and probes, so that the metrics of that are there. Under load a
worker is killed and comes back, a write is refused, and the mode is switched. Prometheus scrapes every second. At the
end each query is asked for the whole time. A query that fails, or has no series, is an error; exit code 1.

`--keep DIRECTORY` leaves Prometheus' data and configuration there, for a Grafana to look at. Left out: Grafana itself.
Its JSON is checked by `tests/e2e/test_grafana.py` as far as queries and places go.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from bench.common import free_port
from trikv.core.errors import TrikvError
from trikv.testing.processes.cluster import LocalCluster, wait_until

DASHBOARD: Final = Path(__file__).with_name("grafana.json")
RATE_INTERVAL: Final = "10s"  # what Grafana would put for $__rate_interval, with a scrape each second
STEP_S: Final = 1
SETTINGS: Final = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: trikv-master
    static_configs: [{{targets: ["{master}"]}}]
  - job_name: trikv-worker
    static_configs: [{{targets: [{workers}]}}]
"""


@contextmanager
def prometheus(program: str, cluster: LocalCluster, directory: Path) -> Iterator[str]:
    """Prometheus while it scrapes that cluster; its URL."""
    workers = ", ".join(f'"127.0.0.1:{node.http_port}"' for node in cluster.workers)
    settings = SETTINGS.format(master=f"127.0.0.1:{cluster.master.http_port}", workers=workers)
    file = directory / "prometheus.yml"
    file.write_text(settings)
    port = free_port()
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program, f"--config.file={file}", f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        nodes = 1 + len(cluster.workers)
        wait_until(lambda: scraped(url) == nodes, what="Prometheus scrapes all", deadline_s=60, every_s=0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def scraped(url: str) -> int:
    """How many nodes it has scraped. It begins some seconds after its start."""
    try:
        answer = httpx.get(f"{url}/api/v1/query", params={"query": "up == 1"}, trust_env=False)
        return len(answer.json()["data"]["result"]) if answer.status_code == 200 else 0
    except httpx.HTTPError:
        return 0


def load(cluster: LocalCluster, stop: threading.Event) -> None:
    """Writes, reads, deletes and scans, one after the other, whatever comes of them."""
    with cluster.client() as client:
        number = 0
        while not stop.is_set():
            number += 1
            key = b"bench/%d" % (number % 500)
            try:
                client.put(key, bytes(200))
                client.get(key)
                if number % 10 == 0:
                    client.delete(key)
                    list(client.scan(b"bench/", limit=20))
            except TrikvError:
                time.sleep(0.01)


def live_through_it(cluster: LocalCluster, seconds: float) -> None:
    """A life with load and faults."""
    stop = threading.Event()
    clients = [threading.Thread(target=load, args=(cluster, stop)) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        time.sleep(seconds / 3)
        cluster.workers[0].kill()
        httpx.put(f"{cluster.url}/v1/kv/k", content=b"v", headers={"If-Match": '"1.1-1.000000"'}, trust_env=False)
        time.sleep(seconds / 3)
        cluster.workers[0].start()
        cluster.await_up(cluster.workers)
        with cluster.client() as client_of_operator:
            client_of_operator.set_mode("chain")
        time.sleep(seconds / 3)
    finally:
        stop.set()
        for client in clients:
            client.join()


def ask(url: str, query: str, began_s: float, ended_s: float) -> tuple[int, str]:
    """How many series the query has over that time, and what is wrong with it."""
    query = query.replace("$__rate_interval", RATE_INTERVAL)
    parameters = {"query": query, "start": str(began_s), "end": str(ended_s), "step": str(STEP_S)}
    answer: dict[str, Any] = httpx.get(f"{url}/api/v1/query_range", params=parameters, trust_env=False).json()
    if answer["status"] != "success":
        return 0, str(answer.get("error"))
    series = len(answer["data"]["result"])
    return series, "" if series else "it has no series"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prometheus", default=shutil.which("prometheus"), help="the program")
    parser.add_argument("--seconds", type=float, default=45.0, help="of load")
    parser.add_argument("--keep", type=Path, help="a directory for what Prometheus has")
    options = parser.parse_args()
    if options.prometheus is None:
        print("error: there is no prometheus here; name it with --prometheus PATH", file=sys.stderr)
        return 2
    directory = options.keep or Path(tempfile.mkdtemp(prefix="trikv-prometheus-"))
    directory.mkdir(parents=True, exist_ok=True)
    master_options = ["--probe", "--autoscale", "3..3", "--max-load", "1e6"]
    failures = queries = 0
    with LocalCluster(
        workers=3, storage="rocksdb", master_options=master_options, metrics=True
    ) as cluster, prometheus(options.prometheus, cluster, directory) as url:  # fmt: skip
        began_s = time.time()
        live_through_it(cluster, options.seconds)
        for panel in json.loads(DASHBOARD.read_text())["panels"]:
            for target in panel.get("targets", ()):
                series, wrong = ask(url, target["expr"], began_s, time.time())
                queries += 1
                failures += bool(wrong)
                print(f"{series:5} series  {panel['title']}: {target['expr']}{'   ' + wrong.upper() if wrong else ''}")
    if options.keep is None:
        shutil.rmtree(directory)
    print(f"{queries} queries, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
