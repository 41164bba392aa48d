"""The modes and storage engines that are installed, under the entry-point group `trikv`.

trikv's own are found in the same way as any other distribution's. pluggy calls the plugins' hooks. The entry points are
loaded here and not by pluggy, since pluggy silently skips an entry point whose name is taken, and a user would get
another mode than the installed one. Two distributions that offer one name are refused, and both are named: one line at
the start, before any data is touched.

A plugin that cannot be imported, or that hands over something malformed, concerns only those that ask for it. It is
`Unusable`: the rest is loaded without it, the log and `trikv plugins` name it once, and the refusal of a name that it
offers says what is wrong with it (`foreign.py`).

Modes, engines and provisioners share one set of names. All this happens once, at the start, and never on a request's
path.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any, Final, TypeVar

import pluggy

from trikv.api import Hooks, Need, Needs, Promise, Provisioner, StorageEngine, Strategy
from trikv.core.errors import Refused
from trikv.core.quorums import assume_needs
from trikv.core.text import escape
from trikv.foreign import ForeignCodeError, foreign_code, told

GROUP: Final = "trikv"
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_REPLICAS_TRIED: Final = range(1, 17)  # for each such n, `copies(n)` must be from 1 to n
_SENTENCES: Final = ("gives_up", "use_when", "protocol")
_HOOKS: Final = ("trikv_strategies", "trikv_storage_engines", "trikv_provisioners")


Offer = TypeVar("Offer")

_log = logging.getLogger(__name__)


class PluginError(Exception):
    """A plugin cannot be used. The message is one line that names the plugin's distribution."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """What is installed and cannot be used.

    `name`: of what is offered, if that is known, or else of the plugin. `why`: one line that names the distribution.
    """

    name: str
    origin: str
    why: str


@dataclass(frozen=True)
class Registry:
    """What is installed. `origins` has for each name the distribution that brought it, with its version."""

    strategies: Mapping[str, Strategy] = field(default_factory=dict)
    storage_engines: Mapping[str, StorageEngine] = field(default_factory=dict)
    provisioners: Mapping[str, Provisioner] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    unusable: tuple[Unusable, ...] = ()

    def strategy(self, name: str) -> Strategy:
        """
        Raises:
          Refused: there is no such mode; `modes` lists the installed ones.
        """
        try:
            return self.strategies[name]
        except KeyError:
            modes = sorted(self.strategies)
            detail = f"{name!r} is none of {', '.join(modes)}{self.why_missing(name)}"
            raise Refused("unknown_mode", detail, modes=modes) from None

    def storage_engine(self, name: str) -> StorageEngine:
        """
        Raises:
          Refused: there is no such engine; `storage_engines` lists the installed ones.
        """
        return self._find(name, self.storage_engines, "storage engine")

    def provisioner(self, name: str) -> Provisioner:
        """
        Raises:
          Refused: there is no such provisioner; `provisioners` lists those that there are.
        """
        return self._find(name, self.provisioners, "provisioner")

    def why_missing(self, name: str) -> str:
        """What is known of plugins that may offer this name and cannot be used, to be added to a refusal.

        A plugin that cannot be imported may offer any name, so without one of that name all are told.
        """
        known = [one for one in self.unusable if one.name == name] or self.unusable
        return "".join(f"; {one.why}" for one in known)

    def _find(self, name: str, offers: Mapping[str, Offer], kind: str) -> Offer:
        if name in offers:
            return offers[name]
        names = sorted(offers)
        detail = f"{name!r} is no installed {kind}; there are {', '.join(names)}{self.why_missing(name)}"
        raise Refused("bad_request", detail, **{f"{kind.replace(' ', '_')}s": names})

    def with_strategy(self, strategy: Strategy, origin: str) -> Registry:
        """This registry with one strategy more, which need not be installed.

        Raises:
          PluginError: the strategy is malformed, or its name is taken.
        """
        check_strategy(strategy, origin)
        return replace(
            self,
            strategies={**self.strategies, strategy.name: strategy},
            origins=self._with_origin(strategy.name, origin),
        )

    def with_storage_engine(self, engine: StorageEngine, origin: str) -> Registry:
        """This registry with one storage engine more; as `with_strategy`."""
        check_storage_engine(engine, origin)
        return replace(
            self,
            storage_engines={**self.storage_engines, engine.name: engine},
            origins=self._with_origin(engine.name, origin),
        )

    def with_provisioner(self, provisioner: Provisioner, origin: str) -> Registry:
        """As `with_strategy`."""
        check_provisioner(provisioner, origin)
        return replace(
            self,
            provisioners={**self.provisioners, provisioner.name: provisioner},
            origins=self._with_origin(provisioner.name, origin),
        )

    def _with_origin(self, name: str, origin: str) -> dict[str, str]:
        if name in self.origins:
            raise PluginError(f"{name!r} is offered by {self.origins[name]} and by {origin}; uninstall one of them")
        return {**self.origins, name: origin}


def load_registry(installed: Iterable[Distribution] | None = None) -> Registry:
    """Everything that the installed distributions (default: those of this Python) offer, and what cannot be used.

    Raises:
      PluginError: two offer one name, or no mode can be used.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    plugins: dict[str, _Plugin] = {}
    unusable: list[Unusable] = []
    for plugin in _plugins(distributions() if installed is None else installed, unusable):
        if plugin.name in plugins:
            raise PluginError(
                f"the plugin {plugin.name!r} is offered by {plugins[plugin.name].origin} and by {plugin.origin}; "
                "uninstall one of them"
            )
        plugins[plugin.name] = plugin
        try:
            _register(manager, plugin)
        except PluginError as error:
            unusable.append(Unusable(plugin.name, plugin.origin, str(error)))
    registry = Registry()
    for hook, check, with_offer in (
        (manager.hook.trikv_storage_engines, check_storage_engine, Registry.with_storage_engine),
        (manager.hook.trikv_provisioners, check_provisioner, Registry.with_provisioner),
        (manager.hook.trikv_strategies, check_strategy, Registry.with_strategy),
    ):
        for plugin, offers in _handed_over(hook, plugins, unusable):
            for offer in offers:
                try:
                    check(offer, plugin.origin)
                except PluginError as error:
                    unusable.append(Unusable(_name_of(offer) or plugin.name, plugin.origin, str(error)))
                    continue
                registry = with_offer(registry, offer, plugin.origin)
    registry = replace(registry, unusable=tuple(unusable))
    if not registry.strategies:
        raise PluginError(
            "no mode is installed, not even trikv's own: pip install trikv (a checkout: pip install -e .)"
            + registry.why_missing("")
        )
    return registry


