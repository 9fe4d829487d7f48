"""Submitting to SLURM, with stand-in clients that refuse; the real ones are in tests/slurm."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from dataclasses import replace

import pytest

from harness.archive.store import RecordStore
from harness.dispatch.place import place
from harness.dispatch.run_jobs import make_executor
from harness.dispatch.slurm import executor as arrays
from harness.dispatch.sweeps import Chunk, read_chunks
from harness.system.errors import UsageError
from tests.harness.dispatch.helpers import make_job
from tests.harness.dispatch.slurm.helpers import slurm


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Batch job submission failed: Job violates accounting/QOS policy (job submit limit)", "quota"),
        ("Batch job submission failed: I/O error writing script/environment to file", "disk is full"),
        ("Batch job submission failed: Invalid partition name specified", "sinfo"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "cluster.time"),
        ("Batch job submission failed: Invalid account or account/partition combination specified", "--set cluster."),
        ("Memory specification can not be satisfied", "cluster.mem"),
        ("Batch job submission failed: Requested node configuration is not available", "no node has"),
        ("something nobody has seen", "give the same command again"),
    ],
)
def test_what_sbatch_refuses_is_one_line_with_what_to_do(tmp_path, idle_cluster, answer, said):
    idle_cluster("sbatch", f'echo "sbatch: error: {answer}" >&2; exit 1')
    with pytest.raises(UsageError) as caught:
        slurm(tmp_path / "runs").submit([make_job(tmp_path / "runs")])
    message = str(caught.value)
    assert answer.split(":")[-1].strip() in message
    assert said in message
    assert "nothing was submitted" in message
    assert "sbatch: error: " not in message
    assert "\n" not in message


def test_more_gpus_a_run_than_images_in_a_batch_are_refused_before_anything_is_submitted(tmp_path, idle_cluster):
    """The card conv-lora has one image a pass, as released: its workers could not share it."""
    idle_cluster("sbatch", 'echo "Submitted batch job 43"')
    results = tmp_path / "runs"
    with pytest.raises(UsageError, match=r"gpus_per_run: 4, .*batches of 1 images .*--set cluster.gpus_per_run=1"):
        slurm(results, gpus_per_run="4").submit([make_job(results, batch_size=1)])
    assert not list(read_chunks(results))
    assert slurm(results, gpus_per_run="4").submit([make_job(results, batch_size=4)]).job_ids == ("43",)


def test_what_was_submitted_before_a_refusal_stays_known_and_the_rest_follows(tmp_path, idle_cluster):
    results = tmp_path / "runs"
    jobs = [make_job(results, seed=seed) for seed in range(5)]
    counter = tmp_path / "count"
    idle_cluster(
        "sbatch",
        f'echo x >> {counter}; n=$(wc -l < {counter}); test $n -le 2 && echo "Submitted batch job 4$n"'
        ' || (echo "error: quota: QOS" >&2; exit 1)',
    )
    with pytest.raises(UsageError, match=r"2 of 3 arrays are submitted \(41, 42\)"):
        slurm(results, max_array_size="2").submit(jobs)
    names = {chunk.job: chunk.name for chunk in read_chunks(results)}
    rows = [f"{job}|{index}|PENDING|None|{names[job]}" for job in ("41", "42") for index in (0, 1)]
    rows.append("43|0|PENDING|None|a-strangers-job")
    idle_cluster("squeue", "\n".join(f"echo '{row}'" for row in rows))
    idle_cluster("sbatch", 'echo "Submitted batch job 43"')
    submission = slurm(results).submit(jobs)
    assert submission.keys == (jobs[4].run.key,)
    assert len(submission.elsewhere) == 4
    assert submission.job_ids == ("43",)


@pytest.mark.parametrize("moment", ["intent", "answer"])
def test_a_disk_that_is_full_by_the_time_of_the_answer_has_not_hindered_the_submission(
    tmp_path, idle_cluster, monkeypatch, moment
):
    results = tmp_path / "runs"

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(results))

    monkeypatch.setattr(*((arrays, "create_chunk") if moment == "intent" else (Chunk, "answered")), full)
    idle_cluster("sbatch", 'echo "Submitted batch job 5"')
    with pytest.raises(UsageError, match=r"cannot write .*: the disk is full; ") as caught:
        slurm(results).submit([make_job(results)])
    what = "nothing was submitted by this step" if moment == "intent" else "jobs may be submitted already"
    assert what in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        "Socket timed out on send/recv operation",
        "Unexpected missing socket error",
        "Zero Bytes were transmitted or received",
    ],
)
def test_a_lost_answer_is_looked_up_by_name_instead_of_submitted_again(tmp_path, idle_cluster, answer):
    results, sent = tmp_path / "runs", tmp_path / "sent"
    name = "$(grep -o 'harness-[0-9a-f-]*' $1 | head -1)"
    idle_cluster(
        "sbatch",
        f'echo "{name}" >> {sent}; echo "sbatch: error: Batch job submission failed: {answer}" >&2; exit 1',
    )
    idle_cluster("squeue", f'case "$*" in *%F\\|%j*) test ! -e {sent} || echo "77|$(cat {sent})";; esac')
    assert slurm(results).submit([make_job(results)]).job_ids == ("77",)
    assert len(sent.read_text().split()) == 1


def test_a_controller_that_does_not_come_back_leaves_an_intent_that_the_next_call_settles(tmp_path, idle_cluster):
    results = tmp_path / "runs"
    idle_cluster("sbatch", 'echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2; exit 1')
    with pytest.raises(UsageError, match="has not answered"):
        slurm(results, patience_seconds="0.1").submit([make_job(results)])
    assert not list(results.glob("sweeps/*/chunk.000.closed.json"))
    idle_cluster("sbatch", 'echo "Submitted batch job 5"')
    assert slurm(results).submit([make_job(results)]).job_ids == ("5",)


def test_shapes_become_arrays_below_the_clusters_limit(tmp_path, idle_cluster):
    results = tmp_path / "runs"
    idle_cluster("sbatch", f'cp $1 {tmp_path}/$$.sh; echo "Submitted batch job $$"')
    idle_cluster("scontrol", "echo 'MaxArraySize            = 4'")
    profile = tmp_path / "p.yaml"
    profile.write_text(
        "time: 1:00:00\nparallelism: 2\nextra: {exclusive: 'true', mail-type: FAIL}\n"
        "shapes: {vit_h: {mem: 64G, gres: 'gpu:2', gpus_per_run: 2, cpus: 4}}\n"
    )
    small = [make_job(results, seed=seed) for seed in range(4)]
    large = [replace(job, run=replace(job.run, backbone="vit_h")) for job in small[:1]]
    submission = make_executor(place("slurm", cluster=str(profile)), results=results).submit([*small, *large])
    assert len(submission.job_ids) == 3
    scripts = sorted(path.read_text() for path in tmp_path.glob("*.sh"))
    arrays = sorted(line for text in scripts for line in text.splitlines() if "--array" in line)
    assert arrays == ["#SBATCH --array=0-0%1", "#SBATCH --array=0-0%1", "#SBATCH --array=0-2%2"]
    (script,) = [text for text in scripts if "--mem=64G" in text]
    for line in (
        "--gres=gpu:2",
        "--ntasks-per-node=2",
        "--cpus-per-task=4",
        "--time=60",
        "--exclusive\n",
        "--mail-type=FAIL",
        "--requeue\n",
        "--signal=USR2@120",
    ):
        assert f"#SBATCH {line}" in script
    assert "--kill-on-bad-exit=1" in script
    chunks = [json.loads(path.read_text()) for path in results.glob("sweeps/*/chunk.[0-9][0-9][0-9].json")]
    assert sorted(chunk["shape"]["gpus"] for chunk in chunks) == [0, 0, 2]


def test_a_cluster_whose_arrays_hold_one_job_gets_one_for_each_run(tmp_path, idle_cluster):
    results = tmp_path / "runs"
    idle_cluster("sbatch", 'echo "Submitted batch job $$"')
    idle_cluster("scontrol", "echo 'MaxArraySize            = 1'")
    assert len(slurm(results).submit([make_job(results, seed=seed) for seed in range(2)]).job_ids) == 2


def test_sbatch_reads_its_script_from_a_folder_of_the_users_alone_and_the_script_carries_the_hash(
    tmp_path, idle_cluster
):
    tell = "import os, sys; print(oct(os.stat(os.path.dirname(sys.argv[1])).st_mode)[-3:])"
    idle_cluster("sbatch", f'{sys.executable} -c "{tell}" "$1" > {tmp_path}/mode; echo Submitted batch job 3')
    slurm(tmp_path / "results").submit([make_job(tmp_path / "results")])
    assert (tmp_path / "mode").read_text() == "700\n"
    (script,) = (tmp_path / "results" / "sweeps").glob("*/logs/3_submission.sh")
    (frozen,) = (tmp_path / "results" / "snapshots" / str(os.getuid())).iterdir()
    starts = [line for line in script.read_text().splitlines() if " -I -S -B -c " in line]
    assert len(starts) == 2, "the job, and its last word"
    assert all(f" {frozen} {frozen.name} " in line for line in starts)
    assert len(frozen.name) == 64


def test_a_percent_sign_in_the_results_folder_is_no_placeholder_of_the_logs_name(tmp_path, idle_cluster):
    results = tmp_path / "50%user runs"
    idle_cluster("sbatch", f'cp "$1" {tmp_path}/script; echo "Submitted batch job 5"')
    sweep = slurm(results).submit([make_job(results)]).sweep
    script = (tmp_path / "script").read_text().splitlines()
    logs = str(results / "sweeps" / sweep / "logs").replace("%", "%%")
    (output,) = [line for line in script if line.startswith("#SBATCH --output")]
    assert shlex.split(output.partition(" ")[2]) == [f"--output={logs}/%A_%a_0_log.out"]
    (step,) = [shlex.split(line) for line in script if line.startswith("srun ")]
    assert [word for word in step if "log.out" in word][-1] == f"--output={logs}/%A_%a_%t_log.out"
    assert step[-1] == str(results / "sweeps" / sweep / "chunk.000.json")


@pytest.mark.parametrize(
    ("profile", "reaches"), [({}, {"SLURM_CONF", "SBATCH_ACCOUNT"}), ({"account": "a"}, {"SLURM_CONF"})]
)
def test_what_the_shell_sets_for_sbatch_holds_only_where_the_profile_says_nothing(
    tmp_path, idle_cluster, monkeypatch, profile, reaches
):
    """sbatch takes its variables over what the script says, which is what the profile says."""
    results = tmp_path / "runs"
    for name in ("SBATCH_ACCOUNT", "SBATCH_TIMELIMIT", "SBATCH_NO_REQUEUE", "SLURM_MEM_PER_NODE", "SLURM_CONF"):
        monkeypatch.setenv(name, "mine")
    idle_cluster("sbatch", f'env > {tmp_path}/environment; echo "Submitted batch job 5"')
    slurm(results, **profile).submit([make_job(results)])
    seen = (tmp_path / "environment").read_text().splitlines()
    assert {line.partition("=")[0] for line in seen if line.startswith(("SBATCH_", "SLURM_"))} == reaches


@pytest.mark.parametrize("accounting", ["exit 1", 'for job in 1 2 3; do echo "${job}_0|FAILED|2|"; done'])
def test_a_job_that_dies_before_its_worker_begins_is_given_up_when_it_was_submitted_often_enough(
    tmp_path, idle_cluster, monkeypatch, accounting
):
    """As where the interpreter is not on the node: no start is ever seen."""
    monkeypatch.setattr(arrays, "POLL_S", 0.0)
    results, count = tmp_path / "runs", tmp_path / "count"
    idle_cluster("sbatch", f'echo x >> {count}; echo "Submitted batch job $(wc -l < {count})"')
    idle_cluster("sacct", accounting)
    job = make_job(results)
    executor = slurm(results, max_attempts="3")
    states = executor.wait(executor.submit([job]))
    assert len(count.read_text().split()) == 3
    assert states[job.run.key].state == "ERROR"
    record = RecordStore(results).read(job.run.key)
    assert record is not None
    assert record.message.startswith("submitted 3 times without finishing; job 3_0 ended before the worker began")
    (sweep,) = [chunk.path.parent for chunk in read_chunks(results) if chunk.job == "3"]
    assert str(sweep / "logs" / "3_0_0_log.out") in record.message
    assert record.environment["snapshot"]


def test_what_somebody_cancelled_is_not_submitted_again_though_queue_and_accounting_forget_it(
    tmp_path, idle_cluster, monkeypatch
):
    monkeypatch.setattr(arrays, "POLL_S", 0.0)
    results, count, looks = tmp_path / "runs", tmp_path / "count", tmp_path / "looks"
    idle_cluster("sbatch", f'echo x >> {count}; echo "Submitted batch job $(wc -l < {count})"')
    idle_cluster("sacct", "exit 1")
    executor = slurm(results)
    cancelled, lost = make_job(results, seed=0), make_job(results, seed=1)
    submission = executor.submit([cancelled, lost])
    (chunk,) = read_chunks(results)
    first = f"echo '1|0|CANCELLED|None|{chunk.name}'; echo '1|1|RUNNING|None|{chunk.name}'"
    idle_cluster("squeue", f"echo x >> {looks}; [ $(wc -l < {looks}) -gt 1 ] || {{ {first}; }}")
    states = executor.wait(submission)
    assert [run.key for chunk in list(read_chunks(results))[1:] for run in chunk.runs] == [lost.run.key] * 9
    assert states[cancelled.run.key].state in ("interrupted", "lost")
