"""What a user is told to do where sbatch refuses, and about jobs that are not those of the command."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from harness.dispatch.sweeps import Chunk, Sweep
from harness.system.errors import UsageError


def refusal(error: UsageError, chunks: Sequence[Chunk], job_ids: Sequence[str]) -> str:
    """What sbatch said, what was submitted before, and what to do, in one line."""
    text = str(error)
    hints = {
        "qos": "your quota of submitted jobs or its QOS forbids it; wait for jobs to end, or set --set cluster.qos=NAME",
        "partition": "choose one of sinfo's with --set cluster.partition=NAME",
        "time limit": "lower it with --set cluster.time=2h; a run continues from its checkpoint",
        "account": "set it with --set cluster.account=NAME",
        "writing": "the controller's disk is full; tell its administrator, then give the same command again",
        "memory": "lower it with --set cluster.mem=16G",
        "node configuration": "no node has so many CPUs, GPUs or so much memory; lower them with --set cluster.KEY=VALUE",
    }
    hint = next(
        (hint for word, hint in hints.items() if word in text.lower()),
        "nothing is lost; mend it and give the same command again",
    )
    done = (
        f"; {len(job_ids)} of {len(chunks)} arrays are submitted ({', '.join(job_ids)})"
        if job_ids
        else "; nothing was submitted"
    )
    return f"{text}{done}; {hint}"


def left_alone(sweep: Sweep, jobs: Sequence[str], *, user: str) -> str:
    """Of another sweep's jobs, which ``user`` did not cancel: who has them, and how they are cancelled."""
    if sweep.user not in ("", user):
        who = f"user {sweep.user} submitted, who cancels it with"
    else:
        who = "another command submitted; cancel it with"
    how = cancelling(sweep.command) if sweep.command and sweep.request else f"scancel {' '.join(jobs)}"
    return f"left: {len(jobs)} jobs of these runs, of sweep {sweep.id}, which {who}: {how}"


def cancelling(command: str) -> str:
    """The command that cancels what ``command`` submitted: without the options that ``--cancel`` refuses."""
    refused = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    refused.add_argument("--wait", action="store_true")
    refused.add_argument("--retry")
    refused.add_argument("--budget")
    try:
        _, others = refused.parse_known_args(shlex.split(command))
    except (ValueError, argparse.ArgumentError):  # no command line of ours
        return f"{command} --cancel"
    return shlex.join([*others, "--cancel"])
