"""Cancelling what a command submitted, and nothing else, with stand-in clients."""

from __future__ import annotations

import shlex
import sys

import pytest

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.dispatch.slurm import executor as arrays
from harness.dispatch.slurm.executor import asked_for, cancelling
from harness.dispatch.sweeps import read_chunks, read_sweeps
from harness.run import main
from harness.system.errors import UsageError
from tests.harness.dispatch.helpers import make_job
from tests.harness.dispatch.slurm.helpers import queue, slurm


def run(monkeypatch, results, methods, *more):
    arguments = ["--yes", "--protocol", "demo", "--datasets", "kvasir", "--methods", methods, "--results", str(results)]
    arguments += ["--cluster", "testcluster", *more]
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    return main(arguments)


def test_cancel_takes_what_the_same_command_submitted_and_names_what_others_did(
    tmp_path, idle_cluster, monkeypatch, capsys
):
    results, count, cancelled = tmp_path / "runs", tmp_path / "count", tmp_path / "cancelled"
    idle_cluster("sbatch", f'echo x >> {count}; echo "Submitted batch job $(wc -l < {count})"')
    idle_cluster("scancel", f"echo $* >> {cancelled}")
    assert run(monkeypatch, results, "lora") == 0
    queue(idle_cluster, results)
    assert run(monkeypatch, results, "lora,naslora") == 0
    assert "not submitted again" in capsys.readouterr().err
    queue(idle_cluster, results)
    assert run(monkeypatch, results, "lora,naslora", "--cancel") == 0
    assert cancelled.read_text().split() == ["2"]
    said = capsys.readouterr()
    assert "cancelled 1 jobs" in said.out
    (line,) = [line for line in said.err.splitlines() if line.startswith("left: ")]
    assert "left: 1 jobs of these runs" in line
    assert line.endswith(f"--methods lora --results {results} --cluster testcluster --cancel")
    queue(idle_cluster, results, of=lambda chunk: chunk.job == "1")
    monkeypatch.setattr(arrays.Slurm, "__init__", as_bob(arrays.Slurm.__init__))
    assert run(monkeypatch, results, "lora", "--cancel") == 0
    said = capsys.readouterr()
    assert "nothing to cancel" in said.out
    assert "who cancels it with: python -m harness.run" in said.err
    assert cancelled.read_text().split() == ["2"]


def test_cancelled_trials_are_not_on_their_way(tmp_path, idle_cluster, monkeypatch, capsys):
    results, cancelled, tuned = tmp_path / "runs", tmp_path / "cancelled", ("--tune", "lora.lr=1e-4,1e-3")
    idle_cluster("sbatch", 'echo "Submitted batch job 1"')
    idle_cluster("scancel", f"echo $* >> {cancelled}")
    assert run(monkeypatch, results, "lora", *tuned) == 0
    assert "tuning: 2 trials are on their way" in capsys.readouterr().err
    queue(idle_cluster, results)
    assert run(monkeypatch, results, "lora", *tuned, "--cancel") == 0
    said = capsys.readouterr()
    assert "cancelled 2 jobs" in said.out
    assert "tuning" not in said.err
    assert cancelled.read_text().split() == ["1"]