@dataclass(frozen=True, slots=True)
class _Plugin:
    """An entry point of the group, and the name and version of its distribution."""

    entry_point: EntryPoint
    origin: str

    @property
    def name(self) -> str:
        return self.entry_point.name

    def complaint(self, text: str) -> PluginError:
        return PluginError(f"the plugin {self.name!r} of {self.origin} ({escape(self.entry_point.value)}) {text}")


def _plugins(installed: Iterable[Distribution], unusable: list[Unusable]) -> list[_Plugin]:
    """Each entry point of the group, in the order of their names.

    A distribution that is found twice counts once: imports do not see a copy further down the path either. One whose
    metadata cannot be read is unusable.
    """
    found: dict[str, list[_Plugin]] = {}
    for distribution in installed:
        name = origin = "a distribution without a name"
        try:
            name, origin = distribution.name, escape(f"{distribution.name} {distribution.version}")
            plugins = [_Plugin(one, origin) for one in distribution.entry_points if one.group == GROUP]
        except Exception as error:  # noqa: BLE001 the file may hold anything
            unusable.append(Unusable(name, origin, f"the entry points of {origin} cannot be read: {told(error)}"))
            continue
        if plugins:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), plugins)
    return sorted((plugin for plugins in found.values() for plugin in plugins), key=lambda plugin: plugin.name)


