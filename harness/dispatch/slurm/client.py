"""Questions to a SLURM cluster: what runs, what ran, cancel, queue again. A controller that is away for a while is waited for."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from harness.dispatch.queue import Account, Task
from harness.system.errors import UsageError

TRANSIENT = re.compile(
    r"unable to contact slurm controller|socket timed out|connection (refused|timed out|reset)|zero bytes were transmitted"
    r"|resource temporarily unavailable|slurm temporarily unable to accept job|backup controller|communication connection failure"
    r"|controller.*(standby|not responding)|unexpected message received|message receive failure|missing socket|bufs_sendto|broken pipe",
    re.IGNORECASE,
)
_NAMES = 1000
"""Job names in one question; the kernel bounds the length of an argument."""


class Unreachable(UsageError):
    """The controller did not answer for as long as we were willing to wait."""


class Slurm:
    """A cluster's command-line clients.

    Args:
        patience_s: how long to wait for a controller that does not answer.
        say: told once when waiting begins.
    """

    def __init__(self, *, patience_s: float = 300.0, say: Callable[[str], None] | None = None) -> None:
        self.patience_s = patience_s
        self.user = user_name()
        self._say = say or (lambda line: print(line, file=sys.stderr))
        self._configuration: str | None = None

    def require(self) -> None:
        """Raises UsageError where sbatch is not installed."""
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise UsageError(
                "sbatch is not on this machine's PATH; run this on a login node of the cluster, or leave out --cluster to run here"
            )

    def tasks(self, names: Iterable[str]) -> dict[str, Task]:
        """Tasks of the jobs with these names that wait or run, whoever submitted them, by job (array tasks one by one)."""
        by_job = {}
        for line in self._queue(names, "--array", "--format=%F|%K|%T|%r|%j"):
            fields = line.split("|", 4)
            if len(fields) < 5:  # a heading or a warning
                continue
            array, index, state, reason, name = fields
            job = f"{array}_{index}" if index.isdigit() else array
            by_job[job] = Task(job=job, state=state, reason=reason, name=name)
        return by_job

    def ids_by_name(self, names: Iterable[str]) -> dict[str, str]:
        """Job name -> id of the jobs with these names that the controller or accounting knows."""
        job_names = set(names)
        if not job_names:
            return {}
        ids = {}
        for line in self._queue(job_names, "--format=%F|%j"):
            job, _, name = line.partition("|")
            if name in job_names:
                ids[name] = job
        if missing := job_names - ids.keys():
            command = [
                "sacct", "-X", "-n", "-P", "-S", "now-30days", "-o", "JobID,JobName%200", "--name", ",".join(sorted(missing)),
            ]  # fmt: skip
            for line in (self._account(command) or "").splitlines():
                job, _, name = line.partition("|")
                if name in missing:
                    ids[name] = job.split("_")[0]
        return ids

    def history(self, jobs: Iterable[str]) -> list[Account] | None:
        """Every start of these jobs, requeued ones included, oldest first; None where accounting is off."""
        job_ids = sorted({job.split("_")[0] for job in jobs})
        if not job_ids:
            return []
        what = "JobID,State,ElapsedRaw,AllocTRES"
        command = ["sacct", "-X", "--duplicates", "-n", "-P", "-o", what, "-j", ",".join(job_ids)]
        output = self._account(command)
        if output is None:
            return None
        accounts = []
        for line in output.splitlines():
            fields = line.split("|")
            if len(fields) != 4 or not (fields[2] or "0").isdigit():  # a heading or a warning
                continue
            job, state, seconds, resources = fields
            accounts.append(
                Account(
                    job=job,
                    state=state.split()[0] if state else "",
                    seconds=float(seconds or 0),
                    gpus=_gpus(resources),
                )
            )
        return accounts

    def max_array_size(self) -> int | None:
        size = self._configured("MaxArraySize")
        return int(size) if size.isdigit() else None

    def cluster(self) -> str:
        """The cluster's name, empty where its configuration gives none. A job's environment tells it without asking anybody."""
        return os.environ.get("SLURM_CLUSTER_NAME") or self._configured("ClusterName")

    def cancel(self, jobs: Sequence[str]) -> None:
        if jobs:
            self._ask(["scancel", *jobs])

    def requeue(self, job: str) -> None:
        self._ask(["scontrol", "requeue", job])

    def preempts(self, job: str) -> bool:
        """Whether a running job has been told that it makes room for another, and may go on for a while (GraceTime)."""
        told = re.search(r"\bPreemptTime=(\S+)", self._ask(["scontrol", "show", "job", job]))
        return told is not None and told[1] not in ("None", "Unknown")

    def _queue(self, names: Iterable[str], *options: str) -> list[str]:
        """squeue's lines about jobs of these names. By name, because it refuses an id that it has forgotten."""
        ordered, lines = sorted(set(names)), []
        for start in range(0, len(ordered), _NAMES):
            part = ",".join(ordered[start : start + _NAMES])
            lines += self._ask(["squeue", f"--name={part}", "--noheader", "--states=all", *options]).splitlines()
        return lines

    def _configured(self, key: str) -> str:
        if self._configuration is None:
            self._configuration = self._ask(["scontrol", "show", "config"])
        match = re.search(rf"^{key}\s*=\s*(\S+)", self._configuration, re.MULTILINE)
        return match[1] if match else ""

    def _account(self, command: list[str]) -> str | None:
        """Accounting may be off or away; nothing may depend on it."""
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=_environment())
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    def _ask(self, command: list[str]) -> str:
        return patiently(lambda: _run(command), patience_s=self.patience_s, say=self._say)


