"""The test cluster itself: a second one beside the first, started twice, taken down without a trace."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.slurm.conftest import REPOSITORY, testcluster


def script(name, folder):
    program = REPOSITORY / "slurm" / "testcluster" / name
    return subprocess.run(
        [sys.executable, str(program), str(folder)], capture_output=True, text=True, check=True
    ).stdout


def pids(cluster):
    return {name: cluster.pid(name) for name in testcluster.DAEMONS}


def test_up_and_down_touch_no_other_cluster_and_leave_nothing_behind(cluster):
    before = pids(cluster)
    with tempfile.TemporaryDirectory(prefix="hs") as parent:  # a short path: sockets have short names
        folder = Path(parent) / "c"
        second = testcluster.TestCluster(folder)
        exports = script("up", folder)
        assert f"export SLURM_CONF={folder}/etc/slurm.conf" in exports
        started = pids(second)
        assert all(started.values())
        assert not set(started.values()) & set(before.values())
        assert script("up", folder) == exports
        assert pids(second) == started
        second.call("sbatch", "--output=/dev/null", "--gres=gpu:2", "--wrap=sleep 100")
        second.wait_for(lambda: "RUNNING" in second.call("squeue", "-h", "-o", "%T"), "the job to run")
        assert not cluster.call("squeue", "-h").strip()
        script("down", folder)
        assert not folder.exists()
        assert not any(pids(second).values())
        assert not second._strays()
        script("down", folder)
    assert pids(cluster) == before
