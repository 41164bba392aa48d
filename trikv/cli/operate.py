"""The commands that watch and steer a running cluster: `mode`, `workers`, `events`, `repair`, `recover`.

    trikv mode --plan chain            what a switch would do          trikv mode chain      switch, and see its end
    trikv workers drain ID             empty a worker, wait for it     trikv workers plan    what spares would be given
    trikv events                       what happened, and what happens

Each command asks the master for one thing (`client.py`) and prints the answer (`show.py`). The cluster does the work:
it goes on when the command is interrupted, and another command shows its progress. On a terminal, a long command shows
progress itself, on stderr. The answer goes to stdout, once.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from trikv.cli.shared import cluster_options, connect, outcome_stands, print_json, warn
from trikv.core.breaking import DELAY_MOST_MS, TOLD, BreakKind
from trikv.core.text import escape

if TYPE_CHECKING:
    from trikv.client import Client

T = TypeVar("T")

POLL_INTERVAL_S: Final = 0.25
AGAIN_S: Final = 1.0  # between attempts to reach a master that has gone

_dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would be done.")


# --- the mode ---------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("name", required=False)
@click.option("--plan", is_flag=True, help="Only say what a switch to NAME would do.")
@cluster_options
def mode(name: str | None, plan: bool, url: str, as_json: bool) -> None:
    """List the modes and which is in force, or switch to the one called NAME while the cluster serves.

    A switch ends when everything that was ever committed is kept in the new way. It goes on if this is interrupted.
    """
    from trikv.cli.show import MODE_COLUMNS, certificate_rows, mode_plan_rows, mode_rows, progress_line, show

    if plan and name is None:
        raise click.UsageError("--plan needs the NAME of a mode")
    with connect(url) as client:
        if name is None:
            state = client.cluster()
            if as_json:
                print_json({word: state[word] for word in ("mode", "modes", "progress")})
                return
            show(MODE_COLUMNS, mode_rows(state))
            if line := progress_line(state):
                click.echo(line, err=True)
        elif plan:
            _print(client.plan_mode(name), mode_plan_rows, as_json)
        else:
            certificate = _watched(client, lambda: client.set_mode(name), f"switching to {name}")
            with outcome_stands():
                if not as_json:
                    click.echo(f"the mode is {certificate['mode']}")
                _print(certificate, certificate_rows, as_json)


# --- workers ----------------------------------------------------------------------------------------------------------


@click.group(invoke_without_command=True)
@cluster_options
@click.pass_context
def workers(ctx: click.Context, url: str, as_json: bool) -> None:
    """List the workers; or empty one, take one back, forget one. ID may also be a worker's address."""
    if ctx.invoked_subcommand is not None:
        return
    from trikv.cli.show import show_workers

    with connect(url) as client:
        state = client.cluster()
    if as_json:
        print_json(state["workers"])
    else:
        show_workers(state)


@workers.command("plan")
@cluster_options
def plan_workers(url: str, as_json: bool) -> None:
    """What would move if the spare workers that are up were given their share."""
    from trikv.cli.show import move_rows

    with connect(url) as client:
        _print(client.plan_workers(), move_rows, as_json)


@workers.command()
@click.argument("worker", metavar="ID")
@_dry_run_option
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return when it is empty.")
@cluster_options
def drain(worker: str, dry_run: bool, wait: bool, url: str, as_json: bool) -> None:
    """Have the others take over everything that a worker holds, so that it can be stopped."""
    from trikv.cli.show import move_rows

    with connect(url) as client:
        plan = client.drain(worker, dry_run=dry_run)
        if not dry_run and wait:
            _await_empty(client, plan["worker"])
    with nullcontext() if dry_run else outcome_stands():
        _print(plan, move_rows, as_json)
        if not dry_run and wait and not as_json:
            click.echo(f"worker {plan['worker']} is empty, and may be stopped")


@workers.command()
@click.argument("worker", metavar="ID")
@cluster_options
def undrain(worker: str, url: str, as_json: bool) -> None:
    """Let a worker that is being emptied keep its place after all."""
    with connect(url) as client:
        answer = client.undrain(worker)
    _print_done(answer, f"worker {answer['worker']} may hold data again", as_json)


@workers.command()
@click.argument("worker", metavar="ID")
@cluster_options
def remove(worker: str, url: str, as_json: bool) -> None:
    """Forget a worker that is stopped and holds nothing."""
    with connect(url) as client:
        answer = client.remove(worker)
    _print_done(answer, f"worker {answer['worker']} is no longer part of the cluster", as_json)


