"""What a task of a cluster's job finds: its chunk, earlier starts of its run, and the cluster that it asks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from harness.archive.store import RecordStore
from harness.dispatch.attempts import Holder, Lease, attempts, state_folder
from harness.dispatch.queue import Account
from harness.dispatch.sweeps import AttemptLimits, Sweep, create_chunk, create_sweep
from tests.harness.dispatch.helpers import make_job


@dataclass(kw_only=True)
class TaskCluster:
    """In `Slurm`'s place; accounting is off unless it has something to say."""

    accounts: list[Account] | None = None
    requeued: list[str] = field(default_factory=list)

    def __call__(self, **_):
        return self

    def history(self, jobs):
        return self.accounts

    def requeue(self, job):
        self.requeued.append(job)


def account(state, *, job="7_0"):
    return Account(job=job, state=state, seconds=1.0, gpus=0)


def submitted(results, *, jobs=None, before=0, limit=5, **settings):
    jobs = jobs or [make_job(results)]
    sweep = Sweep(
        id="20260101-000000-abcd", executor="slurm", command="", created=0.0, submitter=Holder.here(),
        snapshot="/snapshots/abc", settings=settings,
    )  # fmt: skip
    limits = {job.run.key: AttemptLimits(before=before, limit=limit) for job in jobs}
    folder = create_sweep(results, sweep)
    return create_chunk(folder, number=0, jobs=jobs, shape={"gpus": 2}, limits=limits).answered("7"), sweep


def started(results, *, task="7_0", holder=None):
    folder = state_folder(results, make_job(results).run.key)
    return Lease.acquire(folder, holder=holder or replace(Holder.here(job=task), ticks=1))


def record_of(results):
    return RecordStore(results).read(make_job(results).run.key)


def ends(results):
    return [(start.end, start.detail) for start in attempts(state_folder(results, make_job(results).run.key))]