def _register(manager: pluggy.PluginManager, plugin: _Plugin) -> None:
    """Import the plugin, and let pluggy look for its hooks.

    Raises:
      PluginError: it cannot be imported, or has a hook that trikv does not have, or none of those that trikv has.
    """
    try:
        with foreign_code(plugin.entry_point.module):
            module: object = plugin.entry_point.load()
            try:
                manager.register(module, name=plugin.name)
                manager.check_pending()  # a hook that trikv does not have is a typo, or a later trikv's
            except BaseException:
                if manager.has_plugin(plugin.name):
                    manager.unregister(name=plugin.name)
                raise
    except ForeignCodeError as error:
        raise plugin.complaint(f"cannot be loaded: {error}") from error
    offered = {caller.name for caller in manager.get_hookcallers(module) or ()}
    unmarked = [name for name in _HOOKS if name not in offered and callable(getattr(module, name, None))]
    if unmarked:
        complaint = f"cannot be used: {unmarked[0]} lacks the line @hookimpl above it (from trikv.api import hookimpl)"
    elif not offered:
        complaint = (
            f"offers nothing: it has no function {', '.join(_HOOKS[:-1])} or {_HOOKS[-1]}; the entry point names "
            "the module that has one"
        )
    else:
        return
    manager.unregister(name=plugin.name)
    raise plugin.complaint(complaint)


def _handed_over(
    hook: pluggy.HookCaller, plugins: Mapping[str, _Plugin], unusable: list[Unusable]
) -> Iterable[tuple[_Plugin, list[Any]]]:
    """What each plugin's implementation of the hook returns, in the order of the plugins' names.

    Each implementation is called on its own: the hook as a whole would give one list, without origins.
    """
    for implementation in sorted(hook.get_hookimpls(), key=lambda one: one.plugin_name):
        plugin = plugins[implementation.plugin_name]
        try:
            with foreign_code(plugin.entry_point.module):
                handed_over: Any = implementation.function()
                offers = list(handed_over)
        except ForeignCodeError as error:
            why = f"the plugin {plugin.name!r} of {plugin.origin} fails in {hook.name}: {error}"
            unusable.append(Unusable(plugin.name, plugin.origin, why))
            continue
        yield plugin, offers


# --- what a plugin hands over -----------------------------------------------------------------------------------------


def check_strategy(strategy: object, origin: str) -> None:
    """
    Raises:
      PluginError: it lacks something that trikv prints or relies on.
    """
    complain = _check_kind("strategy", strategy, Strategy, origin)
    assert isinstance(strategy, Strategy)
    if not isinstance(getattr(strategy, "promise", None), Promise):
        raise complain("needs a promise: Promise.CP or Promise.AP")
    if not isinstance(strategy.compare_and_set, bool):
        raise complain("needs compare_and_set to be True or False")
    for sentence in _SENTENCES:
        text = getattr(strategy, sentence, None)
        if not isinstance(text, str) or not text.strip():
            raise complain(f"needs a sentence for {sentence}")
        _check_printable(text, sentence, complain)
    _check_printable(strategy.paper, "paper", complain)
    for n in _REPLICAS_TRIED:
        try:
            with foreign_code(type(strategy).__module__):
                copies: object = strategy.copies(n)
        except ForeignCodeError as error:
            raise complain(f"fails in copies({n}): {error}") from error
        if not can_keep(copies, n):
            raise complain(f"says copies({n}) = {_shown(copies)}, which is not from 1 to {n}")
        try:
            with foreign_code(type(strategy).__module__):
                needs: object = strategy.needs(n)
        except ForeignCodeError as error:
            raise complain(f"fails in needs({n}): {error}") from error
        if (wrong := _find_wrong(needs, copies, n)) is not None:
            raise complain(f"says needs({n}) = {_shown(needs)}: {wrong}")


def _check_printable(text: object, what: str, complain: Callable[[str], PluginError]) -> None:
    """A terminal obeys control characters, and a table breaks at a line's end."""
    if not isinstance(text, str):
        raise complain(f"needs a text for {what}, not {_shown(text)}")
    if unprintable := next((c for c in text if not c.isprintable()), None):
        raise complain(f"has a control character in {what}, {unprintable!r}; sentences are one line of printable text")


