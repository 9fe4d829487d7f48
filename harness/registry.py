"""Classes by name, loaded lazily: built in, declared by installed packages as entry points, or from a file given with ``--plugin``.

Listing names imports nothing. A plug-in file defines subclasses of `harness.methods.base.Method` or `harness.datasets.base.Benchmark`
with a ``name``; it need not call anything here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any, Literal

from harness import methods
from harness.methods.parts.placement import MethodError
from harness.system.errors import UsageError, did_you_mean, line_in

SEGMENTED = {
    "kvasir": "harness.datasets.kvasir:Kvasir",
    "cvc612": "harness.datasets.cvc612:CVC612",
    "isic2017": "harness.datasets.isic2017:ISIC2017",
    "camo": "harness.datasets.camo:CAMO",
    "sbu": "harness.datasets.sbu:SBU",
    "leaf": "harness.datasets.leaf:Leaf",
    "road": "harness.datasets.road:Road",
    "trans10k_v1": "harness.datasets.trans10k_v1:Trans10KV1",
    "trans10k_v2": "harness.datasets.trans10k_v2:Trans10KV2",
}
"""The benchmarks, all of images with masks."""

JOINT = {"polyp": "harness.datasets.polyp:Polyp"}
"""Benchmarks that combine several of those for training; ``all`` does not include them."""

METHOD_GROUP = "sam_peft_harness.methods"
BENCHMARK_GROUP = "sam_peft_harness.benchmarks"


def canonical_spelling(name: str) -> str:
    """One spelling for hyphens, underscores and any case: ``Trans10K-v1`` is ``trans10k_v1``."""
    return name.strip().lower().replace("-", "_")


class Registry:
    """Classes by name, each imported when it is first used.

    Args:
        kind: what an entry is, for messages (``method``, ``benchmark``).
        builtin: the project's own entries.
        group: entry-point group by which installed packages join.
        base: ``module:Class`` that every loaded entry must subclass.
        fault: why a class from outside cannot be used, empty where it can.
        further: the project's own entries that can be named but are not listed.
        aliases: other names of entries.
        left_out: why a known name has no entry, empty where the name is not known.
    """

    def __init__(
        self,
        kind: str,
        *,
        builtin: Mapping[str, str],
        group: str,
        base: str,
        fault: Callable[[Any], str] = lambda loaded: "",
        further: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        left_out: Callable[[str], str] = lambda name: "",
    ) -> None:
        self.kind = kind
        self._base = base
        self._fault = fault
        self._left_out = left_out
        self._further, self._aliases = dict(further or {}), dict(aliases or {})
        self._entries = {name: EntryPoint(name, value, group) for name, value in {**builtin, **self._further}.items()}
        self._loaded: dict[str, type] = {}
        for point in entry_points(group=group):
            self._entries.setdefault(canonical_spelling(point.name), point)

    def names(self) -> list[str]:
        listed = [name for name in self._entries if name not in self._further]
        return [*listed, *(name for name in self._loaded if name not in self._entries)]

    def __contains__(self, name: str) -> bool:
        """Whether the name is known; a name from a plug-in is known once its file is loaded."""
        try:
            return bool(self.resolve(name))
        except UsageError:
            return False

    def resolve(self, name: str) -> str:
        """The canonical name.

        Raises:
            UsageError: the name is unknown; the message has the nearest name.
        """
        spelling = self._aliases.get(canonical_spelling(name), canonical_spelling(name))
        if spelling in self._entries or spelling in self._loaded:
            return spelling
        by_letters = {known.replace("_", ""): known for known in self.names()}
        if spelling.replace("_", "") in by_letters:
            return by_letters[spelling.replace("_", "")]
        if reason := self._left_out(spelling):
            raise UsageError(f"{self.kind} {name!r} is not available: it {reason}")
        raise UsageError(f"unknown {self.kind} {name!r}{did_you_mean(name, [*self.names(), *self._further])}")

    def get(self, name: str) -> Any:
        """The class of ``name``; imports its module.

        Raises:
            UsageError: unknown, broken on import, not of the right base class, or unusable.
        """
        name = self.resolve(name)
        if name not in self._loaded:
            entry = self._entries[name]
            try:
                loaded = entry.load()
            except (Exception, SystemExit) as error:
                reason = f"{type(error).__name__}: {error}"
                raise UsageError(f"{self.kind} {name!r} ({entry.value}) cannot be imported: {reason}") from error
            if not self.accepts(loaded):
                raise UsageError(f"{self.kind} {name!r} must be a subclass of {self._base}, not {loaded!r}")
            if reason := self._fault(loaded):
                raise UsageError(f"{self.kind} {name!r} ({entry.value}) cannot be used: {reason}")
            self._loaded[name] = loaded
        return self._loaded[name]

    def accepts(self, candidate: object) -> bool:
        """Whether ``candidate`` is a class of this registry's kind."""
        base = EntryPoint("base", self._base, "").load()
        return isinstance(candidate, type) and issubclass(candidate, base)

    def refusal(self, name: str, loaded: type) -> str:
        """Why a plug-in's class cannot be registered, empty where it can: its name is taken, or it is unusable."""
        name = canonical_spelling(name)
        earlier = self._loaded.get(name)
        if self.is_fixed(name) or (earlier is not None and earlier.__module__ != loaded.__module__):
            return f"{self.kind} {name!r} exists already; give the plug-in's class another name"
        reason = self._fault(loaded)
        return f"{self.kind} {name!r} cannot be used: {reason}" if reason else ""

    def is_fixed(self, name: str) -> bool:
        """Whether ``name`` is built in or comes from an installed package."""
        return name in self._entries or name in self._aliases

    def add(self, name: str, loaded: type) -> None:
        """Register a plug-in's class; check `refusal` first."""
        self._loaded[canonical_spelling(name)] = loaded


