"""What commands share: the options and the connection of commands that talk to a cluster, JSON, standard streams.

A group may have these options too, and they then hold for its commands: `trikv workers --url URL drain ID`.

*Standard streams* may be closed, or refuse what is written (a full disk, a reader that has left). The outcome of a
write stays the same then, and so does its exit code; therefore a command prints what a change did in `outcome_stands`.
A read whose answer cannot be written has failed: exit code 1. A line that stderr does not take is lost.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

from trikv.core.record import TIMEOUT_MOST_S
from trikv.core.text import escape

if TYPE_CHECKING:
    from trikv.client import Client

DEFAULT_URL: Final = "http://127.0.0.1:8080"
AS_JSON: Final = "trikv.as_json"  # the place in a context where --json is kept, for an error later
_URL: Final = "trikv.url"

Command = TypeVar("Command", bound=Callable[..., Any])


def cluster_options(command: Command) -> Command:
    """The options of every command that talks to a cluster: --url and --json."""

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
            help="The master's HTTP address, or those of several, with commas between them.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def client_options(command: Command) -> Command:
    """The options of a command that asks for keys: --timeout besides those."""
    return cluster_options(
        click.option(
            "--timeout", "timeout_s", type=click.FloatRange(min=0.001, max=TIMEOUT_MOST_S), metavar="SECONDS",
            help="How long the cluster may take. Default: as its master was told, 2 s.",
        )(command)
    )  # fmt: skip


def connect(url: str, timeout_s: float | None = None) -> Client:
    from trikv.client import Client

    return Client(url, timeout_s=timeout_s)


def print_json(document: object) -> None:
    click.echo(json.dumps(document))


# --- standard streams -------------------------------------------------------------------------------------------------


def replace_closed_streams() -> None:
    """Replace each standard stream that is closed by one of which reading or writing fails (EBADF).

    Otherwise Python would print into nothing, and the next file or socket would get the closed stream's number.
    """
    for name, number, mode, flags in (
        ("stdin", 0, "r", os.O_WRONLY),
        ("stdout", 1, "w", os.O_RDONLY),
        ("stderr", 2, "w", os.O_RDWR),  # lines written there are lost
    ):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 it lives as long as we do


def give_up(stream: IO[str]) -> None:
    """Drop what waits in the stream's buffer, and all that is written later; otherwise Python fails at its exit."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()


@contextmanager
def outcome_stands() -> Iterator[None]:
    """Print the outcome of a change that was made: if it cannot be printed, the change and its exit code stand."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        give_up(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            say_error(f"done, and standard output cannot be written: {error.strerror}")


def say_error(line: str) -> None:
    warn(f"error: {line}")


def warn(line: str) -> None:
    """Print a line on stderr if that can be written, with the control characters of servers and file names escaped."""
    try:
        click.echo(escape(line), err=True)
    except OSError:
        give_up(sys.stderr)
