"""Settings from two files and the environment. They are plain data: nothing in a file is executed, and no key is guessed.

`KEYS` lists what may be set, with its kind and its explanation; files, variables and the printed list are made from it.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.check import from_mapping
from harness.system.errors import UsageError, did_you_mean, os_reason
from harness.system.files import bounded_text

PREFIX = "SAM_PEFT_"
SWITCHES = (f"{PREFIX}RECORD_CACHE", f"{PREFIX}BF16")
"""Variables that change how something is done and never what comes out: ``off`` does it the plain way."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One setting.

    Args:
        name: in a file.
        kind: a ``value``, a list of ``paths``, or a ``table`` of names to paths.
        help: one line on what it is for.
        example: as a file would say it.
        option: of the command line, which beats it.
    """

    name: str
    kind: Literal["value", "paths", "table"] = "value"
    help: str
    example: str
    option: str

    @property
    def variable(self) -> str:
        """The environment variable that beats the files."""
        return PREFIX + self.name.upper()


KEYS = (
    Key(
        name="protocol",
        help="the card of rules (default: nas-lora where data is set, demo where nothing is)",
        example='protocol = "nas-lora"',
        option="--protocol",
    ),
    Key(
        name="data",
        help="the folder that holds the benchmarks' folders",
        example='data = "/data/segmentation"',
        option="--data",
    ),
    Key(
        name="results",
        help="where records, tables and checkpoints go (default: runs)",
        example='results = "runs"',
        option="--results",
    ),
    Key(
        name="cluster",
        help="the SLURM profile that runs are submitted with (default: none, they run here)",
        example='cluster = "gpu"',
        option="--cluster",
    ),
    Key(
        name="seeds",
        help="a number of seeds, or a list of them (default: 1)",
        example="seeds = 3",
        option="--seeds",
    ),
    Key(
        name="plugins",
        kind="paths",
        help="files that define more methods or benchmarks; they are code",
        example='plugins = ["my_method.py"]',
        option="--plugin",
    ),
    Key(
        name="datasets",
        kind="table",
        help="folders of single benchmarks that lie elsewhere, and of data of your own by any name",
        example='kvasir = "/data/Kvasir-SEG"',
        option="--dataset-root",
    ),
    Key(
        name="checkpoints",
        kind="table",
        help='pretrained weights, one a backbone ("none": random; "published": downloaded)',
        example='vit_h = "/data/sam_vit_h_4b8939.pth"',
        option="--checkpoint",
    ),
)


HERE = Path("harness.toml")
INSTEAD = f"{PREFIX}SETTINGS"
"""Names one file to read in the place of both; ``none`` leaves out the other variables too."""
MOST_BYTES = 100_000


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a value comes from.

    Args:
        name: a file or an environment variable, as people call it.
        foreign: why the user may not have written it, empty where only the user can have.
    """

    name: str
    foreign: str = ""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings; a field is empty where nothing is set.

    Args:
        seeds: as the command line takes them, ``3`` or ``0,3,7``.
        datasets, checkpoints: names as they were written, those of the highest level last.
        origins: key, or ``datasets.NAME`` and ``checkpoints.NAME``, to where the value comes from; absent for defaults.
    """

    protocol: str = ""
    data: Path | None = None
    results: Path = Path("runs")
    cluster: str = ""
    seeds: str = ""
    plugins: tuple[Path, ...] = ()
    datasets: Mapping[str, Path] = field(default_factory=dict)
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Written:
    """The keys of one source as they are written there; `_seeds` says what seeds may be."""

    protocol: str = ""
    data: str = ""
    results: str = ""
    cluster: str = ""
    seeds: Any = ""
    plugins: tuple[str, ...] = ()
    datasets: dict[str, str] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Level:
    """Raw values of one source, the folder that relative paths in it start from (None: none may), and their origins."""

    values: Mapping[str, Any]
    base: Path | None
    origins: Mapping[str, Origin]


def user_file(environment: Mapping[str, str] = os.environ) -> Path:
    """``~/.config/sam-peft-harness/settings.toml``, or below ``XDG_CONFIG_HOME``; of a user who has no home, in the root folder."""
    base = environment.get("XDG_CONFIG_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~/.config"))
    folder = folder if folder.is_absolute() else Path("/.config")
    return folder / "sam-peft-harness" / "settings.toml"


def load_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """What files and environment say, the environment above ``harness.toml`` of the working folder above the user's file.

    Where a level says ``data``, the folders of single benchmarks that lower levels name do not count.

    Raises:
        UsageError: a file that cannot be read, an unknown key (with the nearest name), or a value of the wrong kind.
    """
    merged: dict[str, Any] = {"datasets": {}, "checkpoints": {}}
    origins: dict[str, Origin] = {}
    for level in _levels(environment):
        if "data" in level.values:
            for name in merged["datasets"]:
                del origins[f"datasets.{name}"]
            merged["datasets"] = {}
        for key in KEYS:
            if key.name not in level.values:
                continue
            origin = level.origins[key.name]
            value = _resolved(key.name, level.values[key.name], base=level.base, where=origin.name)
            if key.kind != "table":
                merged[key.name], origins[key.name] = value, origin
                continue
            for name, path in value.items():
                merged[key.name].pop(name, None)  # the highest level comes last
                merged[key.name][name], origins[f"{key.name}.{name}"] = path, origin
    return Settings(**merged, origins=origins)


def named_table(
    settings: Settings, table: Literal["datasets", "checkpoints"], resolve: Callable[[str], str]
) -> dict[str, Path]:
    """A table under the names that ``resolve`` gives.

    Raises:
        UsageError: a name that ``resolve`` refuses; says where it stands.
    """
    resolved = {}
    for name, path in getattr(settings, table).items():
        try:
            resolved[resolve(name)] = path
        except UsageError as error:
            raise UsageError(f"{settings.origins[f'{table}.{name}'].name}: {table}: {error}") from error
    return resolved


def trusted_plugins(settings: Settings, *, trust: bool) -> tuple[Path, ...]:
    """The plug-in files that settings name.

    Args:
        trust: whether the command line says that ``harness.toml`` may name code.

    Raises:
        UsageError: somebody else may have named them, and the command line does not say that they may be run.
    """
    if settings.plugins and not trust:
        _require_own(settings, "plugins", "plug-ins, which are code", given="--plugin FILE.py")
    return settings.plugins


def is_profile_file(cluster: str) -> bool:
    """Whether a cluster is given as the path of a file, which may hold commands: all but the name of a profile of ours."""
    return bool(cluster) and re.fullmatch(r"[\w-]+", cluster) is None


def trusted_cluster(settings: Settings, *, trust: bool) -> str:
    """The cluster profile that settings name; `trusted_plugins` applies to one that is given as a file."""
    if is_profile_file(settings.cluster) and not trust:
        _require_own(
            settings, "cluster", "a cluster profile, whose setup lines are commands", given="--cluster FILE.yaml"
        )
    return settings.cluster


def _require_own(settings: Settings, key: str, what: str, *, given: str) -> None:
    origin = settings.origins[key]
    if origin.foreign:
        value = settings.cluster if key == "cluster" else ", ".join(map(str, settings.plugins))
        raise UsageError(
            f"{origin.name} names {what} ({value}), and {origin.foreign}; if you trust it add --trust-settings, or give {given}"
        )


def _levels(environment: Mapping[str, str]) -> Iterator[_Level]:
    """The levels of settings, from the lowest to the highest precedence."""
    instead = environment.get(INSTEAD, "")
    if instead == "none":
        return
    if instead:
        path = Path(instead).expanduser()
        if not path.exists():
            raise UsageError(f"{INSTEAD}={instead}: no such file; 'none' means no settings at all")
        yield _of_file(path, base=path.parent)
    else:
        user = user_file(environment)
        if os.path.lexists(user):
            yield _of_file(user, base=None)
        if os.path.lexists(HERE):
            yield _of_file(HERE, base=Path(), foreign="whoever made this folder may have written it")
    yield _of_environment(environment)


def _of_file(path: Path, *, base: Path | None, foreign: str | None = None) -> _Level:
    """``foreign``: why somebody else may have written it; looked up where not given."""
    values = _toml(path)
    if values:
        from_mapping(_Written, values, where=str(path))
    origin = Origin(name=str(path), foreign=_writable_by_others(path) if foreign is None else foreign)
    return _Level(values=values, base=base, origins=dict.fromkeys(values, origin))


def _toml(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            if stat.S_ISCHR(path.stat().st_mode):  # /dev/null: an empty one
                return {}
            raise UsageError(f"settings {path}: it is no file")
    except OSError as error:
        raise UsageError(f"settings {path}: {os_reason(error)}") from error
    try:
        return tomllib.loads(bounded_text(path, where=f"settings {path}", most=MOST_BYTES))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f'settings {path}: {error}; values are written as in data = "/data"') from error


def _of_environment(environment: Mapping[str, str]) -> _Level:
    keys = {key.variable: key for key in KEYS}
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable in (INSTEAD, *SWITCHES) or not text:
            continue
        if variable not in keys:
            near = did_you_mean(variable.removeprefix(PREFIX), [key.name for key in KEYS])
            raise UsageError(f"{variable} in the environment is no setting: unknown key{near}; unset it")
        key = keys[variable]
        values[key.name] = text
        if key.kind == "paths":
            values[key.name] = [part for part in text.split(os.pathsep) if part]
        if key.kind == "table":
            parts = [part.partition("=") for part in text.split(os.pathsep) if part]
            for name, equals, path in parts:
                if not (name and equals and path):
                    raise UsageError(f"{variable}={text!r} is not NAME=PATH, several divided by {os.pathsep!r}")
            values[key.name] = {name: path for name, _, path in parts}
    return _Level(values=values, base=Path(), origins={name: Origin(name=PREFIX + name.upper()) for name in values})


def _resolved(name: str, value: Any, *, base: Path | None, where: str) -> Any:
    """The value of a key with its paths from the folder that they start in."""
    if name == "seeds":
        return _seeds(value, where)
    if isinstance(value, list):
        return tuple(_path(name, item, base=base, where=where) for item in value)
    if isinstance(value, dict):
        return {word: _path(name, item, base=base, where=where) for word, item in value.items()}
    if name in ("protocol", "cluster") and value.strip() and not _names_file(name, value):
        return value
    path = _path(name, value, base=base, where=where)
    if name in ("data", "results"):
        return path
    return str(path.absolute() if name == "cluster" else path)  # absolute, lest ./gpu become the name gpu


def _names_file(name: str, value: str) -> bool:
    """Whether a cluster or a card is given as the path of a file."""
    return is_profile_file(value) if name == "cluster" else value.endswith((".yaml", ".yml"))


def _path(name: str, value: str, *, base: Path | None, where: str) -> Path:
    if not value.strip() or "\0" in value:
        raise UsageError(f"{where}: {name}={value!r} is empty, or no name of a file")
    if name == "checkpoints" and value in ("none", "published", "timm"):
        return Path(value)
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{where}: {name}={value!r}: {error}") from error
    if base is None and not path.is_absolute():
        raise UsageError(
            f"{where}: {name}={value!r} is relative, and this file serves every folder; begin it with / or ~/"
        )
    return path if base is None else base / path


def _seeds(value: Any, where: str) -> str:
    several = value if isinstance(value, list) else [value]
    if isinstance(value, str) or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in several):
        if isinstance(value, str) and value.strip():
            return value
        raise UsageError(f"{where}: seeds = {value!r} is neither a number of seeds (3) nor a list of seeds ([0, 3, 7])")
    # one seed in a list is that seed, and a number is how many
    return ",".join(map(str, several)) + ("," if isinstance(value, list) and len(value) == 1 else "")


def _writable_by_others(path: Path) -> str:
    """Why somebody else may have written a file of the user's, empty where nobody else can have."""
    for each in (path, path.parent):
        status = each.stat()
        if status.st_uid not in (os.getuid(), 0):
            return f"{each} belongs to somebody else"
        if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX and not stat.S_ISCHR(status.st_mode):
            return f"others may write to {each} (chmod go-w mends that)"
    return ""
