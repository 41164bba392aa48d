"""`trikv certify`: test a strategy under simulated faults, and say whether it keeps its promise.

The work is in `testing/certify/certificate.py`, the report in `testing/certify/report.py`. Here are the options, the
progress bar and the exit codes. 0: the promise was kept. 1: it was broken, or it could not be shown to be kept. 2:
there is no such strategy, or no such schedule.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from trikv.testing.certify.certificate import Certificate, CertifyProgress


@click.command()
@click.argument("strategy", metavar="MODE|PACKAGE.MODULE:CLASS")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    help="How many runs. Default: 200, about a minute on two cores; 20 with --schedule.",
)
@click.option("--first", type=click.IntRange(min=0), default=1, show_default=True, help="The first run's seed.")
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="Processes to run them in.")
@click.option(
    "--replay", type=click.IntRange(min=0), metavar="SEED", help="Play this seed alone, and show its failure."
)
@click.option(
    "--schedule",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Play these requests and faults in each run, as the page saved them.",
)
@click.option(
    "--html", type=click.Path(dir_okay=False, writable=True, path_type=Path), metavar="FILE",
    help="Write the certificate there as a page, with a failure as a space-time diagram.",
)  # fmt: skip
@click.option("--stop-at-first", is_flag=True, help="Play no further seeds once one has broken the promise.")
@click.option("--no-shrink", is_flag=True, help="Show a failure as it is, with all its requests and faults.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for programs.")
def certify(
    strategy: str,
    seeds: int | None,
    first: int,
    jobs: int,
    replay: int | None,
    schedule: Path | None,
    html: Path | None,
    stop_at_first: bool,
    no_shrink: bool,
    as_json: bool,
) -> None:
    """Test whether a strategy keeps its promise, in a simulated cluster with faults.

    Needs no cluster. The strategy is an installed mode, or a class that need not be installed. Every seed is a run of
    its own; the same seed gives the same run. With --schedule all runs have the requests and faults of that file, and
    begin under the strategy that is named here. Exit code 0: kept. 1: broken, or not shown to be kept.
    """
    from trikv.testing.certify.certificate import SEEDS, SEEDS_OF_SAVED
    from trikv.testing.certify.certificate import certify as put_to_the_test
    from trikv.testing.certify.load import LoadError
    from trikv.testing.certify.report import to_html, to_lines
    from trikv.testing.certify.shrink import RUNS_MAX
    from trikv.testing.sim.schedulefile import ScheduleFileError, read_schedule

    if replay is not None and seeds is not None:
        raise click.UsageError("--replay plays one seed; --seeds goes without it")
    if html is not None and not html.parent.is_dir():
        raise click.UsageError(f"--html: there is no directory {html.parent}")
    try:
        saved = None if schedule is None else read_schedule(schedule)
    except ScheduleFileError as error:
        raise click.UsageError(str(error)) from None
    if seeds is None:
        seeds = SEEDS if saved is None else SEEDS_OF_SAVED
    chosen = range(first, first + seeds) if replay is None else range(replay, replay + 1)

    def work(progress: CertifyProgress) -> Certificate:
        jobs_used = min(jobs, len(chosen))
        return put_to_the_test(
            strategy,
            seeds=chosen,
            jobs=jobs_used,
            schedule=saved,
            runs_max=0 if no_shrink else RUNS_MAX,
            stop_at_first=stop_at_first,
            progress=progress,
        )

    try:
        certificate = _with_progress(work)
    except LoadError as error:
        raise click.UsageError(str(error)) from None
    if as_json:
        click.echo(json.dumps(certificate.to_json(), indent=2))
    else:
        click.echo("\n".join(to_lines(certificate)))
    if html is not None:
        html.write_text(to_html(certificate), encoding="utf-8")
    click.get_current_context().exit(0 if certificate.is_kept else 1)


def _with_progress(work: Callable[[CertifyProgress], Certificate]) -> Certificate:
    """Do the work with a progress bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        return work(lambda stage, done, total: None)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from trikv.testing.certify.certificate import CertifyStage

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {stage: bar.add_task(stage.value, total=None, visible=False) for stage in CertifyStage}
        return work(lambda stage, done, total: bar.update(tasks[stage], completed=done, total=total, visible=True))