def config_fault(method: Any) -> str:
    """Why the ``config_class`` of a method cannot give options and a count of parameters, empty where it can."""
    from harness.methods.base import MethodConfig

    config = getattr(method, "config_class", None)
    if not (isinstance(config, type) and is_dataclass(config) and issubclass(config, MethodConfig)):
        return "its config_class must be a dataclass below harness.methods.base.MethodConfig"
    known = {field.name for field in fields(config)}
    for base in config.__mro__:
        for name, kind in inspect.get_annotations(base).items():
            if name not in known and "ClassVar" not in str(kind):
                return f"{name} is not a field of its config_class: {base.__name__} lacks @dataclass(frozen=True, kw_only=True)"
    if config.encoder_parameters is MethodConfig.encoder_parameters:
        return "its config_class has no encoder_parameters(shape); give the closed form of how many parameters train in the encoder"
    try:
        config()
    except Exception as error:
        return f"its config_class cannot be made from its defaults: {type(error).__name__}: {error}"
    return ""


METHODS = Registry(
    "method",
    builtin={name: entry.where for name, entry in methods.BUILTIN.items()},
    group=METHOD_GROUP,
    base="harness.methods.base:Method",
    fault=config_fault,
    further={name: entry.where for name, entry in methods.PEFT_METHODS.items()},
    aliases=methods.ALIASES,
    left_out=methods.reason_left_out,
)
BENCHMARKS = Registry(
    "benchmark", builtin=SEGMENTED, group=BENCHMARK_GROUP, base="harness.datasets.base:Benchmark", further=JOINT
)


def dataset_name(name: str) -> str:
    """The canonical name of a benchmark, or of a user's data set. Raises UsageError: no file could be named after it."""
    if "/" in name or name in (".", ".."):
        called = re.sub(r"[^a-z0-9_]+", "_", PurePath(name).name.lower()).strip("_") or "tiles"
        raise UsageError(
            f"{name} is a folder without a name: give data of your own as NAME=DIR, such as {called}={name}"
        )
    try:
        return BENCHMARKS.resolve(name)
    except UsageError:
        own_name = canonical_spelling(name)
    if not re.fullmatch(r"[a-z0-9_]{1,100}", own_name) or own_name == "all":
        raise UsageError(f"the data set's name {name!r} must be letters, digits, - and _ only, and not 'all'") from None
    return own_name


def add_own(name: str, classes: Sequence[str], *, labels: bool = False) -> None:
    """Register a user's data set as a benchmark in this process (`harness.datasets.own`)."""
    from harness.datasets.own import OwnBenchmark, OwnLabels, own_benchmark

    BENCHMARKS.add(name, own_benchmark(name, classes, OwnLabels if labels else OwnBenchmark))


