"""This machine: its names in records, its GPUs, the cores that a process may use, and how threads wait; and the version of the running
code. Imports no torch."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path

import harness

_PACKAGES = ("methods", "datasets", "harness")  # the folders of a clone


@functools.cache
def code_version() -> dict[str, str]:
    """``commit`` and ``dirty`` (hash of the uncommitted changes, empty without any) of the running clone. Both are empty outside a clone,
    such as in a snapshot, where records get those of the submission. Git ignores repositories further up, and runs no hooks."""
    root = Path(str(harness.__file__)).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *arguments]
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        except OSError:  # git is not installed, or a folder of PATH cannot be read
            return ""
        return done.stdout if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD").strip() if (root / ".git").exists() else ""
    changes = git("diff", "--no-ext-diff", "--no-textconv", "HEAD", "--", *_PACKAGES) if commit else ""
    return {"commit": commit, "dirty": hashlib.sha256(changes.encode()).hexdigest()[:12] if changes else ""}


SPINS = 1000
"""Rounds for which a thread of OpenMP spins before it sleeps (``GOMP_SPINCOUNT``). They are far fewer than libgomp's 300,000, since on a
shared machine the thread that it waits for may not be running."""
_WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@functools.cache
def processor() -> str:
    """``cpu`` with the name and the number of processors, where the system gives them; else with the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"cpu {names[0]} x{len(names)}" if names else f"cpu {platform.machine()} x{os.cpu_count()}"


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them, without importing torch.

    Each is an index, a UUID (``GPU-…``) or that of a slice (``MIG-…``). As in CUDA, anything else, such as -1, ends the list.
    """
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        words = [word.strip() for word in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
        return list(takewhile(re.compile(r"\d+$|GPU-|MIG-").match, words))
    lines = [line for line in _nvidia_smi("-L") if line.startswith("GPU ")]
    return [str(index) for index in range(len(lines))]


def gpu_name(device: str) -> str:
    """The model of one of `visible_gpus`, as torch names it; empty where it is not known, as for a slice."""
    return next(iter(_nvidia_smi("--query-gpu=name", "--format=csv,noheader", f"--id={device}")), "")


def gpu_driver() -> str:
    """Version of NVIDIA's driver, ``unknown`` without one."""
    return next(iter(_nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader")), "unknown")


def _nvidia_smi(*arguments: str) -> list[str]:
    """The lines of nvidia-smi's answer, none where it is not installed or fails."""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def cores(root: Path = Path("/")) -> int:
    """The cores that this process may use: those of its affinity, fewer where its control group has a quota. ``root``: the root of
    the file system with the control groups."""
    return max(1, min([affinity(), *(math.ceil(share) for share in _quotas(root))]))


def now() -> str:
    """The current time in UTC, as in records."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def affinity() -> int:
    """The cores that this process may run on; all of them where the system has no such list (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """Cores that the control groups of this process (version 2) allow, from its own upwards."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        innermost = mounted / path.lstrip("/")
        for folder in (innermost, *innermost.parents) if not controllers else ():
            with suppress(OSError, ValueError):  # none here, or "max"
                quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
                yield float(quota) / float(period)


def thread_variables(threads: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment variables for a process that computes on a CPU: its number of threads and how they wait, each unless the user set it.
    OpenMP reads them once, when torch is loaded. ``threads``: the number where none is set."""
    variables = {} if "OMP_NUM_THREADS" in environment else {"OMP_NUM_THREADS": str(threads)}
    return variables if any(name in environment for name in _WAITS) else {**variables, "GOMP_SPINCOUNT": str(SPINS)}


def thread_waits(environment: Mapping[str, str] = os.environ) -> str:
    """How this process's threads of OpenMP wait for each other, according to its environment."""
    return " ".join(f"{name}={environment[name]}" for name in _WAITS if name in environment) or "default"


def set_threads(threads: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Put `thread_variables` into the environment of this process, before it imports torch."""
    environment.update(thread_variables(threads, environment))


def user_cache() -> Path | None:
    """``sam-peft-harness`` below ``XDG_CACHE_HOME`` or ``~/.cache``, which may not exist yet; None without a home."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return base / "sam-peft-harness"
