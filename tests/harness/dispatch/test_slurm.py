"""Submitting to SLURM and cancelling, with stand-in clients on the PATH; the real ones are in tests/slurm."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.dispatch import slurm as module
from harness.dispatch.run_jobs import make_executor
from harness.dispatch.slurm import Slurm, job_script
from harness.dispatch.sweeps import read_sweeps
from harness.dispatch.target import load_profile, target_of
from harness.run import main
from harness.system.errors import UsageError
from tests.harness.dispatch.helpers import make_job, submitted
from tests.values import wait_until


def slurm(results, **overrides):
    overrides = {"patience_seconds": "1", **overrides}
    return make_executor(target_of("slurm", cluster="testcluster", cluster_overrides=overrides), results=results)


def sweeps(results):
    return read_sweeps(results, {})


def queue(idle_cluster, results, *, state="PENDING", of=lambda sweep: True):
    """Shows the tasks of submitted sweeps, to those who ask for them by name."""
    rows = [
        f"echo '{sweep.arrays[array].job}|{task}|{state}|{sweep.names[array]}|None'"
        for sweep in sweeps(results)
        if of(sweep)
        for _, array, task in sweep.slots()
    ]
    idle_cluster("squeue", "\n".join(rows))


def counting(idle_cluster, folder):
    """An sbatch whose jobs are numbered from 1."""
    idle_cluster("sbatch", f"echo x >> {folder}/count; wc -l < {folder}/count")


def test_a_machine_without_slurm_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no SLURM here"):
        slurm(tmp_path)


def test_what_sbatch_refuses_is_one_line_with_what_to_do_and_leaves_nothing(tmp_path, idle_cluster):
    answer = "Batch job submission failed: Invalid partition name specified"
    idle_cluster("sbatch", f'echo "sbatch: error: {answer}" >&2; exit 1')
    with pytest.raises(UsageError) as caught:
        slurm(tmp_path).submit([make_job(tmp_path)])
    message = str(caught.value)
    for words in (answer.split(":")[-1].strip(), "--set cluster.", "nothing was submitted"):
        assert words in message
    assert "sbatch: error: " not in message
    assert "\n" not in message
    assert sweeps(tmp_path) == []


def test_results_that_cannot_be_written_say_what_to_do(tmp_path, idle_cluster):
    idle_cluster("sbatch", "echo 1")
    (blocked := tmp_path / "file").touch()
    with pytest.raises(UsageError, match=f"file cannot be written: .*{module.AGAIN}"):
        slurm(blocked).submit([make_job(blocked)])


def test_what_was_submitted_before_a_refusal_stays_known_and_the_rest_follows(tmp_path, idle_cluster):
    jobs = [make_job(tmp_path, seed=seed) for seed in range(5)]
    count = tmp_path / "count"
    refuse = '(echo "error: quota: QOS" >&2; exit 1)'
    idle_cluster("sbatch", f"echo x >> {count}; n=$(wc -l < {count}); test $n -le 2 && echo 4$n || {refuse}")
    with pytest.raises(UsageError, match=r"2 of 3 arrays are submitted \(41, 42\)"):
        slurm(tmp_path, max_array_size="2").submit(jobs)
    queue(idle_cluster, tmp_path)
    idle_cluster("sbatch", "echo 43")
    executor = slurm(tmp_path)
    assert executor.submit(jobs).keys() == {job.run.key for job in jobs[:4]}
    assert [run.key for run in sweeps(tmp_path)[-1].runs] == [jobs[4].run.key]
    assert "jobs 43" in executor.submitted
    queue(idle_cluster, tmp_path)
    executor = slurm(tmp_path)
    assert len(executor.submit(jobs)) == 5
    assert executor.submitted == ""


def test_a_second_submission_waits_for_the_first(tmp_path, idle_cluster, capsys):
    idle_cluster("sbatch", "echo 5")
    second = threading.Thread(target=slurm(tmp_path).submit, args=([make_job(tmp_path)],))
    with slurm(tmp_path)._alone():
        second.start()
        wait_until(lambda: "waiting for another submission" in capsys.readouterr().err)
        assert sweeps(tmp_path) == []
    second.join()
    assert len(sweeps(tmp_path)) == 1


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "COMPLETED", "NODE_FAIL"])
def test_what_has_ended_or_is_ending_is_resubmitted(tmp_path, idle_cluster, state):
    counting(idle_cluster, tmp_path)
    slurm(tmp_path).submit([make_job(tmp_path)])
    queue(idle_cluster, tmp_path, state=state)
    assert slurm(tmp_path).submit([make_job(tmp_path)]) == {}
    assert len(sweeps(tmp_path)) == 2


def test_an_array_whose_answer_was_lost_is_found_by_name_and_not_resubmitted(tmp_path, idle_cluster, monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 0.0)
    sent = tmp_path / "sent"
    name = "$(grep -o 'job-name=harness-[0-9a-f-]*' \"$2\" | grep -o 'harness.*')"
    idle_cluster("sbatch", f'echo "{name}" >> {sent}; echo "sbatch: error: Socket timed out" >&2; exit 1')
    idle_cluster("squeue", f'test ! -e {sent} || echo "77|0|PENDING|$(cat {sent})|None"')
    slurm(tmp_path).submit([make_job(tmp_path)])
    assert [array.job for array in sweeps(tmp_path)[0].arrays] == ["77"]
    assert len(sent.read_text().split()) == 1


def test_a_controller_that_does_not_come_back_leaves_a_sweep_whose_name_the_next_command_asks_for(
    tmp_path, idle_cluster, monkeypatch
):
    monkeypatch.setattr(module, "POLL_S", 0.0)
    idle_cluster("sbatch", 'echo "sbatch: error: Unable to contact slurm controller" >&2; exit 1')
    with pytest.raises(UsageError, match="does not answer"):
        slurm(tmp_path, patience_seconds="0.1").submit([make_job(tmp_path)])
    queue(idle_cluster, tmp_path)  # it came through after all
    idle_cluster("sbatch", "exit 1")
    assert len(slurm(tmp_path).submit([make_job(tmp_path)])) == 1


def test_shapes_become_arrays_below_the_clusters_limit_whose_options_submitit_writes(tmp_path, idle_cluster):
    results = tmp_path / "50%user runs"
    idle_cluster("sbatch", f'cp "$2" {tmp_path}/$$.words; echo $$')
    profile = tmp_path / "p.yaml"
    profile.write_text(
        "time: 1:00:00\nparallelism: 2\nmax_array_size: 3\nruns_per_job: 2\nextra: {exclusive: 'true', mail-type: FAIL}\n"
        "shapes: {vit_h: {mem: 64G, gres: 'gpu:1', gpus_per_run: 1, runs_per_job: 1, cpus: 4, time: 2h}}\n"
    )
    small = [make_job(results, seed=seed) for seed in range(7)]
    large = [replace(job, run=replace(job.run, backbone="vit_h")) for job in small[:1]]
    make_executor(target_of("slurm", cluster=str(profile)), results=results).submit([*small, *large])
    (sweep,) = sweeps(results)
    assert [(array.first, array.runs, array.per_task, array.gpus) for array in sweep.arrays] == [
        (0, 6, 2, 0), (6, 1, 2, 0), (7, 1, 1, 1)
    ]  # fmt: skip
    files = sorted(tmp_path.glob("*.words"), key=lambda p: int(p.stem))
    words = [
        [shlex.split(line)[1] for line in path.read_text().splitlines() if line.startswith("#SBATCH ")]
        for path in files
    ]
    assert [[word for word in given if "--array" in word] for given in words] == [
        ["--array=0-2%2"], ["--array=0-0%1"], ["--array=0-0%1"]
    ]  # fmt: skip
    assert [[word for word in given if "--time" in word] for given in words[:2]] == [["--time=60"]] * 2
    assert f"exec bash -l '{sweep.folder}/job-2.sh'" in files[2].read_text().splitlines()
    assert {
        "--gres=gpu:1", "--mem=64G", "--ntasks-per-node=1", "--cpus-per-task=4", "--time=120", "--exclusive",
        "--mail-type=FAIL", "--requeue", "--signal=USR2@120", f"--comment={results}",
        f"--output={str(sweep.logs).replace('%', '%%')}/%A_%a.out",
    } <= set(words[2])  # fmt: skip


WARNED_TOO_EARLY = 128 + signal.SIGUSR2
"""The status of a step that the warning before the time limit ended, since its worker did not listen yet."""
STARTS = load_profile("testcluster").max_attempts
SCRIPT_TASK = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}


@pytest.mark.parametrize(
    ("statuses", "requeue", "ended", "restarts", "calls", "requeued"),
    [
        ([0], False, False, 0, 1, False),
        ([0], True, False, 0, 1, True),
        ([4], False, False, 0, 1, False),
        ([137, 0], False, False, 0, 2, False),
        ([137, 0], True, False, 0, 2, True),
        ([0], True, True, 0, 1, False),
        ([143], True, True, 0, 1, False),
        ([WARNED_TOO_EARLY], False, False, STARTS - 1, 1, True),
        ([WARNED_TOO_EARLY], False, False, STARTS, 1, False),
    ],
)
def test_a_job_script_settles_its_step_and_requests_a_requeue(
    tmp_path, statuses, requeue, ended, restarts, calls, requeued
):
    """``ended``: the cluster ends the whole job, its script too."""
    sweep = submitted(tmp_path, [make_job(tmp_path)])
    profile = load_profile(
        "testcluster", {"python": "apptainer exec image.sif python", "srun_args": ["--mpi=none", "a b"]}
    )
    folder = tmp_path / "bin"
    folder.mkdir()
    marker = sweep.logs / "7_0.again"
    step = "\n".join(
        [
            f'echo "$*" >> {tmp_path}/calls',
            f"n=$(wc -l < {tmp_path}/calls)",
            f"[ $n = {len(statuses)} ] && {'touch' if requeue else ': '} {marker}",
            "kill -TERM $PPID; sleep 0.1" if ended else "",
            f"set -- {' '.join(map(str, statuses))}; shift $((n - 1)); exit $1",
        ]
    )
    for name, text in {"srun": step, "scontrol": f'echo "$*" >> {tmp_path}/requeued', "sleep": "true"}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(job_script(sweep, 0, profile, profile.shape("tiny")))
    task = {**SCRIPT_TASK, "SLURM_RESTART_COUNT": str(restarts)}
    environment = {**os.environ, **task, "PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == statuses[0], done.stderr
    said = (tmp_path / "calls").read_text().splitlines()
    assert len(said) == calls
    assert said[0].startswith("--cpus-per-task=1 --mpi=none a b apptainer exec image.sif python -uB ")
    assert ["--after 137" in line for line in said] == [False, True][:calls]
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7_0\n"
        assert not marker.exists()


@pytest.mark.parametrize(
    ("profile", "reaches"), [({}, {"SLURM_CONF", "SBATCH_ACCOUNT"}), ({"account": "a"}, {"SLURM_CONF"})]
)
def test_sbatch_variables_of_the_shell_hold_only_where_the_profile_leaves_them_empty(
    tmp_path, idle_cluster, monkeypatch, profile, reaches
):
    for name in ("SBATCH_ACCOUNT", "SBATCH_TIMELIMIT", "SBATCH_NO_REQUEUE", "SLURM_MEM_PER_NODE", "SLURM_CONF"):
        monkeypatch.setenv(name, "mine")
    idle_cluster("sbatch", f"env > {tmp_path}/environment; echo 5")
    slurm(tmp_path, **profile).submit([make_job(tmp_path)])
    seen = (tmp_path / "environment").read_text().splitlines()
    assert {line.partition("=")[0] for line in seen if line.startswith(("SBATCH_", "SLURM_"))} == reaches


def test_waiting_ends_when_the_cluster_has_no_more_of_the_runs(tmp_path, idle_cluster, monkeypatch):
    for name in ("POLL_S", "REQUEUE_S"):
        monkeypatch.setattr(module, name, 0.0)
    counting(idle_cluster, tmp_path)
    done, lost = make_job(tmp_path, seed=0), make_job(tmp_path, seed=1)
    executor = slurm(tmp_path)
    executor.submit([done, lost])
    RecordStore(tmp_path).write(Record(run=done.run, key=done.run.key, code="OK"))
    states = executor.wait(on_change=lambda runs: None)
    assert (states[done.run.key].state, states[lost.run.key].state) == ("OK", "interrupted")
    assert len(sweeps(tmp_path)) == 1


def test_a_waiting_command_looks_ever_more_rarely_and_gives_a_requeued_job_time(tmp_path, idle_cluster, monkeypatch):
    clock, naps, job = [0.0], [], make_job(tmp_path)
    counting(idle_cluster, tmp_path)
    executor = slurm(tmp_path)
    executor._keys = [job.run.key]
    words = iter(["running"] * 20 + ["interrupted"] * 9)

    def survey(*_, **__):
        state = SimpleNamespace(state=next(words))
        at_work = SimpleNamespace(state=state.state, unsettled=state.state == "running")
        return SimpleNamespace(runs={"k": at_work, "done": SimpleNamespace(state="OK", unsettled=False)})

    def sleep(seconds):
        naps.append(seconds)
        clock.append(clock.pop() + seconds)

    monkeypatch.setattr(module, "survey", survey)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    assert executor.wait(on_change=lambda runs: None)["k"].state == "interrupted"
    assert naps[:2] == [2.0, pytest.approx(2.4)]
    assert naps[18:] == [30.0] * 3  # the last run was seen at work before the first two of these: 40 seconds


def test_cancel_takes_what_the_same_command_submitted_and_leaves_what_others_did(
    tmp_path, idle_cluster, monkeypatch, capsys
):
    results, cancelled = tmp_path / "runs", tmp_path / "cancelled"

    def run(methods, *more):
        words = ["--yes", "--protocol", "demo", "--datasets", "kvasir", "--methods", methods, "--results", str(results)]
        words += ["--cluster", "testcluster", *more]
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        assert main(words) == 0
        return capsys.readouterr()

    counting(idle_cluster, tmp_path)
    idle_cluster("scancel", f"echo $* >> {cancelled}")
    run("lora")
    queue(idle_cluster, results)
    assert "not resubmitted" in run("lora,naslora").err
    queue(idle_cluster, results)
    assert "nothing to submit: every run is finished, queued or running" in run("lora").out
    assert "cancelled 1 job" in run("naslora,lora", "--cancel", "--set", "cluster.time=2h").out
    assert cancelled.read_text().split() == ["2"]
    queue(idle_cluster, results, of=lambda sweep: not sweep.ended)
    monkeypatch.setattr(module, "user_name", lambda: "bob")
    assert "nothing to cancel" in run("lora", "--cancel").out
    assert cancelled.read_text().split() == ["2"]


def test_array_tasks_are_read_one_by_one_and_other_lines_passed_over(client):
    client(
        "squeue",
        "echo 'CLUSTER: gpu'; echo; echo '7|0|RUNNING|a|None'; echo '7|1|PENDING|a|Job|Limit';"
        "echo 'slurm_load_jobs: warning';"
        "echo '8|0|COMPLETING|b|None'; echo '9|N/A|COMPLETED|b|None'",
    )
    queue = Slurm().queue(["a", "b"])
    assert {slot: task.active for slot, task in queue.items()} == {("a", 0): True, ("a", 1): True, ("b", 0): False}
    assert (queue["a", 1].job, queue["a", 1].reason) == ("7_1", "Job|Limit")


@pytest.mark.parametrize("name", ["SQUEUE_FORMAT", "SQUEUE_ACCOUNT", "SLURM_CLUSTERS"])
def test_what_a_user_asks_the_clients_for_does_not_disturb(client, monkeypatch, name):
    monkeypatch.setenv(name, "mine")
    client("squeue", f'test -z "${name}" && echo "7|0|RUNNING|a|None"')
    assert list(Slurm().queue(["a"])) == [("a", 0)]


def test_the_queue_is_queried_by_name_in_parts_for_jobs_of_every_user(client, tmp_path):
    client(
        "squeue",
        f'echo "$*" >> {tmp_path}/calls; case "$*" in *--me*|*--user*) ;; *n1500*) echo "7|0|RUNNING|n1500|None";; esac',
    )
    assert list(Slurm().queue(f"n{number:04}" for number in range(1800))) == [("n1500", 0)]
    assert len((tmp_path / "calls").read_text().splitlines()) == 2


def test_a_client_that_hangs_is_asked_again(monkeypatch):
    answers = iter([subprocess.TimeoutExpired("squeue", 120), SimpleNamespace(returncode=0, stdout="x", stderr="")])

    def run(*_, **__):
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired))
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    assert Slurm().ask(["squeue"]) == "x"


@pytest.mark.parametrize("said", ["Unable to contact slurm controller", "Socket timed out"])
def test_a_controller_that_is_away_for_a_while_is_waited_for(client, tmp_path, monkeypatch, capsys, said):
    monkeypatch.setattr("harness.dispatch.slurm.time.sleep", lambda seconds: None)
    count = tmp_path / "count"
    away = f"[ $(wc -l < {count}) -ge 3 ] || {{ echo '{said}' >&2; exit 1; }}"
    client("squeue", f"echo x >> {count}; {away}; echo '7|0|RUNNING|a|None'")
    assert list(Slurm(patience_s=20).queue(["a"])) == [("a", 0)]
    assert capsys.readouterr().err.count("waiting up to") == 1


def test_a_refusal_is_one_line_without_the_clients_prefix_and_is_not_retried(client, tmp_path):
    client("scancel", f"echo x >> {tmp_path}/count; echo 'scancel: error: Invalid job id' >&2; exit 1")
    with pytest.raises(UsageError, match=r"^scancel: Invalid job id$"):
        Slurm().cancel(["7"])
    assert (tmp_path / "count").read_text() == "x\n"
