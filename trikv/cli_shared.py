"""What the commands share that talk to a cluster: their options, the connection, JSON.

A group may have these options too; what is said there holds for its commands: `trikv workers --url URL drain ID`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from trikv.client import Client

DEFAULT_URL: Final = "http://127.0.0.1:8080"
AS_JSON: Final = "trikv.as_json"  # where a context remembers --json, for the error that may come
_URL: Final = "trikv.url"

Command = TypeVar("Command", bound=Callable[..., Any])


def cluster_options(command: Command) -> Command:
    """What every command has that talks to a cluster: --url and --json."""

    def keep_json(ctx: click.Context, _parameter: click.Parameter, value: bool) -> bool:
        ctx.meta[AS_JSON] = ctx.meta.get(AS_JSON, False) or value
        return bool(ctx.meta[AS_JSON])

    def keep_url(ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
        if ctx.get_parameter_source("url") is ParameterSource.COMMANDLINE:
            ctx.meta[_URL] = value
        return str(ctx.meta.get(_URL, value))

    for option in (
        click.option("--json", "as_json", is_flag=True, callback=keep_json, help="Answer in JSON, for programs."),
        click.option(
            "--url", envvar="TRIKV_URL", default=DEFAULT_URL, callback=keep_url, show_default=True, show_envvar=True,
            help="The master's HTTP address.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def client_options(command: Command) -> Command:
    """What those have besides that ask for keys: --timeout."""
    return cluster_options(
        click.option(
            "--timeout", "timeout_s", type=click.FloatRange(min=0.001, max=60), metavar="SECONDS",
            help="How long the cluster may take. Default: as its master was told, 2 s.",
        )(command)
    )  # fmt: skip


def connect(url: str, timeout_s: float | None = None) -> Client:
    from trikv.client import Client

    return Client(url, timeout_s=timeout_s)


def print_json(document: object) -> None:
    click.echo(json.dumps(document))
