"""The test cluster itself: taking one down removes nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.slurm.conftest import REPOSITORY


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
