"""Training in processes of its own: killed and restarted it ends bit for bit as one that was left alone."""

from __future__ import annotations

import json

import pytest

STAGEWISE = {"search_start_epoch": 1, "alpha_data": "holdout"}


@pytest.mark.parametrize(
    ("method", "config", "every_step"),
    [
        pytest.param("naslora", STAGEWISE, True, id="naslora: batch norm, two optimisers, held-out part"),
        pytest.param("naslora", STAGEWISE, False, id="naslora, repeating steps since the epoch's end"),
        pytest.param("convlora", {}, True, id="convlora: noise", marks=pytest.mark.slow),
    ],
)
def test_killed_at_several_steps_ends_bit_identical(forks, tmp_path, method, config, every_step):
    rules = {"checkpoint_minutes": 1e-9 if every_step else 60.0}
    options = {"method": method, "config": config, "rules": rules}
    alone = json.loads(forks.run({**options, "folder": str(tmp_path / "alone")})[-1])
    killed = {**options, "folder": str(tmp_path / "killed")}
    for line in ("step 2 2", "epoch 2"):
        forks.run(killed, kill_at=line)
    *lines, result = forks.run(killed)
    assert any(line.startswith("note") and "continues in epoch" in line for line in lines)
    assert json.loads(result) == alone
    assert len(alone["history"]) == 3
