"""`trikv config-store`: moving the cluster's document between the file of a single master and an etcd.

What is copied and what is refused is in `trikv/master/migrate.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from trikv.master.migrate import Copied, Place

_PATH = click.Path(path_type=Path)


@click.group("config-store")
def config_store() -> None:
    """The store of the cluster's document: a file of the one master, or an etcd that several share."""


@config_store.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--replace", is_flag=True, help="Replace an older document of the same cluster.")
@click.option("--config-store-ca", "ca", type=_PATH, metavar="FILE", help="What signed the certificate of etcd.")
@click.option("--config-store-cert", "certificate", type=_PATH, metavar="FILE", help="The certificate for etcd.")
@click.option("--config-store-key", "key", type=_PATH, metavar="FILE", help="Its key.")
def copy(
    source: str,
    target: str,
    replace: bool,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
) -> None:
    """Copy the cluster's document, while no master runs.

    FROM and TO are a master's data directory, its cluster.sqlite, or an etcd:
    etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...][/PREFIX]. The password may also be in the variable
    TRIKV_CONFIG_STORE_PASSWORD.

    TO must be empty, or hold an older document of the same cluster (--replace). FROM stays as it is; afterwards start
    masters on TO alone.
    """
    import trio

    from trikv.master.migrate import copy_document
    from trikv.net.etcdurl import PASSWORD_VARIABLE, is_etcd_url, parse_config_store

    def place(text: str, name: str) -> Place:
        if not is_etcd_url(text):
            return Path(text)
        tls = {"ca": ca, "certificate": certificate, "key": key} if text.startswith("etcds:") else {}
        try:
            return parse_config_store(text, password=os.environ.get(PASSWORD_VARIABLE), **tls)
        except ValueError as error:
            raise click.UsageError(f"{name}: {error}") from None

    places = place(source, "FROM"), place(target, "TO")
    if (ca or certificate or key) and not any(text.startswith("etcds:") for text in (source, target)):
        raise click.UsageError("certificates are for TLS; write etcds:// in place of etcd://, or leave them out")

    async def run() -> Copied:
        return await copy_document(*places, replace=replace)

    cluster, was_there = trio.run(run)
    what = f"cluster {cluster.cluster} (term {cluster.term}, {len(cluster.workers)} workers)"
    then = f"start masters on {places[1]} alone, not on {places[0]} any more"
    click.echo(f"{places[1]} holds {what} already; {then}" if was_there else f"copied {what} to {places[1]}; {then}")