def add_own_of(name: str, rules: Mapping[str, Any]) -> None:
    """Do what `add_own` does, by the rules of a run; do nothing for other benchmarks.

    Raises:
        UsageError: the run's benchmark is one of the harness's.
    """
    classes = rules.get("own_classes")
    if not classes:
        return
    if dataset_name(name) != name or BENCHMARKS.is_fixed(name) or len(classes) < 2:
        raise UsageError(f"the run names {name!r} as a data set of your own, which is not possible")
    add_own(name, [str(label) for label in classes], labels=rules.get("task") == "classification")


def is_own(name: str) -> bool:
    """Whether a known benchmark is a user's data set."""
    return bool(BENCHMARKS.get(name).own)


def arxiv_of(method: str) -> str:
    """The arXiv id of a built-in method's paper; empty for others, and where the paper is elsewhere."""
    entry = methods.BUILTIN.get(method)
    return entry.paper if entry and re.fullmatch(r"\d{4}\.\d{5}", entry.paper) else ""


def method_config_class(name: str) -> Any:
    """The configuration dataclass of a method, whose module this imports, and with it torch."""
    return METHODS.get(name).config_class


def option_names(name: str) -> set[str]:
    """The names of a method's options; a built-in method is not imported for them."""
    known = methods.default_options(name := METHODS.resolve(name))
    return set(known or (field.name for field in fields(METHODS.get(name).config_class)))


def trains(name: str) -> Literal["own", "decoder", "nothing"]:
    """The parts that train under a method: own parts, the mask decoder alone, or nothing; no built-in method is imported for this."""
    if entry := {**methods.BUILTIN, **methods.PEFT_METHODS}.get(name := METHODS.resolve(name)):
        return entry.trains
    config = METHODS.get(name).config_class()
    own = config.trains_encoder or config.freezes_decoder
    return "nothing" if not config.trains else "own" if own else "decoder"


def method_config(name: str, values: Mapping[str, Any]) -> Any:
    """The configuration of a method from field values; strings become the fields' types.

    Raises:
        UsageError: unknown method or field, wrong type, or a plug-in's configuration that fails.
        MethodError: a value that the method refuses.
    """
    from harness.check import from_mapping

    name = METHODS.resolve(name)
    try:
        return from_mapping(method_config_class(name), values, where=f"method {name}")
    except (UsageError, MethodError):
        raise
    except Exception as error:
        raise UsageError(f"method {name}: its configuration fails: {type(error).__name__}: {error}") from error


def recorded_option(method: str, option: str, value: Any) -> Any:
    """An option's value as records hold it: YAML reads ``1e-3`` as text and ``8`` as a whole number, whatever the option's own type."""
    default = methods.default_options(method).get(option)
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(str(value).lower(), value)
    is_number = isinstance(default, float) and isinstance(value, int)
    if isinstance(default, str) or not (isinstance(value, str) or is_number):
        return value
    try:
        return int(value) if isinstance(default, int) else float(value)
    except ValueError:
        return value


def load_plugin(path: Path) -> list[str]:
    """Import a plug-in file and register every method and benchmark it defines; returns their names.

    Raises:
        UsageError: the file is missing, fails on import, defines neither, uses a name that exists, or has a method with an unusable
            configuration. Nothing from the file is registered then.
    """
    if not path.is_file():
        raise UsageError(f"--plugin {path}: no such file")
    # Dataclasses and type hints look up their module by name. The hash distinguishes two files of one name, and is the same for
    # the copy that a sweep has frozen.
    name = f"harness_plugin_{path.stem}_{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--plugin {path}: is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        defined = _defined(module)
        reasons = [reason for item in defined if (reason := item[0].refusal(*item[1:]))]  # its classes may run code too
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(
            f"--plugin {path} fails on import: {type(error).__name__}: {error}{line_in(module.__file__, error)}"
        ) from error
    if not defined:
        raise UsageError(
            f"--plugin {path} defines no named subclass of harness.methods.base:Method or harness.datasets.base:Benchmark"
        )
    if reasons:
        raise UsageError(f"--plugin {path}: {reasons[0]}")
    for registry, called, value in defined:
        registry.add(called, value)
    return [canonical_spelling(called) for _, called, _ in defined]


def _defined(module: ModuleType) -> list[tuple[Registry, str, type]]:
    """Registry, name and class of every method and benchmark that a plug-in's own module defines."""
    defined = []
    for value in vars(module).values():
        called = getattr(value, "name", None)
        if isinstance(value, type) and value.__module__ == module.__name__ and isinstance(called, str):
            defined += [(registry, called, value) for registry in (METHODS, BENCHMARKS) if registry.accepts(value)]
    return defined
