"""Settings: one TOML file, and variables ``SAM_PEFT_…`` that override it. They are plain data: nothing in them is executed.

The file is the one that ``SAM_PEFT_SETTINGS`` names, else ``harness.toml`` in the working folder, else the user's own.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.check import from_mapping
from harness.system.errors import UsageError, did_you_mean
from harness.system.files import bounded_text

_PREFIX = "SAM_PEFT_"
FILE = f"{_PREFIX}SETTINGS"
"""The variable that names the file; ``none`` ignores files and variables."""
HERE = Path("harness.toml")
_MOST_BYTES = 100_000
CACHE_GIB = 64.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings; a field is empty where nothing is set. Paths in a file are relative to its folder; ``~`` is the user's home.

    Args:
        cluster: the name of a profile, or the path of one, whose setup lines are commands.
        cache, cache_gib: folder of decoded images and embeddings, and its largest size. Variables such as ``$TMPDIR`` are those
            of the node of a run. Empty for a folder in the results.
        datasets, checkpoints: paths by the names in the file.
        source: the file that was read, for messages; empty where none was.
    """

    protocol: str = ""
    data: Path | None = None
    results: Path = Path("runs")
    cluster: str = ""
    cache: str = ""
    cache_gib: float = CACHE_GIB
    plugins: tuple[Path, ...] = ()
    datasets: Mapping[str, Path] = field(default_factory=dict)
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.cache_gib < 1e6:
            raise ValueError(f"cache_gib={self.cache_gib:g} is not a size in GiB, such as 200; 0 caches nothing")


VARIABLES = {_PREFIX + key.upper(): key for key in ("protocol", "data", "results", "cluster", "cache", "cache_gib")}


def user_file(environment: Mapping[str, str] = os.environ) -> Path:
    """``~/.config/sam-peft-harness/settings.toml``, or below ``XDG_CONFIG_HOME``."""
    base = environment.get("XDG_CONFIG_HOME", "")
    folder = Path(base if os.path.isabs(base) else os.path.expanduser("~/.config"))
    return folder / "sam-peft-harness" / "settings.toml"


def load_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of the file, overridden by the environment; ``SAM_PEFT_DATA`` also overrides the file's ``datasets``. Raises UsageError:
    a file that cannot be read, an unknown key (with the nearest name), a value of the wrong type, or a ``harness.toml`` that names code
    and that no variable names, since it may have come with a downloaded folder."""
    named = environment.get(FILE, "")
    if named == "none":
        return Settings()
    there = [path for path in (HERE, user_file(environment)) if os.path.lexists(path)]
    path = Path(named).expanduser() if named else next(iter(there), None)
    values = _values(_toml(path), base=path.parent, where=str(path)) if path is not None else {}
    if path == HERE and not named and ("plugins" in values or is_profile_file(values.get("cluster", ""))):
        raise UsageError(
            f"{HERE} sets plug-ins or a cluster's file, which are code, and may have come with this folder; if you trust it, set the "
            f"variable {FILE}={HERE}, else remove them and give --plugin FILE.py or --cluster FILE.yaml"
        )
    overrides: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(_PREFIX) or variable == FILE or not text:
            continue
        if variable not in VARIABLES:
            near = did_you_mean(variable.removeprefix(_PREFIX), VARIABLES.values())
            raise UsageError(f"{variable} in the environment is not a setting: unknown key{near}; unset it")
        overrides |= _values({VARIABLES[variable]: text}, base=Path(), where=variable)
    if "data" in overrides:
        values["datasets"] = {}
    return Settings(**{**values, **overrides}, source=str(path or ""))


def named_table(
    settings: Settings, table: Literal["datasets", "checkpoints"], resolve: Callable[[str], str]
) -> dict[str, Path]:
    """A table by the names that ``resolve`` gives. Raises UsageError: a name that it refuses, with the file of that name."""
    try:
        return {resolve(name): path for name, path in getattr(settings, table).items()}
    except UsageError as error:
        raise UsageError(f"{settings.source}: {table}: {error}") from error


def is_profile_file(cluster: str) -> bool:
    """Whether a cluster is given as the path of a file, not as the name of a profile."""
    return bool(cluster) and re.fullmatch(r"[\w-]+", cluster) is None


def _toml(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise UsageError(f"settings {path} is not a file")
    try:
        return tomllib.loads(bounded_text(path, where=f"settings {path}", most=_MOST_BYTES))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f'settings {path}: {error}; write values as in data = "/data"') from error


def _values(written: Mapping[str, Any], *, base: Path, where: str) -> dict[str, Any]:
    """Checked values, with paths relative to the folder ``base``."""
    for key, value in written.items():
        texts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
        if blank := [text for text in texts if isinstance(text, str) and (not text.strip() or "\0" in text)]:
            raise UsageError(f"{where}: {key}={blank[0]!r} is empty, or not the name of a file")
        if key == "source":
            raise UsageError(f"{where}: unknown key {key!r}")
    checked = from_mapping(Settings, written, where=where)

    def path(text: Path | str) -> Path:
        return base / os.path.expanduser(text)

    values: dict[str, Any] = {}
    for key in written:
        value = values[key] = getattr(checked, key)
        if isinstance(value, Path):
            values[key] = path(value)
        elif isinstance(value, tuple):
            values[key] = tuple(map(path, value))
        elif isinstance(value, Mapping):
            words = ("none", "published") if key == "checkpoints" else ()
            values[key] = {name: item if str(item) in words else path(item) for name, item in value.items()}
        elif _is_file(key, value):  # absolute, since ./gpu would become the name gpu
            values[key] = str(path(value).absolute())
    return values


def _is_file(key: str, value: Any) -> bool:
    """Whether a protocol, a cluster or a cache is given as a path relative to the file; a cache may begin with a variable instead."""
    if key == "cluster":
        return is_profile_file(value)
    return value.endswith((".yaml", ".yml")) if key == "protocol" else key == "cache" and value[0] not in "/~$"