def test_a_sweep_that_the_cluster_did_not_cancel_stays_known(tmp_path, idle_cluster):
    results, cancelled = tmp_path / "runs", tmp_path / "cancelled"
    job = make_job(results)
    idle_cluster("sbatch", 'echo "Submitted batch job 5"')
    slurm(results).submit([job])
    queue(idle_cluster, results)
    idle_cluster("scancel", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(UsageError, match="has not answered"):
        slurm(results).cancel([job.run.key])
    assert slurm(results).submit([job]).keys == (), "it is in the queue"
    idle_cluster("scancel", f"echo $* >> {cancelled}")
    assert slurm(results).cancel([job.run.key]) == ["5_0"]
    assert cancelled.read_text().split() == ["5"]
    assert [chunk.closed for chunk in read_chunks(results)] == ["cancelled"]


def as_bob(init):
    def changed(self, **options):
        init(self, **options)
        self.user = "bob"

    return changed


def test_a_sweep_is_cancelled_by_its_command_though_a_budget_or_an_earlier_success_left_runs_out(
    tmp_path, idle_cluster, monkeypatch
):
    results, cancelled = tmp_path / "runs", tmp_path / "cancelled"
    idle_cluster("sbatch", 'echo "Submitted batch job 1"')
    idle_cluster("scancel", f"echo $* >> {cancelled}")
    assert run(monkeypatch, results, "lora,naslora", "--budget", "1000") == 0
    (sweep,) = read_sweeps(results)
    (chunk,) = read_chunks(results)
    finished = chunk.jobs()[0].run
    RecordStore(results).write(Record(run=finished, key=finished.key, code="OK"))
    queue(idle_cluster, results)
    assert run(monkeypatch, results, "naslora,lora", "--cancel", "--set", "cluster.time=2h") == 0
    assert cancelled.read_text().split() == ["1"]
    assert sweep.user
    assert sweep.request


def test_the_same_command_cancels_though_its_card_was_mended_since_and_what_else_waits_is_named(
    tmp_path, idle_cluster, monkeypatch, capsys
):
    results, cancelled, card = tmp_path / "runs", tmp_path / "cancelled", tmp_path / "mine.yaml"
    idle_cluster("sbatch", 'echo "Submitted batch job 1"')
    idle_cluster("scancel", f"echo $* >> {cancelled}")
    command = ["--yes", "--protocol", str(card), "--datasets", "kvasir", "--methods", "lora", "--results", str(results)]
    command += ["--cluster", "testcluster"]

    def give(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["sam-peft", "run", *command, *more])
        return main([*command, *more])

    card.write_text("_base_: demo.yaml\nepochs: 2\n")
    assert give("--retry", "oom") == 0
    assert [sweep.command.split()[:2] for sweep in read_sweeps(results)] == [["sam-peft", "run"]]
    queue(idle_cluster, results)
    card.write_text("_base_: demo.yaml\nepochs: 3\n")
    capsys.readouterr()
    assert run(monkeypatch, results, "bitfit", "--cancel") == 0
    said = capsys.readouterr()
    assert "nothing to cancel" in said.out
    assert "left: 1 jobs of other runs" in said.err
    assert not cancelled.exists()
    assert give("--cancel") == 0
    assert cancelled.read_text().split() == ["1"]


def test_what_is_missing_now_does_not_keep_jobs_from_being_cancelled(tmp_path, idle_cluster, monkeypatch):
    results, cancelled = tmp_path / "runs", tmp_path / "cancelled"
    idle_cluster("sbatch", 'echo "Submitted batch job 1"')
    idle_cluster("scancel", f"echo $* >> {cancelled}")
    assert run(monkeypatch, results, "lora") == 0
    queue(idle_cluster, results)
    (sweep,) = read_sweeps(results)
    told = [*shlex.split(sweep.command)[3:], "--cancel"]
    settings = tmp_path / "settings.toml"
    settings.write_text(f'[checkpoints]\ntiny = "{tmp_path / "of a server that is away.pth"}"\n')
    monkeypatch.setenv("SAM_PEFT_SETTINGS", str(settings))
    monkeypatch.setattr(sys, "argv", ["run.py", *told])
    assert main(told) == 0
    assert cancelled.read_text().split() == ["1"]


def test_how_another_commands_sweep_is_cancelled_is_said_without_what_cancel_refuses(
    tmp_path, idle_cluster, monkeypatch, capsys
):
    results = tmp_path / "some runs"
    idle_cluster("sbatch", 'echo "Submitted batch job 1"')
    assert run(monkeypatch, results, "lora", "--retry", "all", "--seeds", "2", "--budget=1000") == 0
    queue(idle_cluster, results)
    assert "--cancel (without --wait, --retry, --budget)" in capsys.readouterr().out
    assert run(monkeypatch, results, "lora,naslora", "--seeds", "2", "--cancel") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left: ")]
    told = shlex.split(line.partition("cancel it with: python -m harness.run ")[2])
    assert told[-3:] == ["--seeds", "2", "--cancel"]
    monkeypatch.setattr(sys, "argv", ["run.py", *told])
    idle_cluster("scancel", f"echo $* >> {tmp_path}/cancelled")
    assert main(told) == 0
    assert (tmp_path / "cancelled").read_text().split() == ["1"]


@pytest.mark.parametrize(
    "given", ["--wait", "--wai", "--retry all", "--retry=oom,error", "--budget 7", "--bud=7 --wait"]
)
def test_options_that_start_or_await_runs_are_left_out_wherever_they_are(given):
    assert cancelling(f"python -m harness.run {given} --set 'a=b c' --workers 2") == (
        "python -m harness.run --set 'a=b c' --workers 2 --cancel"
    )
    assert cancelling(f"python -m harness.run --methods 'lora[rank=4]' {given}") == (
        "python -m harness.run --methods 'lora[rank=4]' --cancel"
    )


def test_a_command_asks_for_the_same_however_its_program_is_called():
    asked = "--methods 'lora[rank=4]' --set 'a=b c'"
    for how in ("python -m harness.run", "python -m harness run", "sam-peft run"):
        assert asked_for(f"{how} {asked} --retry oom") == asked_for(f"python -m harness.run --cancel {asked}")
    assert asked_for(f"sam-peft run {asked}") != asked_for(f"sam-peft run {asked} --seeds 2")


def test_what_is_no_command_line_is_told_as_it_is():
    assert cancelling("run --retry") == "run --retry --cancel"
    assert cancelling("run 'a") == "run 'a --cancel"
