"""`trikv master`, `trikv worker` and `trikv demo`: the commands that run nodes.

The roles as processes are in `daemon.py`, their settings in `config.py`, the demo in `demo.py`. Each command imports
what it needs by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
Settings = TypeVar("Settings")


def node_options(command: Command) -> Command:
    """The options of both roles. They have no default here: a flag wins over a variable, a variable over the file."""
    for option in (
        click.option("--exit-with-stdin", is_flag=True, default=None, hidden=True),
        click.option(
            "--config", type=click.Path(path_type=Path), help="Settings in TOML. Default: ./trikv.toml, if any."
        ),
        click.option(
            "--log",
            metavar="STYLE",
            help="Log lines for people (console) or programs (json). Default: console on a terminal, else json.",
        ),
        click.option("--insecure", is_flag=True, default=None, help="Allow an address that other machines can reach."),
        click.option("--data-dir", metavar="DIR", help="Where its data lies. Default: below ./trikv-data."),
        click.option("--host", help="The address to listen on. Default: 127.0.0.1."),
    ):
        command = option(command)
    return command


def _settings(
    read: Callable[[Mapping[str, object], Mapping[str, str], Path | None], Settings],
    flags: Mapping[str, object],
    config: Path | None,
) -> Settings:
    from trikv.config import SettingsError

    try:
        return read(flags, os.environ, config)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None


@click.command()
@click.argument("port", required=False)
@click.argument("workers", metavar="[WORKER...]", nargs=-1)
@click.option("--mode", help="The mode that the cluster is founded with. Default: quorum.")
@click.option("--replicas", metavar="N", help="Copies of each key that it is founded with. Default: 3.")
@click.option("--http", metavar="HOST:PORT", help="Where HTTP is served. Default: 127.0.0.1:8080.")
@click.option("--timeout", "timeout_s", metavar="SECONDS", help="The deadline of every request. Default: 2.")
@click.option(
    "--down-after", "down_after_s", metavar="SECONDS", help="Silence after which a worker is replaced. Default: 5."
)
@click.option(
    "--settle-rate", "settle_rate_mb", metavar="MB", help="Data moved per second at most, to heal. Default: 16."
)
@click.option("--start-workers", metavar="N", help="Start so many workers, which end with the master.")
@click.option("--worker-port", metavar="PORT", help="Where the first of them listens. Default: any free port.")
@click.option("--autoscale", metavar="MIN..MAX", help="Start and stop workers by load, within these numbers.")
@click.option("--max-load", metavar="N", help="Scale up before a worker has more requests a second than that.")
@click.option("--max-keys", metavar="N", help="Scale up before a worker holds more keys than that.")
@click.option("--provisioner", metavar="NAME", help="What starts workers. Default: local, processes of this machine.")
@click.option("--worker-storage", metavar="ENGINE", help="The storage engine of workers it starts. Default: rocksdb.")
@click.option("--probe", is_flag=True, default=None, help="Measure all the time whether the mode keeps its promise.")
@click.option("--break-it", is_flag=True, default=None, help="Allow faults to be injected (see trikv break).")
@click.option(
    "--config-store",
    metavar="URL",
    help="Be one of several masters that share an etcd: etcd://HOST:PORT[,HOST:PORT...][/PREFIX].",
)
@click.option("--config-store-ca", metavar="FILE", help="With etcds://: the certificates that etcd's is checked by.")
@click.option("--config-store-cert", metavar="FILE", help="With etcds://: this master's certificate for etcd.")
@click.option("--config-store-key", metavar="FILE", help="With etcds://: the key of that certificate.")
@click.option(
    "--lease", "lease_s", metavar="SECONDS", help="Silence after which another master takes the lead. Default: 3."
)
@click.option("--advertise", metavar="HOST:PORT", help="Where other masters and workers reach it, if not at --host.")
@click.option("--advertise-http", metavar="HOST:PORT", help="Where clients reach it, if not at --http.")
@click.option("--min-copies", metavar="N", help="Never go on with fewer replicas of a key than N. Default: 2.")
@node_options
def master(config: Path | None, **flags: Any) -> None:
    """Run the master on PORT (default 8000), and enlist each WORKER, an address like localhost:8001.

    A cluster that was founded with other --mode or --replicas, or switched since, goes on with its own.

    Every setting may also come from a variable (TRIKV_MASTER_MODE=chain) or from the file.
    """
    from trikv.config import master_settings
    from trikv.daemon import run_master

    click.get_current_context().exit(run_master(_settings(master_settings, flags, config)))


@click.command()
@click.argument("port", required=False)
@click.option(
    "--master",
    metavar="HOST:PORT[,...]",
    help="The masters, one of which leads and enlists it; or none. Default: 127.0.0.1:8000.",
)
@click.option("--storage", metavar="ENGINE", help="The storage engine (see trikv plugins). Default: rocksdb.")
@click.option("--max-keys", metavar="N", help="Take no further keys beyond so many.")
@click.option(
    "--label",
    "labels",
    metavar="NAME=VALUE",
    multiple=True,
    help="What strategies tell workers by; replicas are spread over the values of zone. May be repeated.",
)
@click.option("--metrics", metavar="HOST:PORT", help="Serve GET /metrics there, for Prometheus. Default: nowhere.")
@node_options
def worker(config: Path | None, **flags: Any) -> None:
    """Run a worker on PORT.

    Every setting may also come from a variable (TRIKV_WORKER_STORAGE=memory) or from the file.
    """
    from trikv.config import worker_settings
    from trikv.daemon import run_worker

    click.get_current_context().exit(run_worker(_settings(worker_settings, flags, config)))


@click.command()
@click.option("--mode", help="The mode of the cluster, when it is founded. Default: quorum.")
@click.option("--workers", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--masters",
    type=click.IntRange(min=1, max=9),
    default=1,
    show_default=True,
    help="Several masters share an etcd, which is started too.",
)
@click.option("--storage", default="rocksdb", show_default=True, help="The workers' storage engine.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Keep data and logs there. Default: nothing is kept.")
@click.option("--http", default="127.0.0.1:8080", show_default=True, help="Where the page is: a loopback address.")
@click.option("--once", is_flag=True, help="The guided tour: kill a worker, see whether the mode keeps its promise.")
def demo(
    mode: str | None, workers: int, masters: int, storage: str, data_dir: Path | None, http: str, once: bool
) -> None:
    """Run a whole cluster in one terminal; Ctrl-C stops it and leaves nothing behind."""
    from trikv.cli.demo import run_demo, run_tour

    if once and masters > 1:
        raise click.UsageError("--once is the tour of a worker's death, with one master; leave --masters out")
    if once:
        code = run_tour(mode=mode or "quorum", workers=workers, storage=storage, data_dir=data_dir)
    else:
        code = run_demo(
            mode=mode, workers=workers, storage=storage, data_dir=data_dir, http_port=_port(http), masters=masters
        )
    click.get_current_context().exit(code)


def _port(address: str) -> int:
    """The port of a loopback address; the demo serves on no other."""
    host, _, port = address.rpartition(":")
    if host not in ("", "127.0.0.1", "localhost") or not port.isdecimal() or int(port) > 65_535:
        raise click.UsageError(f"--http {address}: the demo's page is on loopback; give 127.0.0.1:PORT or PORT")
    return int(port)
