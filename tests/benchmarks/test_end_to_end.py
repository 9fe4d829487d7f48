"""What a training costs from its command to its results: measured of processes, told as medians and paired ratios."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import end_to_end
from benchmarks.child import measured
from benchmarks.plain_training import loss_of, overlap


def _file(backbone: str = "vit_b") -> dict[str, Any]:
    peer = end_to_end.PEERS[backbone]

    def rounds(*walls: float) -> list[dict[str, float]]:
        return [{"wall_s": t, "processor_s": 2 * t, "peak_gib": t / 10, "first_update_s": t / 4} for t in walls]

    programs = {end_to_end.OURS: rounds(10, 12, 11), end_to_end.WARM: rounds(5, 6, 5.5), peer: rounds(20, 24, 22)}
    ratios = {f"{name} / {peer}": end_to_end.ratios(programs[name], programs[peer]) for name in list(programs)[:2]}
    asked = {"backbone": backbone, "image_size": "512", "precision": "bf16", "updates": "8", "batch": "1"}
    return {"options": asked, "rounds": programs, "ratios": ratios}


def test_a_child_is_measured_with_its_own_children_and_its_first_update(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    work = f"import pathlib; pathlib.Path({str(begun)!r}).touch(); block = bytearray(200 << 20)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}], check=True)"
    child = measured("a child", ["-c", parent], watch=lambda: begun.stat().st_mtime if begun.exists() else None)
    assert child["peak_gib"] > 200 / 1024  # of the child's child
    assert 0 < child["first_update_s"] <= child["wall_s"]
    with pytest.raises(SystemExit, match="3"):
        measured("a child", ["-c", "raise SystemExit(3)"])


def test_the_table_has_medians_and_ratios_paired_by_round() -> None:
    rows = [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in end_to_end.page([_file()]).splitlines()[2:]
    ]
    assert [row[1] for row in rows] == [end_to_end.OURS, end_to_end.WARM, "transformers"]
    assert rows[0][2:6] == ["11.0", "22.0", "1.10", "2.8"]
    assert [row[6].split()[0] for row in rows[:2]] == ["0.50**", "0.25**"]
    assert rows[2][6] == ""


def test_the_peers_loss_and_overlap_are_those_of_their_formulas() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 1, 5, 4, generator=generator, dtype=torch.float64)
    truth = (torch.rand(2, 1, 5, 4, generator=generator) > 0.5).double()
    shares = logits.sigmoid()
    entropy = -(truth * shares.log() + (1 - truth) * (1 - shares).log()).mean()
    dice = [1 - (2 * (s * t).sum() + 1) / (s.sum() + t.sum() + 1) for s, t in zip(shares, truth, strict=True)]
    torch.testing.assert_close(loss_of(logits, truth), entropy + sum(dice) / 2)
    predicted = logits > 0
    shared = [float((p & (t > 0)).sum() / (p | (t > 0)).sum()) for p, t in zip(predicted, truth, strict=True)]
    assert overlap(logits.numpy(), truth.numpy()) == pytest.approx(statistics.fmean(shared))
