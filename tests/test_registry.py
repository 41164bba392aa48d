"""The registry against distributions that are really there: metadata and modules in a directory on the path."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import pytest

from trikv.api import HEAD, Need, Needs, Promise, Record, ReplicaSet, Strategy, Write
from trikv.core.errors import Refused
from trikv.registry import PluginError, Registry, check_strategy, load_registry, needs_of

STRATEGY = """
from trikv.api import Promise, Strategy, hookimpl

class Mine(Strategy):
    name = "{name}"
    promise = Promise.CP
    gives_up = "Speed."
    use_when = "Never."
    protocol = "One by one."

    def copies(self, n):
        return {copies}

    async def write(self, write, replicas):
        await replicas.store(write)

    async def read(self, key, replicas):
        return (await replicas.fetch(key))[0].record

@hookimpl
def trikv_strategies():
    return [Mine()]
"""
Install = Callable[..., list[Distribution]]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution with one plugin beside those before it; all that is installed by then."""

    def install(distribution: str, entry_point: str, source: str, version: str = "1.0") -> list[Distribution]:
        module = f"{tmp_path.name}_{distribution}_{entry_point}".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        metadata = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[trikv]\n{entry_point} = {module}\n")
        return list(distributions(path=[str(tmp_path)]))

    monkeypatch.syspath_prepend(tmp_path)
    return install


def test_what_comes_with_trikv_is_found_by_entry_point() -> None:
    registry = load_registry()
    assert set(registry.strategies) >= {"sync", "async", "chain", "quorum"}
    assert set(registry.storage_engines) >= {"memory", "rocksdb"}
    assert set(registry.provisioners) >= {"local"}
    assert set(registry.origins) == {*registry.strategies, *registry.storage_engines, *registry.provisioners}
    assert registry.origins["quorum"].startswith("trikv ")
    assert registry.strategy("quorum").promise is Promise.CP
    assert registry.storage_engine("rocksdb").durable


def test_a_strangers_strategy_is_found_beside_ours(install: Install) -> None:
    registry = load_registry(install("slow-modes", "slow", STRATEGY.format(name="slow", copies="n"), "2.3"))
    assert registry.strategy("slow").copies(3) == 3
    assert registry.origins == {"slow": "slow-modes 2.3"}


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    registry = load_registry()
    with pytest.raises(Refused, match="'qorum' is none of async, chain, quorum, sync") as refused:
        registry.strategy("qorum")
    assert refused.value.kind.code == "unknown_mode"
    assert set(refused.value.extra["modes"]) == set(registry.strategies)
    with pytest.raises(Refused, match="there are memory, rocksdb"):
        registry.storage_engine("floppy")


def test_one_entry_point_name_from_two_distributions_is_refused_with_both_named(install: Install) -> None:
    install("first", "turbo", STRATEGY.format(name="one", copies="n"), "1.1")
    installed = install("second", "turbo", STRATEGY.format(name="two", copies="n"), "2.2")
    with pytest.raises(
        PluginError, match=r"'turbo' is offered by (first 1.1|second 2.2) and by (second 2.2|first 1.1)"
    ):
        load_registry(installed)


def test_one_mode_name_from_two_distributions_is_refused_with_both_named(install: Install) -> None:
    install("first", "a", STRATEGY.format(name="turbo", copies="n"), "1.1")
    installed = install("second", "b", STRATEGY.format(name="turbo", copies="n"), "2.2")
    with pytest.raises(PluginError, match=r"'turbo' is offered by first 1.1 and by second 2.2; uninstall one"):
        load_registry(installed)


def test_one_distribution_found_twice_counts_once(install: Install) -> None:
    installed = install("slow-modes", "slow", STRATEGY.format(name="slow", copies="n"))
    assert set(load_registry(installed * 2).strategies) == {"slow"}


