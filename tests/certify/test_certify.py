"""Certificates: given to the built-in modes, refused to strategies that break their promise or misbehave.

The runs are real ones, in processes of their own. Each broken strategy comes with a seed that is known to show it, so
that no test searches; a change of the simulated world may ask for other seeds, which `trikv certify` finds.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trikv.api import Promise
from trikv.cli.main import main
from trikv.core.errors import Outcome
from trikv.testing.certify.certificate import STUCK_MAX, Certificate, Grade, certify
from trikv.testing.certify.misconduct import Misconduct
from trikv.testing.certify.report import to_html, to_lines, verdict_of
from trikv.testing.sim import Plan, simulate
from trikv_quorum import Quorum

ROOT = Path(__file__).resolve().parent.parent.parent
STRATEGIES = "tests.certify.strategies"
SHORT = Plan(lasts_s=12.0, requests=40, faults=3)
DENSE = Plan(lasts_s=20.0, workers=3, requests=160, faults=12, storms=(2, 3), cold_keys=1)


@pytest.fixture(autouse=True)
def _strategies_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def run_cli(*words: str) -> Result:
    return CliRunner().invoke(main, ["certify", *words])


# --- promises kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "grade"),
    [
        ("sync", Grade.LINEARIZABLE),
        ("chain", Grade.LINEARIZABLE),
        ("quorum", Grade.LINEARIZABLE),
        ("async", Grade.CONVERGENT),
    ],
)
def test_the_built_in_modes_keep_their_promises(mode: str, grade: Grade) -> None:
    certificate = certify(mode, seeds=range(1, 6), jobs=2, plan=DENSE)
    assert certificate.is_kept, "\n".join(to_lines(certificate))
    assert certificate.delivers in (grade, Grade.LINEARIZABLE)  # few runs may not show what async may do
    assert certificate.runs == 5
    assert certificate.outcomes[Outcome.COMMITTED] > 300
    assert sum(certificate.faults.values()) > 5


def test_being_watched_changes_nothing() -> None:
    digests = {run.schedule.seed: run.digest for run in (simulate(Quorum(), seed, SHORT) for seed in (5, 6))}
    certificate = certify("quorum", seeds=(5, 6), jobs=2, plan=SHORT)
    assert certificate.digests == digests


def test_an_installed_mode_may_be_named_by_its_class_and_seen_as_json() -> None:
    result = run_cli("trikv_quorum:Quorum", "--replay", "1", "--json")
    told = json.loads(result.stdout)
    assert (result.exit_code, told["kept"], told["from"]) == (0, True, "trikv_quorum")
    assert told["counterexample"] is None


# --- promises broken --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "seed"),
    [("AcksBeforeStoring", 0), ("HalfIsEnough", 1)],
)
def test_a_broken_promise_is_caught_shrunk_and_drawn(strategy: str, seed: int) -> None:
    certificate = certify(f"{STRATEGIES}:{strategy}", seeds=[seed], jobs=2, plan=DENSE)
    told = "\n".join(to_lines(certificate))
    assert not certificate.is_kept, told
    assert certificate.delivers is not Grade.LINEARIZABLE
    example = certificate.counterexample
    assert example is not None, told
    left = len(example.schedule.faults) + len(example.schedule.requests)
    assert left < sum(example.shrunk_from) / 5, told
    assert f"Play it again: trikv certify {STRATEGIES}:{strategy} --replay {seed}" in told
    assert re.search(r"\d s +w\d +gets +store v\d+, from master", told)
    assert "HERE THE PROMISE IS BROKEN" in told
    assert {call.number for call in example.timeline.calls if call.number} == set(
        range(1, len(example.finding.operations) + 1)
    )


def test_the_command_shows_a_broken_promise_as_text_and_as_a_page(tmp_path: Path) -> None:
    page = tmp_path / "failure.html"
    result = run_cli(f"{STRATEGIES}:AcksBeforeStoring", "--seeds", "1", "--html", str(page))
    assert result.exit_code == 1, result.output
    assert "acks-before-storing breaks its promise to be linearizable" in result.stdout
    html = page.read_text()
    start = html.index('<svg class="spacetime"')
    svg = ET.fromstring(html[start : html.index("</svg>", start) + len("</svg>")])
    assert [one for one in svg.iter() if "evidence" in one.get("class", "").split()]
    assert "<script" not in html
    assert not re.search(r"""(src|href)\s*=""", html)


def test_a_command_that_comes_to_nothing_leaves_the_former_page_alone(tmp_path: Path) -> None:
    page = tmp_path / "failure.html"
    page.write_text("the former one")
    assert run_cli("no.such.module:Class", "--html", str(page)).exit_code == 2
    assert page.read_text() == "the former one"
    result = run_cli("quorum", "--html", str(tmp_path / "nowhere" / "failure.html"))
    assert result.exit_code == 2
    assert f"there is no directory {tmp_path / 'nowhere'}" in result.stderr


def test_a_failure_is_the_same_again_whoever_plays_it() -> None:
    target = f"{STRATEGIES}:AcksBeforeStoring"
    one, other = (certify(target, seeds=[0], jobs=jobs, plan=DENSE, runs_max=12).counterexample for jobs in (1, 2))
    assert one is not None
    assert one == other


# --- strategies that misbehave ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "misconduct", "detail"),
    [
        ("Raises", Misconduct.RAISES, r"ValueError in read at strategies.py:\d+ .*: not today"),
        ("Hangs", Misconduct.HANGS, r"write waited for something other than its replicas"),
        ("ReturnsJunk", Misconduct.JUNK, r"read returned 'junk', which is no record"),
        ("StartsTasks", Misconduct.TASKS, r"store, started at strategies.py:\d+ \(nursery.start_soon"),
        ("ReadsClock", Misconduct.CLOCK, r"time.monotonic at strategies.py:\d+ \(monotonic\(\)\)"),
        ("ThrowsDice", Misconduct.DICE, r"at strategies.py:\d+ \(random.shuffle"),
        ("HashesText", Misconduct.UNREPEATABLE, r"seed 1 gave another run the second time"),
    ],
)
def test_misconduct_is_named(strategy: str, misconduct: Misconduct, detail: str) -> None:
    certificate = certify(f"{STRATEGIES}:{strategy}", seeds=[1, 2], jobs=1, plan=SHORT, runs_max=0)
    assert re.search(detail, certificate.noticed[misconduct]), certificate.noticed
    assert certificate.runs == 2  # it goes on
    assert not certificate.is_kept
    assert any(misconduct.value in line for line in to_lines(certificate))


@pytest.mark.parametrize(
    ("strategy", "misconduct", "detail"),
    [
        ("Spins", Misconduct.HANGS, r"did not let go for 2 s at strategies.py:\d+"),
        ("EndsProcess", Misconduct.ENDS, r"seed \d+ had no end"),
    ],
)
def test_a_run_without_an_end_is_given_up_and_few_of_them_are_enough(
    strategy: str, misconduct: Misconduct, detail: str
) -> None:
    certificate = certify(f"{STRATEGIES}:{strategy}", seeds=range(1, 50), jobs=1, plan=SHORT, hang_s=2.0)
    assert re.search(detail, certificate.noticed[misconduct]), certificate.noticed
    assert (certificate.runs, certificate.stuck) == (0, STUCK_MAX)
    assert certificate.delivers is Grade.UNDECIDED
    assert not certificate.is_kept
    assert "cannot be certified" in verdict_of(certificate)


# --- what cannot even be tried ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nosuch"], "no such mode: 'nosuch' is none of async, chain, quorum, sync; a class is written"),
        (["no.such.module:Class"], "the module 'no.such.module' cannot be imported: ModuleNotFoundError"),
        ([f"{STRATEGIES}:NoSuchClass"], f"the module '{STRATEGIES}' has no 'NoSuchClass'"),
        ([f"{STRATEGIES}:NoStrategy"], "is no strategy: it is not a subclass of trikv.api.Strategy"),
        (["trikv.api:Strategy"], "trikv.api:Strategy cannot be made: TypeError"),
        ([f"{STRATEGIES}:SaysTooLittle"], "needs a sentence for gives_up"),
        ([f"{STRATEGIES}:NameIsTaken"], "'quorum' is offered by trikv"),
        ([":"], "''"),
        (["quorum", "--replay", "1", "--seeds", "2"], "--replay plays one seed"),
        (["quorum", "--seeds", "0"], "--seeds"),
    ],
)
def test_what_is_no_strategy_is_one_line_and_exit_code_2(words: list[str], line: str) -> None:
    result = run_cli(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert line in result.stderr


def test_a_page_that_cannot_be_written_is_said_before_anything_runs(tmp_path: Path) -> None:
    result = run_cli("quorum", "--replay", "1", "--html", str(tmp_path / "nowhere" / "page.html"))
    assert result.exit_code == 2
    assert "nowhere" in result.stderr


# --- verdicts ---------------------------------------------------------------------------------------------------------


def certificate_of(promise: Promise = Promise.CP, **fields: object) -> Certificate:
    certificate = Certificate("mine", "mine", "mine 1.0", promise, (1, 10), runs=10)
    certificate.outcomes[Outcome.COMMITTED] = 100
    for name, value in fields.items():
        setattr(certificate, name, value)
    return certificate


def test_not_decided_is_never_a_pass() -> None:
    certificate = certificate_of(undecided=[4])
    assert certificate.delivers is Grade.UNDECIDED
    assert not certificate.is_kept
    assert "not decided" in verdict_of(certificate)


def test_a_store_that_never_commits_is_never_a_pass() -> None:
    certificate = certificate_of()
    certificate.outcomes.clear()
    assert certificate.delivers is Grade.UNDECIDED
    assert not certificate.is_kept
    assert "nothing was ever committed" in verdict_of(certificate)


def test_a_mode_that_promises_less_may_deliver_more() -> None:
    assert certificate_of(Promise.AP).delivers is Grade.LINEARIZABLE
    certificate = certificate_of(Promise.AP, not_linearizable=1)
    assert certificate.delivers is Grade.CONVERGENT
    assert certificate.is_kept


def test_a_certificate_that_was_given_has_a_page_too() -> None:
    html = to_html(certificate_of())
    assert "mine keeps its promise: linearizable in all 10 runs" in html
    assert "100 committed" in html
