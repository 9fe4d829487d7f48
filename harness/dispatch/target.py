"""The target of runs: this process, worker processes on this machine, or a cluster. A cluster's profile is a YAML file, validated
before anything is submitted. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from harness.check import from_mapping
from harness.dispatch.attempts import LEASE_SECONDS
from harness.models.catalog import resolve_backbone
from harness.settings import is_profile_file
from harness.system.errors import UsageError, did_you_mean
from harness.system.machine import cores, visible_gpus
from harness.system.text import counted
from harness.system.yaml_files import read_yaml

PROFILES = Path(__file__).parents[1] / "data" / "profiles"


@dataclass(frozen=True, kw_only=True)
class JobShape:
    """The resources that one job requests; ``slurm/profiles/gpu.yaml`` explains the fields. Runs of one shape go into one array. Empty text
    leaves a value to the cluster; `minutes` reads ``time``."""

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
        if self.gpus_per_run != 1:
            raise ValueError(
                f"gpus_per_run={self.gpus_per_run}: a run trains on one GPU; leave it out, a grid fills many GPUs by its runs"
            )
        if min(self.runs_per_job, self.cpus) < 1:
            raise ValueError("runs_per_job and cpus must be at least 1")
        if self.mem and not re.fullmatch(r"\d+[KMGT]?", self.mem):
            raise ValueError(f"mem={self.mem!r} is not a number with K, M, G or T, such as 32G")

    @property
    def in_words(self) -> str:
        """``partition gpu, gpu:1, 8 CPUs, 64G, 12:00:00, gpu80``; values that are left to the cluster are left out."""
        named = [f"{name} {value}" for name in ("account", "partition", "qos") if (value := getattr(self, name))]
        tasks = [f"{self.runs_per_job} runs per task"] if self.runs_per_job > 1 else []
        time = f"{self.time} min" if self.time.isdigit() else self.time
        parts = (*named, *tasks, self.gres, counted(self.cpus, "CPU"), self.mem, time, self.constraint)
        return ", ".join(filter(None, parts))


@dataclass(frozen=True, kw_only=True)
class ClusterProfile(JobShape):
    """A cluster: the default shape of a job, and how jobs are submitted and kept alive; ``slurm/profiles/gpu.yaml`` explains the keys.
    ``shapes``: backbone -> the fields of `JobShape` that differ for it."""

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

    def shape(self, backbone: str) -> JobShape:
        """The shape of a run on ``backbone``. Raises UsageError: unknown key or wrong value in ``shapes``."""
        default = {f.name: getattr(self, f.name) for f in fields(JobShape)}
        return from_mapping(
            JobShape,
            {**default, **self.shapes.get(backbone, {})},
            where=f"cluster profile {self.name}: shapes.{backbone}",
        )

    def gpus_of(self, shape: JobShape) -> int:
        """GPUs of one job of a shape, 1 or 0; a profile requests it by ``gres`` or by a further option (``gpus-per-task``)."""
        return int("gpu" in shape.gres or any(name.startswith("gpu") for name in self.extra))


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
    elif match := re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text):
        days, *given = match.groups()
        parts = [int(part) for part in given if part]
        units = (3600, 60, 1) if days or len(parts) == 3 else (60, 1)
        seconds = 86400 * int(days or 0) + sum(part * unit for part, unit in zip(parts, units, strict=False))
    else:
        raise ValueError(f"time={text!r} is not a time limit, such as 90 (minutes), 2h, 4:00:00 or 1-12:00:00")
    if seconds == 0:
        raise ValueError("time must be more than zero")
    return -(-seconds // 60)


MAX_LOCAL_WORKERS = 4

Executor = Literal["inline", "local", "slurm"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where runs go.

    Args:
        executor: ``inline``, ``local`` or ``slurm``.
        devices: GPUs of this machine that runs may use, as ``CUDA_VISIBLE_DEVICES`` names them.
        workers: number of runs at the same time.
        threads: CPU threads of one worker.
        profile: profile of the cluster; None for this machine.
    """

    executor: Executor
    devices: tuple[str, ...] = ()
    workers: int = 1
    threads: int = 1
    profile: ClusterProfile | None = None

    @property
    def in_words(self) -> str:
        if self.profile is not None:
            partition = self.profile.partition or "its default partition"
            return f"slurm: profile {self.profile.name}, {partition}, at most {self.workers} tasks per array at once"
        if self.executor == "inline":
            return "inline: runs go one after the other in this process, for debugging"
        devices = f"GPU {', '.join(self.devices)}" if self.devices else "CPU"
        workers = f"{self.workers} worker process{'es' if self.workers > 1 else ''}"
        return f"local: {workers} here ({devices}, {counted(self.threads, 'thread')} each); --workers N changes that"


def target_of(
    executor: Executor | None = None,
    *,
    workers: int | None = None,
    cluster: str | None = None,
    cluster_overrides: Mapping[str, Any] | None = None,
) -> Target:
    """The target that the options of a command line select.

    Args:
        executor: None for worker processes on this machine, or for the cluster if one is named.
        workers: worker processes here; None for one per GPU, or on a machine without GPUs one per core (at most four).
        cluster: name or path of a profile.
        cluster_overrides: ``--set cluster.KEY=VALUE``.

    Raises:
        UsageError: the options contradict each other, or a profile that `load_profile` refuses.
    """
    if cluster and executor not in (None, "slurm"):
        raise UsageError(f"--cluster {cluster} and --executor {executor} contradict each other; give one of them")
    if cluster_overrides and not cluster:
        raise UsageError(f"--set cluster.{next(iter(cluster_overrides))} needs --cluster NAME")
    name: Executor = "slurm" if cluster else executor or "local"
    if workers is not None and name != "local":
        raise UsageError(f"--workers is for worker processes here, not for the executor {name}")
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers} must be at least 1")
    if name == "slurm":
        assert cluster is not None
        profile = load_profile(cluster, cluster_overrides)
        return Target(executor=name, workers=profile.parallelism, profile=profile)
    devices, here = tuple(visible_gpus()), cores()
    if name == "inline":
        return Target(executor=name, devices=devices, threads=here)
    count = workers or len(devices) or min(MAX_LOCAL_WORKERS, here)
    return Target(executor=name, devices=devices, workers=count, threads=max(1, here // count))