HOOK = "from trikv.api import hookimpl\n@hookimpl\ndef trikv_strategies(): return "


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import no_such_module", r"cannot be loaded: ModuleNotFoundError: No .* 'no_such_module', at .*_slow.py:1 \("),
        ("raise RuntimeError('two\\nlines')", "cannot be loaded: RuntimeError: two lines, at .*_slow.py:1"),
        ("raise RuntimeError('\\x1b[2J')", r"cannot be loaded: RuntimeError: \\x1b\[2J, at"),
        ("import sys\nsys.exit(3)", r"cannot be loaded: calls sys.exit\(3\), at .*_slow.py:2 \(sys.exit\(3\)\)"),
        ("raise BaseException('all')", "cannot be loaded: BaseException: all"),
        ("def broken(:", r"cannot be loaded: SyntaxError: .*_slow.py, line 1\)"),
        (
            "from trikv.api import hookimpl\n@hookimpl\ndef trikv_stratgies(): return []",
            "cannot be loaded: PluginValidationError: unknown hook 'trikv_stratgies'",
        ),
        (STRATEGY.replace("@hookimpl\n", ""), r"'slow' of .* trikv_strategies lacks the line @hookimpl above it"),
        ("x = 1", "offers nothing: it has no function trikv_strategies, trikv_storage_engines or trikv_provisioners"),
        (HOOK + "1 / 0", "fails in trikv_strategies: ZeroDivisionError: division by zero, at .*_slow.py:3"),
        (HOOK + "exit()", r"fails in trikv_strategies: calls sys.exit\(\)"),
        (HOOK + "None", "fails in .*TypeError"),
        (STRATEGY.format(name="slow", copies="n + 1"), r"strategy 'slow' of .* says copies\(1\) = 2"),
        (STRATEGY.format(name="slow", copies="0"), r"says copies\(1\) = 0, which is not from 1 to 1"),
        (STRATEGY.format(name="slow", copies="n / 2"), r"says copies\(1\) = 0.5"),
        (STRATEGY.format(name="slow", copies="[][n]"), r"fails in copies\(1\): IndexError: .*_slow.py:12"),
        (STRATEGY.format(name="Slow Mode", copies="n"), "needs a name"),
        (STRATEGY.format(name="slow", copies="n").replace("Promise.CP", "'CP'"), "needs a promise"),
        (STRATEGY.format(name="slow", copies="n").replace('"Speed."', '" "'), "needs a sentence for gives_up"),
        (
            STRATEGY.format(name="slow", copies="n").replace("Speed", "\\x1b]0;"),
            r"control character in gives_up, '\\x1b'",
        ),
        (STRATEGY.format(name="slow", copies="n").replace("Never", "\\n"), r"control character in use_when, '\\n'"),
        (STRATEGY.format(name="slow", copies="n").replace("[Mine()]", "[Mine]"), "is not an instance of"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_readable_line(install: Install, source: str, complaint: str) -> None:
    """It stops no one else; a refusal of its name, and of a name that nothing offers, says what is wrong with it."""
    install("other-modes", "other", STRATEGY.format(name="other", copies="n"))
    registry = load_registry(install("slow-modes", "slow", source))
    assert set(registry.strategies) == {"other"}
    (unusable,) = registry.unusable
    assert re.search(complaint, unusable.why)
    assert unusable.why.isprintable()
    assert (unusable.name, unusable.origin) == ("slow", "slow-modes 1.0")
    assert "slow-modes 1.0" in unusable.why
    for name in ("slow", "another"):
        with pytest.raises(Refused) as refused:
            registry.strategy(name)
        assert unusable.why in refused.value.detail


def test_metadata_that_cannot_be_read_concern_their_distribution_alone(install: Install, tmp_path: Path) -> None:
    install("other-modes", "other", STRATEGY.format(name="other", copies="n"))
    broken = tmp_path / "slow_modes-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-modes\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[trikv]\nslow\n")
    (tmp_path / "nameless-1.0.dist-info").mkdir()
    registry = load_registry(distributions(path=[str(tmp_path)]))
    assert set(registry.strategies) == {"other"}
    assert "slow-modes 1.0 cannot be" in " ".join(one.why for one in registry.unusable)


def test_one_broken_offer_leaves_its_plugins_others(install: Install) -> None:
    source = STRATEGY.format(name="good", copies="n").replace("[Mine()]", "[Mine(), Bad(), 7]")
    bad = 'class Bad(Mine):\n    name = "bad"\n    promise = None\n\n@hookimpl'
    registry = load_registry(install("modes", "modes", source.replace("@hookimpl", bad)))
    assert set(registry.strategies) == {"good"}
    assert [one.name for one in registry.unusable] == ["bad", "modes"]


def test_nothing_installed_says_how_to_install(install: Install) -> None:
    with pytest.raises(PluginError, match="pip install"):
        load_registry([])


class Uninstalled(Strategy):
    name = "uninstalled"
    promise = Promise.AP
    gives_up = use_when = protocol = "A sentence."

    def copies(self, n: int) -> int:
        return 1

    async def write(self, write: Write, replicas: ReplicaSet) -> None:
        await replicas.store(write)

    async def read(self, key: bytes, replicas: ReplicaSet) -> Record | None:
        return (await replicas.fetch(key, need=1))[0].record


class Needy(Uninstalled):
    name = "needy"

    def __init__(self, *stated: Any) -> None:
        self.stated = iter(stated)

    def copies(self, n: int) -> int:
        return n // 2 + 1

    def needs(self, n: int) -> Needs | None:
        answer = next(self.stated, None)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("stated", "complaint"),
    [
        (7, "it is a trikv.api.Needs, or None"),
        ((Need(1), Need(1)), "it is a trikv.api.Needs, or None"),
        (Needs(Need(1), 1), "its read is a trikv.api.Need"),  # type: ignore[arg-type]
        (Needs(Need(2), HEAD), "write has a count that is not from 1 to 1"),
        (Needs(Need(1), Need(0)), "read has a count that is not from 1 to 1"),
        (Needs(HEAD, Need(True)), "read has a count that is not from 1 to 1"),
        (Needs(Need(1, (1,)), HEAD), "write has places that are not a tuple of indices from -1 to 0"),
        (Needs(HEAD, Need(1, [0])), "read has places that are not a tuple"),  # type: ignore[arg-type]
        (ValueError("too few"), r"fails in needs\(1\): ValueError: too few"),
    ],
)
def test_needs_that_make_no_sense_are_named(stated: object, complaint: str) -> None:
    with pytest.raises(PluginError, match=f"'needy' of here .*{complaint}"):
        load_registry().with_strategy(Needy(stated), "here")


