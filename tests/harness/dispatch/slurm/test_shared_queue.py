"""Submitting where others have jobs too: other users, other clusters, this machine, with stand-in clients."""

from __future__ import annotations

import os
import socket

from harness.cli import status
from harness.dispatch.attempts import Holder, Lease, attempts, state_folder
from harness.dispatch.slurm import executor as executor_module
from harness.dispatch.sweeps import read_chunk, read_chunks
from tests.harness.dispatch.helpers import make_job
from tests.harness.dispatch.slurm.helpers import as_user, queue, slurm


def test_a_run_that_lives_here_is_not_submitted_to_a_cluster(tmp_path, idle_cluster):
    results = tmp_path / "runs"
    idle_cluster("sbatch", f"touch {tmp_path}/submitted; exit 1")
    job = make_job(results)
    Lease.acquire(state_folder(results, job.run.key), holder=Holder.here())
    submission = slurm(results).submit([job])
    assert submission.keys == ()
    assert submission.elsewhere == {job.run.key: f"runs in process {os.getpid()} on {socket.gethostname()}"}
    assert not (tmp_path / "submitted").exists()


def test_a_number_of_a_submission_is_not_given_again_to_who_waited_meanwhile(tmp_path, idle_cluster):
    idle_cluster("sbatch", "exit 1")
    executor = slurm(tmp_path)
    for _ in range(3):
        with executor._alone():
            pass
    folder = tmp_path / "sweeps" / ".submitting"
    assert [attempt.number for attempt in attempts(folder)] == [1, 2, 3]
    for _ in range(45):
        with executor._alone():
            pass
    numbers = [attempt.number for attempt in attempts(folder)]
    assert numbers[-40:] == list(range(9, 49))
    assert len(numbers) < 45


def test_another_users_queued_runs_are_not_submitted_again_nor_is_their_sweep_settled(tmp_path, idle_cluster):
    results = tmp_path / "runs"
    jobs = [make_job(results, seed=seed) for seed in range(2)]
    idle_cluster("sbatch", 'echo "Submitted batch job 5"')
    as_user("alice", results).submit(jobs)
    queue(idle_cluster, results)
    idle_cluster("sbatch", 'echo "Submitted batch job 6"')
    third = make_job(results, seed=2)
    submission = as_user("bob", results).submit([*jobs, third])
    assert submission.keys == (third.run.key,)
    assert all(who.endswith(" of alice") for who in submission.elsewhere.values())
    (alices,) = [chunk for chunk in read_chunks(results) if chunk.job == "5"]
    assert not alices.closed
    idle_cluster("squeue", "true")  # her jobs are gone, and nobody but her says what became of them
    idle_cluster("sbatch", 'echo "Submitted batch job 7"')
    assert len(as_user("bob", results).submit(jobs).keys) == 2
    assert not read_chunk(alices.path).closed
    as_user("alice", results).cancel([])
    assert read_chunk(alices.path).closed == "done"


def completing(idle_cluster, results, tmp_path, *, times):
    """Shows a submitted job as completing so many times, and then no more."""
    (chunk,) = read_chunks(results)
    looks = tmp_path / "looks"
    shown = (
        f"echo . >> {looks}; if [ $(wc -l < {looks}) -le {times} ]; then echo '5|0|COMPLETING|None|{chunk.name}'; fi"
    )
    idle_cluster("squeue", shown)


def test_a_submission_waits_for_a_job_that_is_ending(tmp_path, idle_cluster, capsys):
    results = tmp_path / "runs"
    idle_cluster("sbatch", 'echo "Submitted batch job 5"')
    slurm(results).submit([make_job(results)])
    completing(idle_cluster, results, tmp_path, times=1)
    idle_cluster("sbatch", 'echo "Submitted batch job 6"')
    submission = slurm(results).submit([make_job(results)])
    assert (submission.job_ids, submission.elsewhere, submission.ending) == (("6",), {}, frozenset())
    assert "1 run still ending (is completing as job 5_0 of sweep " in capsys.readouterr().err


def test_what_is_ending_for_longer_is_said_and_a_cancelled_job_whose_process_lives_is(
    tmp_path, idle_cluster, monkeypatch
):
    monkeypatch.setattr(executor_module, "ENDING_S", 0.0)
    results = tmp_path / "runs"
    idle_cluster("sbatch", 'echo "Submitted batch job 5"')
    job = make_job(results)
    slurm(results).submit([job])
    completing(idle_cluster, results, tmp_path, times=99)
    assert slurm(results).submit([job]).ending == {job.run.key}
    idle_cluster("squeue", "true")
    lease = Lease.acquire(state_folder(results, job.run.key), holder=Holder.here(job="5_0"))
    submission = slurm(results).submit([job])
    assert (submission.keys, submission.ending) == ((), {job.run.key})
    lease.release("CANCELLED")
    assert slurm(results).submit([job]).ending == frozenset()


def test_a_crashed_submission_of_another_user_is_known_by_its_name(tmp_path, idle_cluster):
    results = tmp_path / "runs"
    job = make_job(results)
    idle_cluster("sbatch", 'echo "Submitted batch job 5"')
    as_user("alice", results).submit([job])
    queue(idle_cluster, results)
    (answer,) = results.glob("sweeps/*/chunk.000.job.json")
    answer.unlink()
    submission = as_user("bob", results).submit([job])
    assert submission.keys == ()
    assert "job 5_0" in submission.elsewhere[job.run.key]
    assert not answer.exists()


def test_another_clusters_sweep_is_left_to_that_cluster(tmp_path, idle_cluster):
    results = tmp_path / "runs"
    first, second = make_job(results), make_job(results, seed=1)
    for name, job in (("north", first), ("south", second)):
        idle_cluster("scontrol", f"echo 'ClusterName             = {name}'; echo 'MaxArraySize            = 1001'")
        idle_cluster("sbatch", 'echo "Submitted batch job 5"')
        slurm(results).submit([job])
        queue(idle_cluster, results, of=lambda chunk, key=job.run.key: chunk.runs[0].key == key)
    assert [chunk.closed for chunk in read_chunks(results)] == ["", ""]
    seen = status.look(results).runs
    assert [seen[job.run.key].state for job in (first, second)] == ["queued", "queued"]
    assert seen[first.run.key].message == "the cluster was not asked"


def test_a_job_that_the_controller_forgot_is_submitted_again_though_a_strangers_has_its_number(tmp_path, idle_cluster):
    """As after a controller is killed before it saved its state: cancelling must not touch the stranger's job."""
    results = tmp_path / "runs"
    job = make_job(results)
    idle_cluster("sbatch", 'echo "Submitted batch job 5"')
    slurm(results).submit([job])
    idle_cluster("squeue", "echo '5|0|RUNNING|None|a-strangers-job'")
    idle_cluster("scancel", f"echo $* > {tmp_path}/cancelled")
    assert slurm(results).cancel([job.run.key]) == []
    assert not (tmp_path / "cancelled").exists()
    idle_cluster("sbatch", 'echo "Submitted batch job 6"')
    assert slurm(results).submit([job]).job_ids == ("6",)
