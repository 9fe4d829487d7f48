"""What a task of a cluster's job finds: its chunk, earlier starts of its run, and the cluster that it asks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from harness.archive.store import RecordStore
from harness.dispatch.attempts import Holder, Lease, attempts, state_folder
from harness.dispatch.queue import Account
from harness.dispatch.sweeps import read_sweep
from harness.system.errors import UsageError
from tests.harness.dispatch import helpers
from tests.harness.dispatch.helpers import make_job


@dataclass(kw_only=True)
class TaskCluster:
    """In `Slurm`'s place; accounting is off unless it has something to say."""

    accounts: list[Account] | None = None
    requeued: list[str] = field(default_factory=list)
    makes_room: bool | None = False

    def __call__(self, **_):
        return self

    def cluster(self):
        return ""

    def history(self, jobs):
        return self.accounts

    def preempts(self, job):
        if self.makes_room is None:
            raise UsageError("no answer")
        return self.makes_room

    def requeue(self, job):
        self.requeued.append(job)


def account(state, *, job="7_0"):
    return Account(job=job, state=state, seconds=1.0, gpus=0)


def submitted(results, *, jobs=None, **changes):
    chunk = helpers.submitted(results, jobs or [make_job(results)], shape={"gpus": 2}, **changes)
    return chunk, read_sweep(chunk.path.parent)


def started(results, *, task="7_0", holder=None):
    folder = state_folder(results, make_job(results).run.key)
    return Lease.acquire(folder, holder=holder or replace(Holder.here(job=task), ticks=1))


def record_of(results):
    return RecordStore(results).read(make_job(results).run.key)


def ends(results):
    return [(start.end, start.detail) for start in attempts(state_folder(results, make_job(results).run.key))]
