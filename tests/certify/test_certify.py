"""Certificates: given to the built-in modes, refused to strategies that break their promise or misbehave.

The runs are real ones, in processes of their own. Each broken strategy comes with a seed that is known to show it, so
that no test searches; a change of the simulated world may ask for other seeds, which `trikv certify` finds.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trikv.api import Promise
from trikv.cli.main import main
from trikv.core.errors import Outcome
from trikv.testing.certify.certificate import STUCK_MAX, Certificate, Grade, certify
from trikv.testing.certify.load import LoadError
from trikv.testing.certify.misconduct import Misconduct
from trikv.testing.certify.report import to_html, to_lines, verdict_of
from trikv.testing.sim import FaultKind, Plan, simulate
from trikv.testing.sim.schedulefile import read_schedule
from trikv_quorum import Quorum

ROOT = Path(__file__).resolve().parent.parent.parent
STRATEGIES = "tests.certify.strategies"
SHORT = Plan(lasts_s=12.0, requests=40, faults=3)
KILLED_PRIMARY = Path(__file__).parent / "schedules" / "killed_primary.json"
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
    certificate = certify(mode, seeds=range(1, 4), jobs=1, plan=DENSE)
    assert certificate.is_kept, "\n".join(to_lines(certificate))
    assert certificate.delivers in (grade, Grade.LINEARIZABLE)  # few runs may not show what async may do
    assert certificate.runs == 3
    assert certificate.outcomes[Outcome.COMMITTED] > 300
    assert sum(certificate.faults.values()) > 5


def test_repair_may_be_left_to_anti_entropy() -> None:
    certificate = certify(f"{STRATEGIES}:LeavesRepair", seeds=range(1, 7), jobs=1, plan=SHORT)
    assert certificate.is_kept, "\n".join(to_lines(certificate))
    assert certificate.delivers is Grade.CONVERGENT


def test_being_watched_changes_nothing() -> None:
    digests = {run.schedule.seed: run.digest for run in (simulate(Quorum(), seed, SHORT) for seed in (5, 6))}
    certificate = certify("quorum", seeds=(5, 6), jobs=1, plan=SHORT)
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
    certificate = certify(f"{STRATEGIES}:{strategy}", seeds=[seed], jobs=1, plan=DENSE)
    told = "\n".join(to_lines(certificate))
    assert not certificate.is_kept, told
    assert certificate.delivers is not Grade.LINEARIZABLE
    example = certificate.counterexample
    assert example is not None, told
    left = len(example.schedule.faults) + len(example.schedule.requests)
    assert left < sum(example.shrunk_from) / 5, told
    assert f"Play it again: trikv certify {STRATEGIES}:{strategy} --replay {seed}" in told
    assert re.search(r"\d s +w\d +(gets|misses) +(store v\d+|fetch), from master", told)
    assert example.finding.rule == certificate.broken[0].finding.rule
    assert "HERE THE PROMISE IS BROKEN" in told
    assert {call.number for call in example.timeline.calls if call.number} == set(
        range(1, len(example.finding.operations) + 1)
    )


def test_the_command_shows_a_broken_promise_as_text_and_as_a_page(tmp_path: Path) -> None:
    page = tmp_path / "failure.html"
    words = ("--seeds", "9", "--stop-at-first", "--no-shrink", "--html", str(page))
    result = run_cli(f"{STRATEGIES}:AcksBeforeStoring", *words)
    assert result.exit_code == 1, result.output
    assert "acks-before-storing breaks its promise to be linearizable" in result.stdout
    html = page.read_text()
    start = html.index('<svg class="spacetime"')
    svg = ET.fromstring(html[start : html.index("</svg>", start) + len("</svg>")])
    assert [one for one in svg.iter() if "evidence" in one.get("class", "").split()]
    assert "<script" not in html
    assert not re.search(r"""(src|href)\s*=""", html)


def test_of_several_failing_seeds_the_shortest_story_is_told() -> None:
    target = f"{STRATEGIES}:ReadsOne"
    certificate = certify(target, seeds=range(3), jobs=1, plan=DENSE, runs_max=18)
    assert len(certificate.broken) > 1
    assert certificate.counterexample is not None
    assert certificate.counterexample.seed in {one.seed for one in certificate.broken}
    example = certificate.counterexample
    assert len(example.schedule.requests) < example.shrunk_from[1]


def test_the_first_failure_may_end_it_and_be_shown_as_it_is() -> None:
    target = f"{STRATEGIES}:ReadsOne"
    certificate = certify(target, seeds=range(50), jobs=1, plan=DENSE, runs_max=0, stop_at_first=True)
    assert certificate.runs < 20
    assert certificate.seeds[1] < 20
    assert "the first that fails ends it" in "\n".join(to_lines(certificate))
    example = certificate.counterexample
    assert example is not None
    assert example.seed == certificate.broken[0].seed
    assert len(example.schedule.requests) == DENSE.requests
    answers = Counter(message.text.partition(" ")[0] for message in example.timeline.messages)
    assert answers["stored"] > answers["store"] / 3
    assert answers["holds"] > answers["fetch"] / 3


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


# --- schedules that a person saved ------------------------------------------------------------------------------------


def test_a_killed_primary_breaks_what_async_does_not_promise_and_shows_how() -> None:
    saved = read_schedule(KILLED_PRIMARY)
    certificate = certify("async", schedule=saved, seeds=[1, 2], runs_max=4)
    told = "\n".join(to_lines(certificate))
    assert certificate.is_kept, told
    assert certificate.delivers is Grade.CONVERGENT, told
    assert "delivers    convergent: 0 of 2 runs were linearizable" in told
    assert "The price of the mode" in told
    assert certificate.price is not None
    assert "FROM HERE ON NOT LINEARIZABLE" in told
    assert "HERE THE PROMISE IS BROKEN" not in told
    assert "blue" in told
    assert f"Play it again: trikv certify async --schedule {KILLED_PRIMARY} --replay 1" in told
    assert "The price of the mode" in to_html(certificate)


def test_the_same_faults_break_nothing_under_quorum() -> None:
    certificate = certify("quorum", schedule=read_schedule(KILLED_PRIMARY), seeds=[1, 2, 3])
    assert certificate.is_kept, "\n".join(to_lines(certificate))
    assert certificate.delivers is Grade.LINEARIZABLE
    assert certificate.faults == {FaultKind.CUT_LINK: 6, FaultKind.CRASH: 3}


def test_a_saved_schedule_catches_a_strategy_that_breaks_its_promise() -> None:
    saved = read_schedule(KILLED_PRIMARY)
    certificate = certify(f"{STRATEGIES}:PromisesTooMuch", schedule=saved, seeds=[1], runs_max=8)
    told = "\n".join(to_lines(certificate))
    assert not certificate.is_kept
    assert "HERE THE PROMISE IS BROKEN" in told
    assert f"Play it again: trikv certify {STRATEGIES}:PromisesTooMuch --schedule {KILLED_PRIMARY} --replay 1" in told


def test_the_command_plays_a_saved_schedule_under_the_mode_that_it_names(tmp_path: Path) -> None:
    schedule = tmp_path / "a switch.json"
    schedule.write_text(
        json.dumps(
            {
                "trikv_schedule": 1, "workers": 3, "replicas": 3, "mode": "async",
                "steps": [
                    {"at_s": 0, "request": "put", "key": "k", "value": "v"},
                    {"at_s": 1, "switch": "chain"},
                    {"at_s": 2, "request": "get", "key": "k"},
                ],
            }
        )
    )  # fmt: skip
    result = run_cli("quorum", "--schedule", str(schedule), "--seeds", "2", "--json")
    told = json.loads(result.stdout)
    assert (result.exit_code, told["strategy"], told["kept"], told["runs"]) == (0, "quorum", True, 2), told
    assert told["schedule"] == str(schedule)
    assert told["faults"] == {"mode switch": 2}
    result = run_cli("quorum", "--schedule", str(schedule), "--replay", "7")
    assert f"schedule    {schedule}: 2 requests and 1 other step in 2 s, saved under async" in result.stdout


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "is not JSON"),
        ('{"trikv_schedule": 2}', "this trikv reads format 1"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_no_schedule_is_one_line_and_exit_code_2(text: str | None, line: str, tmp_path: Path) -> None:
    file = tmp_path / "my.json"
    if text is not None:
        file.write_text(text)
    result = run_cli("quorum", "--schedule", str(file))
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert str(file) in result.stderr
    assert line in result.stderr


def test_a_schedule_that_switches_to_a_mode_that_is_not_installed_says_so(tmp_path: Path) -> None:
    file = tmp_path / "my.json"
    file.write_text(
        KILLED_PRIMARY.read_text()
        .replace('{"at_s": 4.5, "fault": "kill", "worker": 4}', '{"at_s": 4.5, "switch": "mine"}')
        .replace('{"at_s": 7.0, "end": "kill", "worker": 4},', "")
    )
    result = run_cli("quorum", "--schedule", str(file))
    assert result.exit_code == 2
    assert "switches to a mode that is not installed: no such mode: 'mine' is none of" in result.stderr


# --- strategies that misbehave ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "misconduct", "detail"),
    [
        ("Raises", Misconduct.RAISES, r"ValueError in read at strategies.py:\d+ .*: not today"),
        ("Hangs", Misconduct.HANGS, r"write waited for something other than its replicas"),
        ("ReturnsJunk", Misconduct.JUNK, r"read returned 'junk', which is no record"),
        ("ReturnsJunkRecord", Misconduct.JUNK, r"read returned Record\(.*, which no replica holds"),
        ("IsNotAsync", Misconduct.JUNK, r"read is no async function: calling it returned None"),
        ("ForgetsAwait", Misconduct.FORGETS, r"its call of store was awaited, at strategies.py:\d+ \(replicas.store\("),
        ("Exits", Misconduct.ENDS, r"sys.exit\(3\) in write at strategies.py:\d+ \(sys.exit\(3\)\)"),
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
        ("Spins", Misconduct.HANGS, r"did not let go for 1 s at strategies.py:\d+"),
        ("EndsProcess", Misconduct.ENDS, r"os._exit\(3\) at strategies.py:\d+ \(os._exit\(3\)\)"),
        ("KillsProcess", Misconduct.ENDS, r"the process that played seed \d+ ended by itself, with exit code -9"),
    ],
)
def test_a_run_without_an_end_is_given_up_and_few_of_them_are_enough(
    strategy: str, misconduct: Misconduct, detail: str
) -> None:
    certificate = certify(f"{STRATEGIES}:{strategy}", seeds=range(1, 50), jobs=1, plan=SHORT, hang_s=1.0)
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


def test_a_strategy_that_the_players_cannot_load_is_no_finding() -> None:
    with pytest.raises(LoadError, match=r"loads_once' cannot be imported: RuntimeError: not here, at loads_once.py:10"):
        certify("tests.certify.loads_once:LoadsOnce", seeds=[1], jobs=1, plan=SHORT)


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
