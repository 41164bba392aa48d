"""The `trikv` command.

Each command is thin: it turns words into a call, and the answer into lines. The wire is in `client.py`, whole
directories in `bulk.py`, tables in `show.py`. The commands that run nodes are in `nodes.py`, and the commands that
watch and steer a running cluster in `operate.py`. A command imports what is heavy by itself, so that `trikv get` does
not wait for a web framework.

The output is for people and for programs. Results go to stdout and everything else to stderr. Results are tables on a
terminal, lines without decoration in a pipe, and one JSON document with `--json` (a scan: one a line). A value is
written byte for byte. A failure is one line, `error: ...`, that names the thing and the remedy, and an exit code
from the error table: 0 done, 1 error, 2 usage, 3 not found, 4 refused or unavailable, 5 precondition failed, 6 unknown.

Keys are the bytes of the argument as the shell gave it, so any text works as it is; other bytes go in with `--base64`.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from trikv import __version__
from trikv.cli.certify import certify
from trikv.cli.configstore import config_store
from trikv.cli.nodes import demo, master, worker
from trikv.cli.operate import break_it, events, masters, mode, probe, recover, repair, trace, workers
from trikv.cli.shared import (
    AS_JSON,
    client_options,
    connect,
    give_up,
    outcome_stands,
    print_json,
    replace_closed_streams,
    say_error,
    warn,
)
from trikv.core.text import spell_bytes, to_base64

if TYPE_CHECKING:
    from trikv.cli.bulk import BulkProgress, BulkReport

_SHELLS: Final = ("bash", "zsh", "fish")


class Trikv(click.Group):
    """The group of all commands, and the one place where an error becomes a line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        from trikv.core.errors import TrikvError

        try:
            return super().invoke(ctx)
        except TrikvError as error:
            if ctx.meta.get(AS_JSON):
                told = {"code": error.kind.code, "outcome": error.kind.outcome.value, "detail": error.detail}
                warn(json.dumps({**error.extra, **told}))
            else:
                say_error(error_line(error.kind.title, error.detail, error.kind.remedy))
            ctx.exit(error.kind.exit)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else ctx.command_path
            say_error(f"{error.format_message().rstrip('.')}; see {command} --help")
            ctx.exit(error.exit_code)
        except click.ClickException as error:
            say_error(error.format_message())
            ctx.exit(error.exit_code)

    def main(self, *args: Any, **options: Any) -> Any:
        replace_closed_streams()
        try:
            return super().main(*args, **options)  # a reader that has left (`trikv scan | head`) ends it quietly
        except OSError as error:
            if error.filename is not None:
                say_error(f"{error.filename}: {error.strerror}")
            elif error.errno is not None:  # no file's error, and the client handles a connection's: it is stdout's
                give_up(sys.stdout)
                say_error(f"standard output cannot be written: {error.strerror}")
            else:
                say_error(str(error))
            sys.exit(1)


def error_line(title: str, detail: str, remedy: str) -> str:
    """Title, detail and remedy as one line."""
    line = f"{title}: {detail}" if detail else title
    return line if remedy == "See the detail." else f"{line.rstrip('.')}. {remedy}"


@click.group(cls=Trikv, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trikv", message="%(prog)s %(version)s")
def main() -> None:
    """A replicated key-value store; how it replicates is a plugin: sync, async, chain or quorum.

    Try `trikv demo`.
    """


_base64_option = click.option("--base64", "in_base64", is_flag=True, help="KEY is written in base64.")
_etag_option = click.option("--etag", "only_etag", is_flag=True, help="Print the ETag alone.")
_prefix_option = click.option("--prefix", default="", help="What each key starts with, before the file's path.")


def _key(text: str, in_base64: bool = False) -> bytes:
    if not in_base64:
        return os.fsencode(text)
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)  # either alphabet (RFC 4648)
    except ValueError as error:
        raise click.UsageError(f"{text!r} is not base64 ({error}); leave --base64 out for a key that is text") from None


