"""The test cluster itself: a second one next to the first, started twice, taken down without a trace."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.slurm.conftest import REPOSITORY, testcluster


def script(name, folder):
    program = REPOSITORY / "slurm" / "testcluster" / name
    return subprocess.run(
        [sys.executable, str(program), str(folder)], capture_output=True, text=True, check=True
    ).stdout


def take_down(folder):
    program = REPOSITORY / "slurm" / "testcluster" / "down"
    done = subprocess.run([sys.executable, str(program), str(folder)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("ports", [None, "80", "[1, 2]", '{"web": 80}', "no JSON"])
def test_down_removes_no_folder_that_up_did_not_make(tmp_path, ports):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "mine.conf").write_text("mine")
    if ports is not None:
        (tmp_path / "etc" / "ports.json").write_text(ports)
    code, said = take_down(tmp_path)
    assert (code, said) == (1, f"error: {tmp_path} holds no test cluster; nothing was removed\n")
    assert (tmp_path / "etc" / "mine.conf").read_text() == "mine"


def test_down_is_quiet_where_nothing_is_and_takes_what_an_interrupted_up_left(tmp_path):
    assert take_down(tmp_path / "absent") == (0, "")
    (tmp_path / "empty").mkdir()
    assert take_down(tmp_path / "empty") == (0, "")
    half = testcluster.TestCluster(tmp_path / "half")
    (half.folder / "etc").mkdir(parents=True)
    (half.folder / "etc" / "ports.json").write_text(json.dumps(dict.fromkeys(testcluster.PORTS, 1)))
    assert take_down(half.folder) == (0, "")
    assert not half.folder.exists()


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