def _await_empty(client: Client, worker: str) -> None:
    """Return when the worker holds nothing that counts, or was forgotten; with a bar if stderr is a terminal."""
    from trikv.core.errors import TrikvError

    def look() -> tuple[int, int] | None:
        state = client.cluster()
        found = next((each for each in state["workers"] if each["id"] == worker), None)
        if found is None or found["place"] == "drained":
            return None
        if found["place"] != "draining":
            raise TrikvError("conflict", f"worker {worker} is no longer being emptied: somebody took that back")
        return found["held"], state["partitions"]["total"]

    with _Bar(f"emptying {worker}") as bar:
        while (left := look()) is not None:
            bar.show(*left)
            time.sleep(POLL_INTERVAL_S)


# --- what happens -----------------------------------------------------------------------------------------------------


@click.command()
@click.option("--after", metavar="ID", help="Start behind the event with this id.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Go on with what happens.")
@cluster_options
def events(after: str | None, follow: bool, url: str, as_json: bool) -> None:
    """What happened in the cluster since its master started, and what happens, a line each: id, time, what.

    A connection that breaks is made again, and goes on where it was. Where some events cannot be told any more, it
    says so (gap). Ctrl-C ends it.
    """
    from trikv.cli.show import event_line

    with connect(url) as client:
        told = _follow(client, after) if follow else client.events(after=after, follow=False)
        try:
            for event in told:
                if as_json:
                    print_json(event)
                else:
                    click.echo(event_line(event))
        except KeyboardInterrupt:
            return


@click.command()
@click.argument("trace_id", metavar="[ID]", required=False)
@click.option("--svg", "as_svg", is_flag=True, help="The picture, as SVG, to stdout.")
@cluster_options
def trace(trace_id: str | None, as_svg: bool, url: str, as_json: bool) -> None:
    """What a request sent to which replica, and what came of it, also after the answer; without ID: the latest ones.

    One request in a thousand is traced, and each that has the header Trikv-Trace: 1, whose answer names its trace.
    """
    from trikv.cli.show import TRACE_COLUMNS, show, trace_rows

    if as_svg and trace_id is None:
        raise click.UsageError("--svg draws one trace: give its ID")
    with connect(url) as client:
        if trace_id is not None:
            form = "svg" if as_svg else "json" if as_json else "text"
            click.echo(client.trace(trace_id, form=form), nl=False)
        elif as_json:
            print_json(client.traces())
        else:
            show(TRACE_COLUMNS, trace_rows(client.traces()))


@click.command()
@cluster_options
def masters(url: str, as_json: bool) -> None:
    """List the masters: which one leads, since when, and which stand by. Any of them answers."""
    from trikv.cli.show import MASTER_COLUMNS, master_rows, show
    from trikv.core.present import say_config_store

    with connect(url) as client:
        told = client.masters()
    if as_json:
        print_json(told)
    elif rows := master_rows(told):
        show(MASTER_COLUMNS, rows)
        click.echo(f"the document is in {say_config_store(told)}", err=True)
    else:
        click.echo("one master, which has its document for itself")


@click.command()
@cluster_options
def probe(url: str, as_json: bool) -> None:
    """Whether the mode keeps its promise, as measured; exit code 1 if it was seen to break it.

    The master must have been started with --probe, as the demo's is.
    """
    from trikv.cli.show import show
    from trikv.core.present import probe_rows

    with connect(url) as client:
        told = client.probe()
    if as_json:
        print_json(told)
    elif told["enabled"]:
        show(("", ""), probe_rows(told))
    else:
        raise click.ClickException(f"nothing is measured: {told['detail']}")
    click.get_current_context().exit(1 if told.get("violation_count") else 0)


def _follow(client: Client, after: str | None) -> Iterator[dict[str, Any]]:
    """Events without end. Only the first attempt may raise; later ones are repeated until the master is back."""
    from trikv.core.errors import TrikvError

    reached = quiet = False
    while True:
        try:
            for event in client.events(after=after):
                reached, quiet = True, False
                after = event["id"]
                yield event
            why = "the master has stopped"
        except TrikvError as error:
            if not reached or error.kind.http != 503:
                raise
            why = error.detail
        reached = True
        if not quiet:
            warn(f"{why}; trying again every {AGAIN_S:g} s")
            quiet = True
        time.sleep(AGAIN_S)