def can_keep(copies: object, replicas: int) -> bool:
    """Is `copies` a number of copies that so many replicas can keep: an integer from 1 to `replicas`?"""
    return isinstance(copies, int) and not isinstance(copies, bool) and 1 <= copies <= replicas


def needs_of(strategy: Strategy, n: int, copies: int) -> Needs:
    """What the strategy states of its needs of `n` replicas, or what is assumed if it states nothing. `copies`: W."""
    try:
        stated = strategy.needs(n)
        wrong = _find_wrong(stated, copies, n)
    except Exception as error:  # noqa: BLE001 a strategy is a stranger's code
        stated, wrong = None, told(error)
    if wrong is not None:  # this `n` was not tried when it was loaded, or it does not repeat itself
        _log.debug("what mode %s needs of %d replicas is assumed: %s", strategy.name, n, wrong)
    return assume_needs(strategy.promise, copies, n) if stated is None or wrong is not None else stated


def _find_wrong(needs: object, copies: object, n: int) -> str | None:
    """What is wrong with these needs of `n` replicas; None: nothing."""
    if needs is None:
        return None
    if not isinstance(needs, Needs):
        return "it is a trikv.api.Needs, or None"
    stated: tuple[tuple[str, object], ...] = (("write", needs.write), ("read", needs.read))
    for name, need in stated:
        if not isinstance(need, Need):
            return f"its {name} is a trikv.api.Need"
        if not can_keep(need.count, n):
            return f"{name} has a count that is not from 1 to {n}"
        places: object = need.places
        if not isinstance(places, tuple) or not all(_is_place(place, n) for place in places):
            return f"{name} has places that are not a tuple of indices from {-n} to {n - 1}"
    if isinstance(copies, int) and needs.write.count < copies:
        return f"a write cannot do with fewer than copies({n}) = {copies}"
    return None


def _is_place(place: object, n: int) -> bool:
    return isinstance(place, int) and not isinstance(place, bool) and -n <= place < n


def check_storage_engine(engine: object, origin: str) -> None:
    """
    Raises:
      PluginError: it lacks something that trikv prints or relies on.
    """
    complain = _check_kind("storage engine", engine, StorageEngine, origin)
    if not isinstance(getattr(engine, "durable", None), bool):
        raise complain("needs durable to be True or False")
    _check_printable(description_of(engine), "the first line of its docstring", complain)


def check_provisioner(provisioner: object, origin: str) -> None:
    """
    Raises:
      PluginError: it lacks something that trikv prints or relies on.
    """
    complain = _check_kind("provisioner", provisioner, Provisioner, origin)
    if not isinstance(getattr(provisioner, "can_break", None), bool):
        raise complain("needs can_break to be True or False")
    _check_printable(description_of(provisioner), "the first line of its docstring", complain)


def description_of(offer: object) -> str:
    """What an engine or a provisioner says of itself: the first line of its docstring."""
    return (type(offer).__doc__ or "").strip().partition("\n")[0].strip()


def _name_of(offer: object) -> str | None:
    """The name of an offer, if it has one that a user can type."""
    name = getattr(offer, "name", None)
    return name if isinstance(name, str) and _NAME.fullmatch(name) else None


def _shown(value: object) -> str:
    try:
        return escape(repr(value))
    except Exception:  # noqa: BLE001 a plugin's code may raise anything
        return f"a {type(value).__name__}"


def _check_kind(kind: str, offer: object, base: type, origin: str) -> Callable[[str], PluginError]:
    """Check what all kinds of offers need; what makes further complaints about this one.

    Raises:
      PluginError: it is no instance of `base`, or has no name that trikv can use.
    """
    name = getattr(offer, "name", None)

    def complain(complaint: str) -> PluginError:
        called = type(offer).__name__ if name is None else name
        return PluginError(f"the {kind} {_shown(called)} of {origin} {complaint}")

    if not isinstance(offer, base):
        raise complain(f"is not an instance of trikv.api.{base.__name__}")
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise complain("needs a name of lower-case letters, digits, - and _")
    return complain
