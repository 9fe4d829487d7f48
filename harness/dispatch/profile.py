"""A cluster's profile: what a job asks SLURM for, as YAML that is validated before anything is submitted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from harness.check import from_mapping
from harness.dispatch.attempts import LEASE_SECONDS
from harness.models.catalog import resolve_backbone
from harness.settings import is_profile_file
from harness.system.errors import UsageError, did_you_mean
from harness.system.text import counted
from harness.system.yaml_files import read_yaml

PROFILES = Path(__file__).parents[1] / "data" / "profiles"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What one job requests, as ``slurm/profiles/gpu.yaml`` explains it; runs of one shape go into one array. Empty text leaves a value to
    the cluster; ``time`` is as `minutes` reads it."""

    account: str = ""
    partition: str = ""
    qos: str = ""
    gres: str = ""
    constraint: str = ""
    gpus_per_run: int = 1
    runs_per_job: int = 1
    cpus: int = 8
    mem: str = ""
    time: str = "4:00:00"

    def __post_init__(self) -> None:
        minutes(self.time)
        if min(self.gpus_per_run, self.runs_per_job, self.cpus) < 1:
            raise ValueError("gpus_per_run, runs_per_job and cpus must be at least 1")
        if self.gpus_per_run > 1 and self.runs_per_job > 1:
            raise ValueError("runs_per_job is for runs of one GPU; set it to 1, or gpus_per_run")
        if self.mem and not re.fullmatch(r"\d+[KMGT]?", self.mem):
            raise ValueError(f"mem={self.mem!r} is not a number with K, M, G or T, such as 32G")

    @property
    def hours(self) -> float:
        """The time limit."""
        return minutes(self.time) / 60

    @property
    def in_words(self) -> str:
        """``partition gpu, gpu:1, 8 CPUs, 64G, 12:00:00, gpu80``; the cluster's defaults are left out."""
        named = [f"{name} {value}" for name in ("account", "partition", "qos") if (value := getattr(self, name))]
        tasks = [f"{self.gpus_per_run} GPUs a run"] if self.gpus_per_run > 1 else []
        tasks += [f"{self.runs_per_job} runs a task"] if self.runs_per_job > 1 else []
        time = f"{self.time} min" if self.time.isdigit() else self.time
        parts = (*named, *tasks, self.gres, counted(self.cpus, "CPU"), self.mem, time, self.constraint)
        return ", ".join(filter(None, parts))


@dataclass(frozen=True, kw_only=True)
class ClusterProfile(Shape):
    """A cluster: the default shape of a job, and how jobs are submitted and kept alive; ``slurm/profiles/gpu.yaml`` explains every key.
    ``shapes``: backbone -> fields of `Shape` that differ for it. What ends in ``_seconds`` are seconds by the clock."""

    name: str
    parallelism: int = 64
    max_array_size: int = 1000
    setup: tuple[str, ...] = ()
    python: str = ""
    srun_args: tuple[str, ...] = ()
    signal_seconds: int = 120
    max_attempts: int = 10
    lease_seconds: float = LEASE_SECONDS
    patience_seconds: float = 300.0
    extra: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for number in ("parallelism", "max_array_size", "signal_seconds", "max_attempts", "lease_seconds"):
            if getattr(self, number) < 1:
                raise ValueError(f"{number} must be at least 1")

    def shape(self, backbone: str) -> Shape:
        """The shape of a run on ``backbone``.

        Raises:
            UsageError: unknown key or wrong value in ``shapes``.
        """
        default = {f.name: getattr(self, f.name) for f in fields(Shape)}
        return from_mapping(
            Shape, {**default, **self.shapes.get(backbone, {})}, where=f"cluster profile {self.name}: shapes.{backbone}"
        )

    def gpus_of(self, shape: Shape) -> int:
        """GPUs of one job of a shape, which clusters are given by ``gres`` or by a further option (``gpus-per-task``)."""
        has_gpus = "gpu" in shape.gres or any(name.startswith("gpu") for name in self.extra)
        return shape.gpus_per_run if has_gpus else 0


def profile_names() -> list[str]:
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_profile(name: str, overrides: Mapping[str, Any] | None = None) -> ClusterProfile:
    """Read ``slurm/profiles/NAME.yaml``, or the file of a path.

    Args:
        overrides: from ``--set cluster.time=2h``, without the ``cluster.``; they hold for every backbone.

    Raises:
        UsageError: no such profile, unreadable YAML, unknown key or backbone (with the nearest name), wrong value.
    """
    path = Path(name) if is_profile_file(name) else PROFILES / f"{name}.yaml"
    if not path.is_file():
        if path == Path(name):
            raise UsageError(f"cluster profile {path} does not exist")
        raise UsageError(
            f"unknown cluster {name!r}{did_you_mean(name, profile_names())}, or give the path of a .yaml file;"
            f" profiles by name are in {PROFILES.resolve()}"
        )
    values = read_yaml(path, what="cluster profile", values_as_text=True) or {}
    if not isinstance(values, dict):
        raise UsageError(f"cluster profile {path} is not a mapping of keys to values")
    overrides = dict(overrides or {})
    values = {**values, **overrides, "name": path.stem}
    profile = from_mapping(ClusterProfile, values, where=f"cluster profile {path.stem}")
    shapes: dict[str, dict[str, Any]] = {}
    for name, shape in profile.shapes.items():
        try:
            backbone = resolve_backbone(name)
        except UsageError as error:
            raise UsageError(f"cluster profile {path.stem}: shapes: {error}") from error
        if backbone in shapes:
            raise UsageError(f"cluster profile {path.stem}: shapes: {backbone} is there twice")
        shapes[backbone] = {key: value for key, value in shape.items() if key not in overrides}
    profile = replace(profile, shapes=shapes)
    for limit in (profile.time, *(profile.shape(backbone).time for backbone in shapes)):
        if profile.signal_seconds >= 60 * minutes(limit):
            raise UsageError(
                f"cluster profile {path.stem}: signal_seconds {profile.signal_seconds} is not below the time limit {limit}, "
                "so a run would be warned before it begins; lower it or raise the limit"
            )
    return profile


def minutes(text: str) -> int:
    """A time limit in minutes, rounded up; SLURM's forms (``M``, ``H:M:S``, ``M:S``, ``D-H[:M[:S]]``) and ``90m``, ``2h``, ``1d``.

    Raises:
        ValueError: none of these, or zero.
    """
    text = str(text).strip()
    if match := re.fullmatch(r"(\d+)\s*([smhd])", text):
        seconds = int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    elif match := re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?", text):
        day, hour, minute, second = (int(part or 0) for part in match.groups())
        seconds = day * 86400 + hour * 3600 + minute * 60 + second
    elif match := re.fullmatch(r"(?:(\d+):)?(\d+):(\d+)", text):
        hour, minute, second = (int(part or 0) for part in match.groups())
        seconds = hour * 3600 + minute * 60 + second
    elif re.fullmatch(r"\d+", text):
        seconds = int(text) * 60
    else:
        raise ValueError(f"time={text!r} is not a time limit, such as 90 (minutes), 2h, 4:00:00 or 1-12:00:00")
    if seconds == 0:
        raise ValueError("time must be more than zero")
    return -(-seconds // 60)
