"""What pages of docs/ say of real images is in the committed records and tables, or counted here."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from harness.archive.archive import Archive, frame
from harness.archive.measured import EvidenceRecord, EvidenceStore, ForgettingStore
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.comparison.claims import read_claims
from harness.comparison.evidence import cka_to_frozen, mean_change
from harness.comparison.grids import grids
from harness.comparison.names import benchmark_title
from harness.report.formats import write
from harness.report.pages import pages_below
from harness.studies import load_study
from tests.harness.report.sample import judged, plain, table_rows
from tests.values import REPOSITORY, RESULTS, there


def text_of(name: str) -> str:
    """A page of docs/, or a table of the committed results."""
    folder = REPOSITORY / "docs" if (REPOSITORY / "docs" / f"{name}.md").is_file() else RESULTS / "tables"
    return (folder / f"{name}.md").read_text(encoding="utf-8")


def said_in(name: str) -> str:
    """The page as one line."""
    return " ".join(text_of(name).split())


@pytest.fixture(scope="module")
def archive() -> Archive:
    return Archive(RESULTS)


def of_protocol(archive: Archive, name: str) -> list[Record]:
    return [record for record in archive.records if record.run.protocol == name]


# docs/classification.md


def test_the_rows_of_classification_are_those_of_the_table() -> None:
    table = text_of("small-classification")
    section = text_of("classification").partition("## On real images")[2].partition("\n## ")[0]
    scores = {row[0]: row[1:4] for row in table_rows(table.partition("\n### ")[0])[1:]}
    apart = table.partition(": differences")[2].partition("\n#")[0]
    differences = {row[0]: row[2:4] for row in table_rows(apart)[1:]}
    said = {row[0]: row[1:] for row in table_rows(section)[1:]}
    assert said.keys() == scores.keys()
    for name, cells in said.items():
        assert cells[:3] == [re.sub(r"\*\*|</?u>| ≈| †", "", cell) for cell in scores[name]]
        assert " ".join(cells[3:]) == " ".join(differences.get(name, ["–"]))


def test_the_sentences_on_classification_are_those_of_the_runs(archive: Archive) -> None:
    records = of_protocol(archive, "small-labels")
    (grid,) = grids(records, archive, study=load_study("small-classification"))
    assert {len(row.records) for row in grid.rows} == {3}
    headings = table_rows(text_of("small-classification"))[0]
    assert [column.heading(grid.columns) for column in grid.columns] == headings[1:4]
    accuracy: dict[str, dict[int, float]] = {}
    for record in records:
        scores = record.scores["best"]["test"]
        assert record.run.rules["task"] == "classification"
        assert scores.keys() == {"accuracy", "nll", "ece"}
        accuracy.setdefault(record.run.variant, {})[record.run.seed] = 100 * scores["accuracy"]
    lora, linear = accuracy["LoRA, lr 1e-3"], accuracy["decoder, lr 1e-2"]
    assert sorted(round(lora[seed] - linear[seed]) for seed in lora) == [-13, 16, 22]
    rows = table_rows(text_of("small-classification").partition("\n### ")[0])[1:]
    (best,) = (row[0] for row in rows if row[1].startswith("**"))
    assert best == "NAS-LoRA, lr 3e-3"
    assert {row[0] for row in rows if "≈" not in row[1]} - {best} == {"decoder, lr 1e-3", "decoder, lr 1e-2"}
    assert "only the linear layer alone, at either rate, is significantly below" in text_of("classification")


# docs/decoders.md


def test_the_rates_of_the_mask_transformer_are_told_as_they_were(archive: Archive) -> None:
    scores = {
        (r.run.rules["decoder"], r.run.method_config["lr"]): f"{100 * r.scores['best']['test']['s_measure']:.1f}"
        for r in of_protocol(archive, "small")
        if (r.run.method, r.run.benchmark, r.run.seed) == ("decoder", "kvasir", 0)
        and r.run.rules.get("decoder", "sam") != "sam"
        and r.run.rules.get("decoder_lr") is None
    }
    high, middle, low = (scores["mask-transformer", rate] for rate in (1e-3, 3e-4, 1e-4))
    said = said_in("decoders")
    assert f"it scores {high} Sα at the study's 1e-3, {middle} at 3e-4 and {low} at 1e-4" in said
    assert f"the linear decoder has {scores['linear', 1e-3]} at 1e-3" in said


def under_decoders() -> tuple[list[list[str]], list[list[str]]]:
    """Of the page of three decoders: scores by decoder and number, with what NAS-LoRA is from LoRA; and the rankings compared."""
    sheets, _, rankings = text_of("small-cross-model").partition(": do the methods rank alike?")
    rows = []
    for part in sheets.split("\n## ")[1:]:
        decoder = part.partition("\n")[0].partition(" · decoder ")[2] or "sam"
        header, *scores = table_rows("| method" + part.partition("\n| method")[2].partition("\n\n")[0])
        differences = table_rows(part.partition(": differences to LoRA")[2])
        apart = {(row[0].split(",")[0], row[1]): row[2:4] for row in differences}
        for place, name in enumerate(header):
            if re.search(" (Sα|IoU) ", name):
                number = re.sub(r" \(.*?\)| ↑", "", name)
                cells = (decoder, number, *(plain(row[place]) for row in scores), *apart["NAS-LoRA", number])
                rows.append([re.sub(r" \(3\)$", "", cell) for cell in cells])
    decoders = list(load_study("small-cross-model").decoders)
    rows.sort(key=lambda row: decoders.index(row[0]))
    return rows, table_rows(rankings.partition("\n\nK")[0])


def test_scores_and_rankings_under_each_decoder_are_told_as_the_page_has_them(archive: Archive) -> None:
    text = text_of("decoders").partition("**On small real images.**")[2]
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
    (claim,) = (claim for claim in read_claims() if claim.name == "architecture-independence")
    (finding,) = judged([claim], archive, protocol="small")
    assert f"is therefore **{finding.verdict}** here" in after


def test_runs_that_hardly_learn_under_the_mask_transformer_are_counted(archive: Archive) -> None:
    rates, store = {"linear": None, "mask-transformer": 1e-4}, RecordStore(RESULTS)
    flat: dict[str, list[bool]] = {decoder: [] for decoder in rates}
    for record in of_protocol(archive, "small"):
        rules, tuning = record.run.rules, record.run.tuning
        decoder = rules.get("decoder", "sam")
        lost = tuning and "chosen" not in tuning
        if decoder in rates and rules.get("decoder_lr") == rates[decoder] and not lost:
            history = there(store.read(record.key)).history
            flat[decoder].append(history[-1]["loss"] > 0.9 * history[0]["loss"])
    counts = {decoder: (sum(few), len(few)) for decoder, few in flat.items()}
    assert counts == {"linear": (0, 36), "mask-transformer": (5, 36)}
    assert "five of its 36 runs" in text_of("decoders")


# docs/evidence.md

NUMBERS: dict[str, Callable[[EvidenceRecord, Record], str]] = {
    "attention distance": lambda evidence, _: f"{mean_change(evidence, 'attention distance', 'all'):+.1f}",
    "highest frequency": lambda evidence, _: f"{mean_change(evidence, 'high frequencies', 'all'):+.2f}",
    "CKA": lambda evidence, _: f"{cka_to_frozen(evidence.blocks[-1]):.2f}",
    "update": lambda evidence, _: f"{mean_change(evidence, 'update', 'all'):.2f}",
    "IoU": lambda _, record: f"{record.scores['best']['test']['iou']:.2f}",
}


def test_the_table_of_evidence_is_what_the_records_give(archive: Archive) -> None:
    evidence, records = EvidenceStore(RESULTS), {record.key: record for record in archive.records}
    assert evidence.problems() == {}
    measured: dict[tuple[str, str, int], tuple[EvidenceRecord, Record]] = {}
    for path in evidence.folder.glob("*.json"):
        record = records[path.stem]  # it stands beside one
        place = (benchmark_title(record.run.benchmark), record.run.method, record.run.seed)
        measured[place] = (there(evidence.find(path.stem)), record)
    page = text_of("evidence").partition("| benchmark |")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if ", seeds " in line]
    assert len(rows) == 3 * len(NUMBERS)
    for where, what, *sides in rows:
        benchmark, _, seeds = where.partition(", seeds ")
        (number,) = [function for name, function in NUMBERS.items() if what.startswith(name)]
        for method, cell in zip(("lora", "naslora"), sides, strict=True):
            expected = [number(*measured[benchmark, method, int(seed)]) for seed in seeds.split(",")]
            assert cell.replace("−", "-").split(" / ") == expected, (where, what, method)


def test_what_it_says_of_mixtures_is_what_the_claim_gives(archive: Archive) -> None:
    (claim,) = (claim for claim in read_claims() if claim.name == "domains-choose-different-priors")
    (finding,) = judged([claim], archive, protocol="small")
    (reading,) = [reading for reading in finding.readings if "5 of 9 benchmarks" in reading.what]  # SAM's decoder
    page = text_of("evidence")
    between, within = re.findall(r"(0\.\d{4}) (?:between|within)", reading.settle)
    assert f"lie {between} apart" in page
    assert f"one benchmark {within}:" in page
    (p,) = re.findall(r"\(p = (0\.\d+), n = 3 seeds\)", page)
    assert f"p = {p} (n = 3)" in reading.settle
    assert finding.verdict == "not judged"


# docs/details/other-images.md


def test_the_sentences_on_other_images_are_those_of_the_rows(archive: Archive) -> None:
    names, frozen, *adapted = table_rows(text_of("forgetting"))
    assert table_rows(text_of("details/other-images")) == [names, frozen, *adapted]

    def gains(column: str) -> dict[str, float]:
        return {row[0]: float(row[names.index(column)].split()[0]) for row in adapted}

    assert min(gains("at home").values()) > 5
    assert min(gains("CVC-612 Sα").values()) > 5
    lesions = gains("ISIC 2017 Jaccard")
    assert max(lesions.values()) < 0
    assert min(lesions, key=lambda name: lesions[name]) == "full"
    assert float(frozen[names.index("Road IoU")].split()[0]) < 2
    records, store = {record.key: record.run for record in archive.records}, ForgettingStore(RESULTS)
    kept = {path.stem: there(store.find(path.stem)) for path in (RESULTS / "forgetting").glob("*.json")}
    assert not {records[key].method for key in kept} & {"lora", "naslora"}
    for measured in kept.values():  # every score names a run whose images it is of
        assert {name: records[other.like].benchmark for name, other in measured.elsewhere.items()} == {
            name: name for name in measured.elsewhere
        }


# docs/nas-lora.md


def test_what_a_merge_costs_is_what_the_records_hold(archive: Archive) -> None:
    rows: dict[tuple[str, str], list[Record]] = {}
    for record in archive.records:
        if record.run.protocol_hash == "47defd50" and record.run.variant in ("convlora", "naslora", "naspclora"):
            rows.setdefault((record.run.benchmark, record.run.method), []).append(record)
    expected = []
    for place, runs in sorted(rows.items()):
        assert len(runs) == 3
        models = ("best", "merged-exact", "merged-calibrated")
        scores = [statistics.fmean(100 * run.scores[name]["test"]["iou"] for run in runs) for name in models]
        moved = [100 * record.merge["calibrated"]["relative_deviation"] for record in runs]
        cells = [*(f"{score:.1f}" for score in scores), f"{min(moved):.1f}–{max(moved):.1f}"]
        expected.append((*place, " | ".join(cells)))
    assert re.findall(r"\| (kvasir|leaf) \| (\w+) \| ((?:[\d.]+ \| )+[\d.–]+) \|", text_of("nas-lora")) == expected


def test_the_range_of_the_mixtures_is_that_of_the_records(archive: Archive) -> None:
    runs = [r for r in archive.records if (r.run.protocol_hash, r.run.variant) == ("47defd50", "naslora")]
    assert len(runs) == 6, "the page says six"
    alphas = frame(archive, "alphas", runs)
    last = alphas[alphas.epoch == alphas.groupby("key").epoch.transform("max")].share
    assert f"every softmax(α) between {last.min():.4f} and {last.max():.4f}" in said_in("nas-lora")


def test_the_costs_of_the_alternations_are_those_of_the_sessions(archive: Archive) -> None:
    told = []
    for session in archive.costs:
        ratios = {method.variant: method.ratios.get("lora", {}).get("time") for method in session.methods}
        if "naslora[alternate=joint]" not in ratios:
            continue
        ratios.setdefault("naslora[alternate=both]", ratios.get("naslora"))  # a card's own, where it is not spelt out
        said = []
        for name, reading in (("`both`", "both"), ("`joint`", "joint"), ("turns", "iteration")):
            if (variant := f"naslora[alternate={reading}]") not in ratios:
                continue
            ratio = there(ratios[variant])
            value, low, high = (
                f"{100 * (there(part) - 1):+.0f}".replace("-", "−") for part in (ratio.value, ratio.low, ratio.high)
            )
            said.append(f"{name} {value} % [{low}, {high}]")
        assert ", ".join(said) in said_in("nas-lora"), session.session
        told.append(session.comparability.backbone)
    assert sorted(told) == [
        "mobile_sam",
        "mobile_sam",
        "timm/vit_small_patch14_dinov2",
        "timm/vit_small_patch14_dinov2",
        "vit_b",
    ]


def operators(run: Callable[[], object]) -> int:
    """How many operators ``run`` dispatches."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += 1
            return function(*args, **(kwargs or {}))

    with Counter() as counter:
        run()
    return counter.count


