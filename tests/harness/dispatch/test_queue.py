"""What a cluster says of its jobs."""

from __future__ import annotations

import pytest

from harness.dispatch.queue import Task


@pytest.mark.parametrize(
    ("states", "active"),
    [
        ("PENDING RUNNING COMPLETING CONFIGURING REQUEUED REQUEUE_HOLD SPECIAL_EXIT STOPPED SUSPENDED", True),
        ("RESV_DEL_HOLD POWER_UP_NODE EXPEDITING UPDATE_DB A_WORD_OF_A_LATER_SLURM", True),
        ("COMPLETED CANCELLED FAILED TIMEOUT DEADLINE OUT_OF_MEMORY NODE_FAIL BOOT_FAIL PREEMPTED", False),
        ("REVOKED LAUNCH_FAILED RECONFIG_FAIL", False),
    ],
)
def test_something_may_come_of_a_job_unless_its_state_says_that_it_ended(states, active):
    assert {state: Task(job="7_0", state=state).active for state in states.split()} == dict.fromkeys(
        states.split(), active
    )