# --- when something is wrong ------------------------------------------------------------------------------------------


@click.command()
@_dry_run_option
@cluster_options
def repair(dry_run: bool, url: str, as_json: bool) -> None:
    """Compare all copies of everything, and mend those that differ. The cluster does this by itself too, in time."""
    from trikv.cli.show import repair_rows

    with connect(url) as client:
        report = _watched(client, lambda: client.repair(dry_run=dry_run), "comparing")
    with nullcontext() if dry_run else outcome_stands():
        _print(report, repair_rows, as_json)


@click.command()
@click.option("--accept-loss", is_flag=True, help="Go on without what cannot be found: what it held may be lost.")
@cluster_options
def recover(accept_loss: bool, url: str, as_json: bool) -> None:
    """Make partitions available again of which too many members are gone for good.

    First bring back every worker that can be brought back. Without --accept-loss this only says what would be given up.
    """
    from trikv.cli.show import recover_rows

    with connect(url) as client:
        report = client.recover(accept_loss=accept_loss)
    with outcome_stands() if accept_loss else nullcontext():
        _print(report, recover_rows, as_json)
    if report["partitions"] and not accept_loss:
        raise click.UsageError(
            "nothing was changed; start the workers that are missing, or give --accept-loss to go on without them",
            click.get_current_context(),
        )


@click.command("break")
@click.argument("kind", metavar="[KIND]", type=click.Choice([each.value for each in BreakKind]), required=False)
@click.argument("worker", metavar="[WORKER]", required=False)
@click.option("--delay-ms", type=click.FloatRange(1, DELAY_MOST_MS), help="By how much slow slows a link down.")
@cluster_options
def break_it(kind: str | None, worker: str | None, delay_ms: float | None, url: str, as_json: bool) -> None:
    """Break a worker on purpose: pause, resume, kill or start its process; cut, slow or mend the master's link to it.

    Without KIND: how the workers are, and what can be done to each. Only where the master was started with --break-it,
    as that of trikv demo is. Workers reach each other also where a link to the master is cut; a paused worker is
    silent to all.
    """
    from trikv.cli.show import FAULT_COLUMNS, fault_rows, show

    if (kind is None) != (worker is None):
        raise click.UsageError("KIND says what to do, and WORKER to which one: give both")
    if (kind == BreakKind.SLOW) != (delay_ms is not None):
        raise click.UsageError("--delay-ms goes with the kind slow, and with no other")
    with connect(url) as client:
        if kind is None or worker is None:
            faults = client.faults()
            if as_json:
                print_json(faults)
            else:
                show(FAULT_COLUMNS, fault_rows(faults))
                if not faults["allowed"]:
                    warn(faults["why"])
            return
        answer = client.inject(kind, worker, delay_ms=delay_ms)
    _print_done(answer, f"worker {answer['id']}: {TOLD[BreakKind(kind)].format_map(answer)}", as_json)


# --- helpers ----------------------------------------------------------------------------------------------------------


def _print(
    answer: Mapping[str, Any], rows: Callable[[Mapping[str, Any]], list[tuple[str, str]]], as_json: bool
) -> None:
    from trikv.cli.show import show

    if as_json:
        print_json(answer)
    else:
        show(("", ""), rows(answer))


def _print_done(answer: Mapping[str, Any], sentence: str, as_json: bool) -> None:
    with outcome_stands():
        if as_json:
            print_json(answer)
        else:
            click.echo(escape(sentence))


class _Bar:
    """A bar on stderr that shows how much is left; nothing if stderr is no terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Bar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._what, total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, left: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=max(0, total - left), total=total)


def _watched(client: Client, call: Callable[[], T], what: str) -> T:
    """The answer of a long call, with a progress bar meanwhile if stderr is a terminal."""
    if not sys.stderr.isatty():
        return call()
    from trikv.core.errors import TrikvError

    answers: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(call())
        except Exception as error:  # noqa: BLE001 raised below, in the waiting thread
            errors.append(error)

    caller = threading.Thread(target=run, daemon=True)  # if interrupted, this process ends and the cluster goes on
    caller.start()
    with _Bar(what) as bar:
        while caller.is_alive():
            try:
                state = client.cluster()
                if left := state["unsettled"]:  # nothing is left before the first partition and after the last
                    bar.show(left, state["partitions"]["total"])
            except TrikvError:
                pass  # the call itself will raise it
            caller.join(POLL_INTERVAL_S)
    if errors:
        raise errors[0]
    return answers[0]
