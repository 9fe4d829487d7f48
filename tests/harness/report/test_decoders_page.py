"""What docs/decoders.md says of three decoders is in the committed records and tables."""

from __future__ import annotations

import re
from pathlib import Path

from harness.archive.archive import Archive
from harness.archive.store import RecordStore
from harness.comparison.claims import read_claims
from harness.studies import load_study
from tests.harness.report.sample import judged as judged_on
from tests.harness.report.sample import plain, table_rows

ROOT = Path(__file__).parents[3]


def test_the_rates_of_the_mask_transformer_are_told_as_they_were() -> None:
    page = " ".join((ROOT / "docs" / "decoders.md").read_text(encoding="utf-8").split())
    scores = {
        (one.run.rules["decoder"], one.run.method_config["lr"]): f"{100 * one.scores['best']['test']['s_measure']:.1f}"
        for one in RecordStore(ROOT / "results")
        if (one.run.protocol, one.run.method, one.run.benchmark, one.run.seed) == ("small", "decoder", "kvasir", 0)
        and one.run.rules.get("decoder", "sam") != "sam"
        and one.run.rules.get("decoder_lr") is None
    }
    high, middle, low = (scores["mask-transformer", rate] for rate in (1e-3, 3e-4, 1e-4))
    assert f"it scores {high} Sα at the study's 1e-3, {middle} at 3e-4 and {low} at 1e-4" in page
    assert f"the linear decoder has {scores['linear', 1e-3]} at 1e-3" in page


def under_decoders() -> tuple[list[list[str]], list[list[str]]]:
    """Of the page of three decoders: scores by decoder and number, with what NAS-LoRA is from LoRA; and the rankings compared."""
    page = (ROOT / "results" / "tables" / "small-cross-model.md").read_text(encoding="utf-8")
    sheets_text, _, rankings = page.partition(": do the methods rank alike?")
    found = []
    for part in sheets_text.split("\n## ")[1:]:
        decoder = part.partition("\n")[0].partition(" · decoder ")[2] or "sam"
        header, *scores = table_rows("| method" + part.partition("\n| method")[2].partition("\n\n")[0])
        apart = {
            (row[0].split(",")[0], row[1]): row[2:4] for row in table_rows(part.partition(": differences to LoRA")[2])
        }
        for place, name in enumerate(header):
            if re.search(" (Sα|IoU) ", name):
                number = re.sub(r" \(.*?\)| ↑", "", name)
                delta, bounds = apart["NAS-LoRA", number]
                cells = [plain(row[place]) for row in scores]
                found.append([re.sub(r" \(3\)$", "", cell) for cell in (decoder, number, *cells, delta, bounds)])
    decoders = list(load_study("small-cross-model").decoders)
    found.sort(key=lambda row: decoders.index(row[0]))
    return found, table_rows(rankings.partition("\n\nK")[0])


def test_scores_and_rankings_under_each_decoder_are_told_as_the_page_has_them() -> None:
    text = (ROOT / "docs" / "decoders.md").read_text(encoding="utf-8").partition("**On small real images.**")[2]
    scores, rankings = under_decoders()
    told = table_rows(text)
    split = next(number for number, row in enumerate(told) if row[0] == "models")
    assert (told[1:split], told[split:]) == (scores, rankings)
    after = " ".join(text.split())
    bounds = [tuple(float(end) for end in row[-1].strip("[]").split(", ")) for row in scores]
    assert len(scores) == 9
    assert all(low < 0 < high for low, high in bounds)
    ahead = [f"{row[1]} under {row[0]}" for row in scores if float(row[-2]) > 0]
    assert ahead == ["Kvasir-SEG Sα under sam", "Leaf IoU under linear"]
    assert "LoRA is ahead of NAS-LoRA in seven of nine" in after
    lora = {(row[0], row[1]): float(row[4].split()[0]) for row in scores}
    gaps = [abs(lora["linear", number] - lora["sam", number]) for decoder, number in lora if decoder == "sam"]
    assert f"within {max(gaps):.1f} points of" in after
    assert {row[-1] for row in rankings[1:]} == {"2 of 24 orders", "7 of 24 orders"}
    assert all(float(row[-3]) > 0 for row in rankings[1:])
    assert "Every two models agree more than they disagree" in after
    claims = {one.name: one for one in read_claims()}
    (judged,) = judged_on([claims["architecture-independence"]], Archive(ROOT / "results"), protocol="small")
    assert f"is therefore **{judged.verdict}** here" in after


def test_runs_that_hardly_learn_under_the_mask_transformer_are_counted() -> None:
    found: dict[str, list[bool]] = {"linear": [], "mask-transformer": []}
    for one in RecordStore(ROOT / "results"):
        rules, tuning = one.run.rules, one.run.tuning
        rate = {"linear": None, "mask-transformer": 1e-4}
        decoder = rules.get("decoder", "sam")
        if one.run.protocol != "small" or decoder not in rate or rules.get("decoder_lr") != rate[decoder]:
            continue
        if tuning and "chosen" not in tuning:
            continue
        found[decoder].append(one.history[-1]["loss"] > 0.9 * one.history[0]["loss"])
    assert {decoder: (sum(few), len(few)) for decoder, few in found.items()} == {
        "linear": (0, 36),
        "mask-transformer": (5, 36),
    }
    assert "five of its 36 runs" in (ROOT / "docs" / "decoders.md").read_text(encoding="utf-8")