def test_a_write_needs_all_the_copies_that_it_claims() -> None:
    with pytest.raises(PluginError, match=r"a write cannot do with fewer than copies\(3\) = 2"):
        load_registry().with_strategy(Needy(None, None, Needs(Need(1), HEAD)), "here")


@pytest.mark.parametrize("later", [7, ValueError("too many"), Needs(Need(99), HEAD), None])
def test_needs_of_more_replicas_than_were_tried_are_assumed_where_they_make_no_sense(later: object) -> None:
    assert needs_of(Needy(later), 40, 21) == Needs(Need(21), Need(1))


def test_a_strategy_that_is_not_installed_can_join() -> None:
    registry = load_registry()
    wider = registry.with_strategy(Uninstalled(), "somewhere:Uninstalled")
    assert wider.strategy("uninstalled").copies(3) == 1
    assert wider.origins["uninstalled"] == "somewhere:Uninstalled"
    assert "uninstalled" not in registry.strategies
    with pytest.raises(PluginError, match="'uninstalled' is offered by somewhere:Uninstalled and by elsewhere"):
        wider.with_strategy(Uninstalled(), "elsewhere")


def test_modes_and_engines_share_their_names() -> None:
    class Rival(Uninstalled):
        name = "memory"

    with pytest.raises(PluginError, match=r"'memory' is offered by trikv .* and by rival"):
        load_registry().with_strategy(Rival(), "rival")


@pytest.mark.parametrize("attribute", ["gives_up", "use_when", "protocol", "promise", "name"])
def test_each_declaration_is_needed(attribute: str) -> None:
    lacking: Any = type("Lacking", (Uninstalled,), {attribute: None})()
    with pytest.raises(PluginError, match="needs a"):
        Registry().with_strategy(lacking, "here")
    with pytest.raises(PluginError, match="not an instance"):
        check_strategy(object(), "here")