def _gpus(resources: str) -> int:
    """GPUs in what accounting calls AllocTRES; where it has them with and without their type, both say the same."""
    total, typed = (re.findall(rf"gres/gpu{kind}=(\d+)", resources) for kind in ("", ":[^=,]+"))
    return sum(map(int, total or typed))


def user_name() -> str:
    """Who this process runs as, as SLURM names users."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container may have no entry for its user
        return str(os.geteuid())


def patiently(ask: Callable[[], str], *, patience_s: float, say: Callable[[str], None]) -> str:
    """``ask`` until it answers; a `Refused` that is not transient goes straight through as a UsageError.

    Raises:
        Unreachable: no answer for ``patience_s``.
        UsageError: refused.
    """
    deadline = time.monotonic() + patience_s
    pause = 0.5
    announced = False
    while True:
        try:
            return ask()
        except Refused as error:
            if not TRANSIENT.search(str(error)):
                raise UsageError(str(error)) from error
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"the SLURM controller has not answered for {patience_s:.0f} s ({error}); try again later"
                ) from error
            if not announced:
                say(f"the SLURM controller does not answer; waiting up to {patience_s:.0f} s for it")
                announced = True
            time.sleep(pause)
            pause = min(pause * 1.5, 10.0)


class Refused(RuntimeError):
    """A client's error message."""


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=_environment())
    except FileNotFoundError as error:
        raise UsageError(
            f"{command[0]} is not on this machine's PATH; run this on a login node of the cluster"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Refused(f"{command[0]}: socket timed out") from error
    if done.returncode:
        raise Refused(client_message(command[0], done.stderr or done.stdout))
    return done.stdout


def client_message(program: str, message: str) -> str:
    """What a client said, without its own prefixes, in one line."""
    lines = [re.sub(rf"^{program}:\s*(error:\s*)?", "", line.strip()) for line in message.splitlines() if line.strip()]
    return f"{program}: {'; '.join(dict.fromkeys(lines)) or 'failed without a message'}"


def _environment() -> dict[str, str]:
    """This process's environment without variables that change what the clients print, or which cluster they ask."""
    prefixes = ("SQUEUE_", "SACCT_", "SCANCEL_", "SLURM_CLUSTERS")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
