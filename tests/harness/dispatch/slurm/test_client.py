"""What is asked of SLURM's clients, with stand-in clients on the PATH; the real ones are asked in tests/slurm."""

from __future__ import annotations

import os

import pytest

from harness.dispatch.place import place
from harness.dispatch.run_jobs import make_executor
from harness.dispatch.slurm.client import Refused, Slurm, client_message, patiently
from harness.system.errors import UsageError


def test_a_machine_without_sbatch_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="sbatch is not on this machine's PATH; run this on a login node"):
        make_executor(place("slurm", cluster="testcluster"), results=tmp_path)


def test_array_tasks_are_read_one_by_one(client):
    client("squeue", "echo '7|0|RUNNING|None|a'; echo '7|1|PENDING|JobArrayTaskLimit|a'; echo '9|N/A|COMPLETED|None|b'")
    tasks = Slurm().tasks(["a", "b"])
    assert {job: task.active for job, task in tasks.items()} == {"7_0": True, "7_1": True, "9": False}
    assert tasks["7_1"].reason == "JobArrayTaskLimit"


@pytest.mark.parametrize(
    "name", ["SQUEUE_FORMAT", "SQUEUE_ACCOUNT", "SACCT_FEDERATION", "SACCT_LOCAL", "SLURM_CLUSTERS"]
)
def test_what_a_user_asks_the_clients_for_does_not_disturb(client, monkeypatch, name):
    monkeypatch.setenv(name, "mine")
    client("squeue", f'test -z "${name}" && echo "7|0|RUNNING|None|a"')
    client("sacct", f'test -z "${name}" && echo "7_0|COMPLETED|12|gres/gpu=1"')
    if not name.startswith("SACCT"):
        assert list(Slurm().tasks(["a"])) == ["7_0"]
    if not name.startswith("SQUEUE"):
        assert len(Slurm().history(["7_0"]) or []) == 1


@pytest.mark.parametrize(
    ("said", "preempted"),
    [("2026-11-28T10:00:00", True), ("None", False), ("Unknown", False)],
)
def test_a_job_that_makes_room_for_another_is_known_by_its_time(client, said: str, preempted: bool) -> None:
    client(
        "scontrol",
        f"echo '   SuspendTime=None PreemptEligibleTime=2026-11-28T09:00:00 PreemptTime={said} SecsPreSuspend=0'",
    )
    assert Slurm().preempts("7_0") == preempted


def test_lines_that_are_about_no_job_are_passed_over(client):
    client("squeue", "echo 'CLUSTER: gpu'; echo; echo '7|0|RUNNING|None|a'; echo 'slurm_load_jobs: warning'")
    assert list(Slurm().tasks(["a"])) == ["7_0"]
    client("sacct", "echo 'a warning'; echo '7_0|COMPLETED|12|gres/gpu=1'; echo '7_0|COMPLETED|no time|gres/gpu=1'")
    assert [account.seconds for account in Slurm().history(["7_0"]) or []] == [12.0]


def test_the_queue_is_asked_by_name_in_parts_for_jobs_of_every_user(client, tmp_path):
    client(
        "squeue",
        f'echo "$*" >> {tmp_path}/asked; case "$*" in *--me*|*--user*) ;; *n1500*) echo "7|0|RUNNING|None|n1500";; esac',
    )
    assert list(Slurm().tasks(f"n{number:04}" for number in range(1800))) == ["7_0"]
    assert len((tmp_path / "asked").read_text().splitlines()) == 2


def test_jobs_are_found_by_name_in_the_queue_or_in_accounting(client):
    client("squeue", "echo '7|mine-a'; echo '8|other'")
    client("sacct", "echo '5_0|mine-b'; echo '5_1|mine-b'")
    assert Slurm().ids_by_name(["mine-a", "mine-b", "mine-c"]) == {"mine-a": "7", "mine-b": "5"}


def test_accounting_that_is_off_is_told_from_accounting_that_knows_nothing(client):
    client("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert Slurm().history(["7_0"]) is None
    client("sacct", "true")
    assert Slurm().history(["7_0"]) == []
    client("sacct", "echo '7_0|CANCELLED by 0|12|billing=1,gres/gpu=2'")
    (account,) = Slurm().history(["7_0"]) or []
    assert (account.state, account.seconds, account.gpus) == ("CANCELLED", 12.0, 2)


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ("billing=8,cpu=8,mem=32G,node=1", 0),  # AccountingStorageTRES as SLURM has it by default
        ("cpu=8,gres/gpu:a100=2,node=1", 2),
        ("cpu=8,gres/gpu:a100=2,gres/gpu:v100=1,node=1", 3),
        ("cpu=8,gres/gpu=2,gres/gpu:a100=2,node=1", 2),
        ("cpu=8,gres/gpumem=80G,gres/gpuutil=100,node=1", 0),
    ],
)
def test_gpus_of_an_account_are_counted_whether_their_type_is_told_or_not(client, resources, gpus):
    client("sacct", f"echo '7_0|COMPLETED|12|{resources}'")
    assert [account.gpus for account in Slurm().history(["7_0"]) or []] == [gpus]


def test_a_controller_that_is_away_for_a_while_is_waited_for():
    answers = iter(
        [Refused("squeue: Unable to contact slurm controller (connect failure)"), Refused("x: Socket timed out"), "7"]
    )
    said: list[str] = []

    def ask():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(ask, patience_s=20, say=said.append) == "7"
    assert len(said) == 1


def test_a_refusal_is_not_tried_again():
    count = []

    def ask():
        count.append(1)
        raise Refused("sbatch: Invalid partition specified")

    with pytest.raises(UsageError, match="Invalid partition"):
        patiently(ask, patience_s=60, say=print)
    assert len(count) == 1


def test_messages_are_one_line_without_the_clients_prefixes():
    assert client_message("sbatch", "sbatch: error: I/O error writing script\n") == "sbatch: I/O error writing script"


def test_an_empty_question_starts_no_client(monkeypatch):
    monkeypatch.setitem(os.environ, "PATH", "")
    assert Slurm().ids_by_name([]) == {}
    assert Slurm().tasks([]) == {}
    assert Slurm().history([]) == []
    Slurm().cancel([])
