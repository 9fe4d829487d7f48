"""What is asked of SLURM's clients, with stand-in clients on the PATH; the real ones are asked in tests/slurm."""

from __future__ import annotations

import os

import pytest

from harness.dispatch.clients import Slurm
from harness.dispatch.run_jobs import make_executor
from harness.dispatch.target import target_of
from harness.system.errors import UsageError


def test_a_machine_without_sbatch_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="sbatch is not on this machine's PATH; run this on a login node"):
        make_executor(target_of("slurm", cluster="testcluster"), results=tmp_path)


def test_array_tasks_are_read_one_by_one(client):
    client(
        "squeue",
        "echo '7|0|RUNNING|a|None'; echo '7|1|PENDING|a|JobArrayTaskLimit';"
        "echo '8|0|COMPLETING|b|None'; echo '9|N/A|COMPLETED|b|None'",
    )
    queue = Slurm().queue(["a", "b"])
    assert {place: task.active for place, task in queue.items()} == {("a", 0): True, ("a", 1): True, ("b", 0): False}
    assert (queue["a", 1].job, queue["a", 1].reason) == ("7_1", "JobArrayTaskLimit")


@pytest.mark.parametrize("name", ["SQUEUE_FORMAT", "SQUEUE_ACCOUNT", "SLURM_CLUSTERS"])
def test_what_a_user_asks_the_clients_for_does_not_disturb(client, monkeypatch, name):
    monkeypatch.setenv(name, "mine")
    client("squeue", f'test -z "${name}" && echo "7|0|RUNNING|a|None"')
    assert list(Slurm().queue(["a"])) == [("a", 0)]


def test_lines_that_are_about_no_job_are_passed_over(client):
    client("squeue", "echo 'CLUSTER: gpu'; echo; echo '7|0|RUNNING|a|None'; echo 'slurm_load_jobs: warning'")
    assert list(Slurm().queue(["a"])) == [("a", 0)]


def test_the_queue_is_asked_by_name_in_parts_for_jobs_of_every_user(client, tmp_path):
    client(
        "squeue",
        f'echo "$*" >> {tmp_path}/asked; case "$*" in *--me*|*--user*) ;; *n1500*) echo "7|0|RUNNING|n1500|None";; esac',
    )
    assert list(Slurm().queue(f"n{number:04}" for number in range(1800))) == [("n1500", 0)]
    assert len((tmp_path / "asked").read_text().splitlines()) == 2


@pytest.mark.parametrize(("said", "times"), [("Unable to contact slurm controller", 3), ("Socket timed out", 3)])
def test_a_controller_that_is_away_for_a_while_is_waited_for(client, tmp_path, monkeypatch, capsys, said, times):
    monkeypatch.setattr("harness.dispatch.clients.time.sleep", lambda seconds: None)
    count = tmp_path / "count"
    away = f"[ $(wc -l < {count}) -ge {times} ] || {{ echo '{said}' >&2; exit 1; }}"
    client("squeue", f"echo x >> {count}; {away}; echo '7|0|RUNNING|a|None'")
    assert list(Slurm(patience_s=20).queue(["a"])) == [("a", 0)]
    assert capsys.readouterr().err.count("waiting up to") == 1


def test_a_refusal_is_one_line_without_the_clients_prefix_and_is_not_tried_again(client, tmp_path):
    client("scancel", f"echo x >> {tmp_path}/count; echo 'scancel: error: Invalid job id' >&2; exit 1")
    with pytest.raises(UsageError, match=r"^scancel: Invalid job id$"):
        Slurm().cancel(["7"])
    assert (tmp_path / "count").read_text() == "x\n"


def test_an_empty_question_starts_no_client(monkeypatch):
    monkeypatch.setitem(os.environ, "PATH", "")
    assert Slurm().queue([]) == {}
    Slurm().cancel([])