# --- keys -------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("key")
@click.argument("value", required=False)
@click.option("--file", type=click.Path(path_type=Path), help="Take the value from this file.")
@click.option("--if-match", metavar="ETAG", help="Only if the key still has this ETag (* for any).")
@click.option("--if-absent", is_flag=True, help="Only if the key is absent.")
@_etag_option
@_base64_option
@client_options
def put(
    key: str,
    value: str | None,
    file: Path | None,
    if_match: str | None,
    if_absent: bool,
    only_etag: bool,
    in_base64: bool,
    url: str,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Store VALUE under KEY. A value of - is read from stdin."""
    if if_match and if_absent:
        raise click.UsageError("--if-match and --if-absent contradict each other: give one of them")
    if (value is None) == (file is None):
        raise click.UsageError("give the value once: as VALUE, as - for stdin, or with --file")
    data = file.read_bytes() if file is not None else _value(value or "")
    name = _key(key, in_base64)
    with connect(url, timeout_s) as client:
        stamp = client.put(name, data, if_match=if_match, if_absent=if_absent)
    _print_committed(stamp, only_etag, as_json)


def _value(text: str) -> bytes:
    from trikv.core.record import VALUE_BYTES_MAX

    if text != "-":
        return os.fsencode(text)
    try:
        return sys.stdin.buffer.read(VALUE_BYTES_MAX + 1)  # one byte more, so that a value too large is noticed
    except OSError as error:
        why = f"standard input cannot be read: {error.strerror}; give the value as VALUE or with --file"
        raise click.ClickException(why) from None


def _print_committed(stamp: str, only_etag: bool, as_json: bool) -> None:
    with outcome_stands():
        if as_json:
            print_json({"outcome": "committed", "etag": stamp})
        else:
            click.echo(stamp if only_etag else f"committed {stamp}")


@main.command()
@click.argument("key")
@_etag_option
@_base64_option
@client_options
def get(key: str, only_etag: bool, in_base64: bool, url: str, timeout_s: float | None, as_json: bool) -> None:
    """Write the value of KEY to stdout, byte for byte."""
    from trikv.cli.show import readable_key
    from trikv.core.errors import TrikvError

    name = _key(key, in_base64)
    with connect(url, timeout_s) as client:
        found = client.get(name)
    if found is None:
        raise TrikvError("not_found", readable_key(name))
    if as_json:
        print_json({**spell_bytes("key", name), **spell_bytes("value", found.value), "etag": found.stamp})
    elif only_etag:
        click.echo(found.stamp)
    else:
        click.echo(found.value, nl=sys.stdout.isatty())


@main.command()
@click.argument("key")
@click.option("--if-match", metavar="ETAG", help="Only if the key still has this ETag (* for any).")
@_etag_option
@_base64_option
@client_options
def delete(
    key: str, if_match: str | None, only_etag: bool, in_base64: bool, url: str, timeout_s: float | None, as_json: bool
) -> None:
    """Delete KEY. To delete what is absent is no error."""
    name = _key(key, in_base64)
    with connect(url, timeout_s) as client:
        stamp = client.delete(name, if_match=if_match)
    _print_committed(stamp, only_etag, as_json)


@main.command()
@click.argument("prefix", default="")
@click.option("--after", help="Start behind this key.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many keys.")
@click.option("--base64", "in_base64", is_flag=True, help="PREFIX, --after and the printed keys are in base64.")
@client_options
def scan(
    prefix: str, after: str | None, limit: int | None, in_base64: bool, url: str, timeout_s: float | None, as_json: bool
) -> None:
    """List the keys that start with PREFIX, in byte order.

    In a pipe: one key a line, with what is not printable as an escape; --base64 or --json are exact for any bytes.
    """
    from trikv.cli.show import readable_key, show

    with connect(url, timeout_s) as client:
        start = _key(after, in_base64) if after is not None else None
        entries = client.scan(_key(prefix, in_base64), after=start, limit=limit)
        if as_json:
            for entry in entries:
                print_json({**spell_bytes("key", entry.key), **spell_bytes("value", entry.value), "etag": entry.stamp})
            return
        spell: Callable[[bytes], str] = to_base64 if in_base64 else readable_key
        if not sys.stdout.isatty():
            for entry in entries:
                click.echo(spell(entry.key))
            return
        rows = [(spell(entry.key), f"{len(entry.value):,}", entry.stamp) for entry in entries]
        show(("key", "bytes", "ETag"), rows)


# --- the cluster ------------------------------------------------------------------------------------------------------


@main.command()
@client_options
def status(url: str, timeout_s: float | None, as_json: bool) -> None:
    """Show the cluster: its mode and what that costs, its partitions, its workers."""
    from trikv.cli.show import show, show_workers, summary_rows

    with connect(url, timeout_s) as client:
        state = client.cluster()
    if as_json:
        print_json(state)
        return
    show(("", ""), summary_rows(state))
    show_workers(state, label="worker")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for programs.")
def plugins(as_json: bool) -> None:
    """List the modes, storage engines and provisioners installed here, and by what. Needs no cluster.

    A plugin that is installed and cannot be used is listed as unusable, with the reason.
    """
    from trikv.cli.show import PLUGIN_COLUMNS, show
    from trikv.registry import PluginError, description_of, load_registry

    try:
        registry = load_registry()
    except PluginError as error:
        raise click.ClickException(str(error)) from None
    rows = [
        ("mode", s.name, s.promise.value, registry.origins[s.name], s.protocol) for s in registry.strategies.values()
    ]
    rows += [
        ("storage", e.name, "durable" if e.durable else "not durable", registry.origins[e.name], description_of(e))
        for e in registry.storage_engines.values()
    ]
    rows += [
        ("provisioner", p.name, "", registry.origins[p.name], description_of(p)) for p in registry.provisioners.values()
    ]
    rows += [("unusable", one.name, "", one.origin, one.why) for one in registry.unusable]
    if as_json:
        print_json([dict(zip(("kind", "name", "promise", "from", "about"), row, strict=True)) for row in rows])
    else:
        show(PLUGIN_COLUMNS, rows)


@main.command("new-strategy")
@click.argument("name")
@click.option("--storage", is_flag=True, help="Write those of a storage engine instead.")
@click.option("--directory", type=click.Path(path_type=Path), help="A new one. Default: trikv-NAME, here.")
def new_strategy(name: str, storage: bool, directory: Path | None) -> None:
    """Write the starting files of a replication strategy of your own: a package that works as it is."""
    from trikv.cli.newstrategy import ENGINE, STRATEGY, NotWritten, write_starting_files
    from trikv.registry import PluginError, load_registry

    try:
        written = write_starting_files(name, directory, load_registry(), ENGINE if storage else STRATEGY)
    except PluginError as error:
        raise click.ClickException(str(error)) from None
    except NotWritten as error:
        raise click.UsageError(str(error)) from None
    for file in written:
        click.echo(f"wrote {file}")
    click.echo(f"next: pip install -e '{written[0].parent}[dev]', and trikv plugins lists {name}")


# --- directories ------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@_prefix_option
@client_options
def load(directory: Path, prefix: str, url: str, timeout_s: float | None, as_json: bool) -> None:
    """Store every regular file under DIRECTORY, each under its path below it."""
    from trikv.cli import bulk

    with connect(url, timeout_s) as client:
        report = _with_progress(lambda progress: bulk.load(client, directory, os.fsencode(prefix), progress))
    _print_report(report, "stored", as_json)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@_prefix_option
@client_options
def dump(directory: Path, prefix: str, url: str, timeout_s: float | None, as_json: bool) -> None:
    """Write every key that starts with the prefix to a file under DIRECTORY: the reverse of load."""
    from trikv.cli import bulk

    with connect(url, timeout_s) as client:
        report = _with_progress(lambda progress: bulk.dump(client, directory, os.fsencode(prefix), progress))
    _print_report(report, "written", as_json)


def _with_progress(work: Callable[[BulkProgress], BulkReport]) -> BulkReport:
    """Do the work with a progress bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        return work(lambda done, total: None)
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True)) as bar:
        task = bar.add_task("files", total=None)
        return work(lambda done, total: bar.update(task, completed=done, total=total or None))