def test_a_fused_cell_dispatches_about_half_of_the_operators() -> None:
    import torch

    from harness.methods.parts.cell import Cell
    from harness.methods.parts.operations import parse_operations

    said = there(re.search(r"dispatch (\d+) operators instead of (\d+) \((\d+) instead of (\d+)", said_in("nas-lora")))
    counts = []
    for style in ("darts", "linear"):
        for fused in (True, False):
            made: Any = {
                "style": style,
                "alpha_std": 1e-3,
                "generator": torch.Generator().manual_seed(0),
                "fused": fused,
            }
            cell = Cell(parse_operations("all", style=style), channels=3, **made)
            maps = torch.randn(4, 3, 14, 14, requires_grad=True)
            counts.append(operators(lambda cell=cell, maps=maps: cell(maps).sum().backward()))  # type: ignore[misc]
    # torch's versions differ by a few operators.
    assert counts == pytest.approx([int(count) for count in said.groups()], rel=0.05)


# docs/real-images.md


def rows_of(text: str) -> dict[str, list[str]]:
    lines = [[cell.strip(" †") for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {cells[0]: cells[1:] for cells in lines if "---" not in cells[0]}


def test_the_table_of_methods_is_what_the_records_give(archive: Archive) -> None:
    page = write(pages_below(archive, metrics=["iou"]).content["mini"])
    block = next(part for part in re.split(r"\n##+ ", page) if "hash 47defd50" in part)
    assert rows_of(text_of("real-images").partition("## More images")[0]) == rows_of(block)


def test_the_numbers_with_more_images_are_in_the_records(archive: Archive) -> None:
    recorded = {
        (rules["image_size"], rules["batch_size"], record.run.seed): record.scores["best"]["test"]["iou"]
        for record in of_protocol(archive, "mini")
        if (rules := record.run.rules)["train_limit"] == 400
    }
    page = text_of("real-images")
    table = rows_of(page.partition("## More images")[2])
    said = {(int(name[:3]), 4, seed): float(text) for name, cells in table.items() if name[:3].isdigit()
            for seed, text in enumerate(cells) if text}  # fmt: skip
    (also,) = re.findall(r"`batch_size=2`, `warmup=50` at 266 px, seed 0: (0\.\d+)", page)
    said[266, 2, 0] = float(also.rstrip("."))
    assert said == {place: round(value, 3) for place, value in recorded.items()}
