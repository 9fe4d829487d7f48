"""Where runs go: this process, worker processes here, or a cluster. Built once from the command line. Free of torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from harness.dispatch.profile import ClusterProfile, load_profile
from harness.system.errors import UsageError
from harness.system.machine import cores

MAX_LOCAL_WORKERS = 4

Executor = Literal["inline", "local", "slurm"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where runs go.

    Args:
        executor: ``inline``, ``local`` or ``slurm``.
        devices: GPUs of this machine that runs may use, as ``CUDA_VISIBLE_DEVICES`` names them.
        workers: runs at the same time.
        threads: of one worker.
        profile: of the cluster; None for this machine.
    """

    executor: Executor
    devices: tuple[str, ...] = ()
    workers: int = 1
    threads: int = 1
    profile: ClusterProfile | None = None


def target_of(
    executor: Executor | None = None,
    *,
    workers: int | None = None,
    cluster: str | None = None,
    cluster_overrides: Mapping[str, Any] | None = None,
) -> Target:
    """Where the options of a command line send runs.

    Args:
        executor: None for worker processes here, or for the cluster if one is named.
        workers: worker processes here; None for one a GPU, or one a core (at most four) on a machine without.
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


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them, without importing torch.

    An index, a UUID (``GPU-…``) or a slice of one (``MIG-…``). Like CUDA, what is none of these, such as -1, ends the
    list.
    """
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        words = [word.strip() for word in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
        return list(takewhile(re.compile(r"\d+$|GPU-|MIG-").match, words))
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")] if listed.returncode == 0 else []
    return [str(index) for index in range(len(lines))]


def gpu_name(device: str) -> str:
    """The model of one of `visible_gpus`, empty where it is not known."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    query += [f"--id={device}"] if device.isdigit() else []
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.splitlines()[0].strip() if answer.returncode == 0 and answer.stdout.strip() else ""