def _print_report(report: BulkReport, done: str, as_json: bool) -> None:
    """Print every file that was not done, and the counts; exit with the code of the worst."""
    from trikv.cli.show import readable_key

    counts = [f"{report.done:,} files {done} ({report.done_bytes:,} bytes)"]
    counts += [f"{len(getattr(report, word)):,} {word}" for word in ("skipped", "refused", "unknown")]
    counts += [f"{report.not_tried:,} not tried"] if report.not_tried else []
    with outcome_stands():
        if as_json:
            print_json(report.to_json())
        else:
            for word in ("skipped", "refused", "unknown"):
                for name, reason in getattr(report, word):
                    warn(f"{word}: {readable_key(os.fsencode(name))}: {reason}")
            click.echo(", ".join(counts))
    click.get_current_context().exit(report.exit_code)


# --- this machine -----------------------------------------------------------------------------------------------------


@main.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the script that teaches SHELL to complete trikv's commands: eval "$(trikv completion bash)"."""
    from click.shell_completion import get_completion_class

    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(completer(main, {}, "trikv", "_TRIKV_COMPLETE").source())


for command in (
    master, worker, demo, certify, config_store, mode, masters, workers, events, trace, probe, break_it, repair,
    recover,
):  # fmt: skip
    main.add_command(command)
