"""What docs/findings.md says is in the committed records and tables."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from harness.archive.archive import Archive, PerImage
from harness.archive.cost import CostStore
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.comparison.alpha import domains
from harness.comparison.claims import FILE, read_claims
from harness.comparison.grids import build_grid, sheets
from harness.comparison.rows import is_entry
from harness.methods.parts.operations import OPERATIONS
from harness.report.figures.curves import passes_of
from harness.report.formats import write
from harness.report.readings import reading_page
from harness.studies import load_study
from tests.harness.report.sample import judged as judged_on

ROOT = Path(__file__).parents[3]
AGAIN = ROOT / "results" / "again"
PAGE = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
NAMES = {"kvasir": "Kvasir-SEG", "cvc612": "CVC-612", "isic2017": "ISIC 2017", "leaf": "Leaf", "road": "Road"}
TABLE = (ROOT / "results" / "tables" / "small-search.md").read_text(encoding="utf-8")


def small(warmup: int = 0) -> list[Record]:
    """Records of the card as it is, or with a warm-up; of its methods as the card has them, but for what a row of the page names."""
    kept = [one for one in RecordStore(ROOT / "results") if one.run.protocol == "small"]
    card = _card(kept)
    kept = [one for one in kept if one.run.rules["warmup"] == warmup and one.run.rules.get("decoder", "sam") == "sam"]
    kept = [one for one in kept if one.run.rules["epoch_images"] == 200]
    return [one for one in kept if _as(card, one)]


def _card(records: Iterable[Record]) -> dict[str, Mapping[str, object]]:
    """Method -> options, but for the rate."""
    plain_ones = (one.run for one in records if one.run.benchmark == "leaf" and one.run.changed.keys() <= {"lr"})
    return {run.method: run.method_config for run in plain_ones}


def _as(card: Mapping[str, Mapping[str, object]], record: Record) -> bool:
    """Options that one of the two was made before are alike."""
    own, default = record.run.method_config, card.get(record.run.method, {})
    named = {"lr", "scale", "alpha", "search_start_epoch"}
    return all(own[name] == default[name] for name in (own.keys() & default.keys()) - named)


class Mixed(Archive):
    """The committed results, with the images of some runs from where they were made again."""

    def __init__(self, again: Mapping[str, Record]) -> None:
        super().__init__(ROOT / "results")
        self._again, self._elsewhere = again, Archive(AGAIN / "avx512")

    def images(self, record: Record, model: str, split: str, metric: str) -> PerImage | None:
        if record.key in self._again:
            return self._elsewhere.images(record, model, split, metric)
        return super().images(record, model, split, metric)


def difference(
    name: str, benchmark: str, one: str, other: str, *, again: Mapping[str, Record] | None = None
) -> tuple[float, str]:
    """Mean and interval of two rows of a study's page, with its three seeds, paired as tables pair; ``again``: runs that
    take the place of those with their key."""
    again = again or {}
    records = [
        replace(old, scores=again[old.key].scores, beside=again[old.key].beside) if old.key in again else old
        for old in small()
    ]
    ((sheet, members),) = sheets(records).items()
    grid = build_grid(sheet, members, Mixed(again), study=load_study(name))
    column = next(column for column in grid.columns if column.benchmark == benchmark)
    first, second = (row for label in (one, other) for row in grid.rows if row.label == label)
    found = grid.difference(first, second, column)
    assert found is not None
    interval = found.interval
    assert interval is not None
    assert len(found.by_seed) == 3
    return found.mean, f"[{interval.low:+.2f}, {interval.high:+.2f}]"


def rows(text: str) -> list[list[str]]:
    lines = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in line] for line in lines]


def section(title: str) -> str:
    return next(part for part in PAGE.split("\n## ") if part.startswith(title))


def test_every_difference_is_that_of_the_table() -> None:
    table = {(row[0], row[1]): row[2:4] for row in rows(TABLE.partition(": differences")[2].partition("\n#")[0])[1:]}
    said = {(row[0], row[1]): row[2:4] for row in rows(section("Differences"))[1:]}
    assert said == table
    mean, rank, *_ = (
        row for row in rows(TABLE.partition("over 5 benchmarks")[2]) if row[0] == "NAS-LoRA, tuned, 3 trials"
    )
    assert f"the mean difference is {mean[1]} points, 95 % {mean[2]}, and" in PAGE
    assert f"beats one of LoRA {rank[3].split()[0]}." in PAGE


def test_every_trial_is_in_the_table() -> None:
    table = {row[0]: row[3:5] for row in rows(TABLE.partition(": tuned")[2].partition(": differences")[0])}
    said = {row[0]: row[1:3] for row in rows(section("Rates"))[1:]}
    assert said == {name: table[name] for name in said}
    assert said


def test_the_numbers_of_the_text_are_in_the_records() -> None:
    def score(protocol: str, method: str, seed: int, *, split: str = "test", **options: float) -> float:
        wanted = {"scale": 1.0, "search_start_epoch": 2 if protocol == "mini" else 1, **options}
        (value,) = {
            100 * record.scores["best"][split]["s_measure"]
            for record in (small() if protocol == "small" else RecordStore(ROOT / "results"))
            if (record.run.protocol, record.run.benchmark, record.run.seed) == (protocol, "kvasir", seed)
            and (record.run.method, record.code) == (method, "OK")
            and all(record.run.method_config.get(name, value) == value for name, value in wanted.items())
        }
        return value

    lora = [score("small", "lora", seed, lr=1e-3) for seed in range(3)]
    at_loras, at_its_own = (score("small", "naslora", 0, lr=rate) - lora[0] for rate in (1e-3, 3e-3))
    assert f"{-at_loras:.1f} points Sα below LoRA's; at its own, 3e-3, it scores {at_its_own:.1f} above" in PAGE
    mini = [np.mean([score("mini", name, seed) for seed in range(3)]) for name in ("lora", "naslora")]
    assert f"it was {mini[0] - mini[1]:.1f} points below" in PAGE
    behind = [
        score("small", "lora", seed, split="val", lr=1e-3) - score("small", "naslora", seed, split="val", lr=3e-3)
        for seed in range(3)
    ]
    assert f"{min(behind):.1f} to {max(behind):.1f} points below LoRA's there" in PAGE
    answer = PAGE.partition("## Differences")[0]
    (main,) = (row for row in rows(section("Differences")) if row[:2] == ["NAS-LoRA, tuned, 3 trials", "Kvasir-SEG Sα"])
    assert f"{main[2].split()[0]} points Sα against LoRA, 95 % {main[3]}" in answer
    low, high = (float(end) for end in main[3].strip("[]").split(", "))
    assert f"a mean above about {(high - low) / 2:.1f} points would have been told from zero" in answer
    intervals = {
        row[1]: (row[2].split()[0], row[3]) for row in rows(section("Differences")) if row[0].endswith("3 trials")
    }
    road = intervals.pop("Road IoU")
    assert f"by {-float(road[0]):.1f} points IoU, 95 % {road[1]}" in answer
    held = [tuple(float(end) for end in interval.strip("[]").split(", ")) for _, interval in intervals.values()]
    assert len(held) == 4
    assert all(low < 0 < high for low, high in held)


def test_the_rows_that_take_rate_scale_and_cell_apart_are_those_of_their_page() -> None:
    page = (ROOT / "results" / "tables" / "small-rate.md").read_text(encoding="utf-8").partition(": tuned")[0]
    table = {row[0].replace(", tuned, 3 trials", ""): plain(row[1]) for row in rows(page)[1:]}
    said = {row[0]: row[1] for row in rows(section("Road"))[1:]}
    assert len(said) >= 6
    assert said == {name: table[name] for name in said}
    text = " ".join(section("Road").split())
    mean, interval = difference("small-rate", "road", "NAS-LoRA, lr 1e-3", "LoRA, scale 1, lr 1e-3")
    assert f"at 1e-3 NAS-LoRA is {-mean:.2f} points below it, 95 % {interval}." in text
    mean, interval = difference("small-rate", "road", "NAS-LoRA, scale 32/3, lr 1e-3", "LoRA, lr 1e-3")
    assert f"At LoRA's scale and rate it is {mean:+.2f} {interval} ahead." in text
    mean, interval = difference("small-rate", "road", "NAS-LoRA, lr 1e-3", "LoRA, lr 1e-3")
    assert f"NAS-LoRA at 1e-3 is better: {mean:+.2f} {interval}." in text
    assert f"at 1e-3 it is {mean:.1f} points above the same LoRA" in PAGE


def test_time_to_quality_is_that_of_its_page() -> None:
    page = (ROOT / "results" / "tables" / "small-lengths.md").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    images: dict[str, str] = {}
    for part in page.split("\n## ")[1:]:
        length = re.findall(r"epoch_images (\d+)\n", part)
        scores = {unmarked(row[0]): plain(row[1]) for row in rows(part.partition("\n### ")[0])[1:]}
        (apart,) = (row[2:] for row in rows(part.partition("differences to LoRA")[2]) if row[1] == "Kvasir-SEG Sα")
        updates = str(4 * int(length[0]) // 2)
        found[updates] = [scores["LoRA"], scores["NAS-LoRA"], apart[0].split()[0], apart[1]]
        images[updates] = apart[3]
    table = rows(section("Time to quality"))[1:]
    said = {row[0]: row[1:5] for row in table}
    assert list(said) == ["100", "200", "400", "800"]
    assert said == found
    kept = [one for one in RecordStore(ROOT / "results") if (one.run.protocol, one.run.method) == ("small", "naslora")]
    kept = [one for one in kept if one.run.method_config["search_start_epoch"] == 1]
    text = " ".join(section("Time to quality").split())
    assert f"give p = {images['800']} for these three seeds, at 200 p = {images['200']} the other way" in text
    means = {updates: (float(row[0].split()[0]), float(row[1].split()[0])) for updates, row in said.items()}
    assert [ours > lora for lora, ours in means.values()] == [False, False, True, True]
    apart_by = [float(row[2]) for row in said.values()]
    assert apart_by == sorted(apart_by)
    assert all(low < 0 < high for low, high in (map(float, row[3].strip("[]").split(", ")) for row in said.values()))
    assert means["400"][0] < means["400"][1] < means["800"][0]
    scored = {
        (one.run.method, one.run.seed): 100 * one.scores["best"]["test"]["s_measure"]
        for one in RecordStore(ROOT / "results")
        if (one.run.protocol, one.run.rules.get("epoch_images"), one.code) == ("small", 400, "OK")
    }
    ahead = sorted(scored["naslora", seed] - scored["lora", seed] for seed in range(3))
    assert len(scored) == 6
    assert f"each of its seeds is ahead (by {ahead[0]:.1f} to {ahead[-1]:.1f} points)" in text
    assert "holds zero by a quarter of a point" in PAGE
    assert said["800"][3].startswith("[-0.24,")
    passes = {f"{one.budget['weight_updates']:.0f}": f"{passes_of(one):.0f}" for one in kept}
    assert {row[0]: row[5] for row in table}.items() <= passes.items()
    assert passes["200"] == "350"
    assert float(said["200"][1].split()[0]) < float(said["200"][0].split()[0])


def test_the_page_of_readings_is_what_the_records_give() -> None:
    results = ROOT / "results"
    archive, study = Archive(results), load_study("small-readings")
    page = reading_page(archive.records, study, archive, claims=read_claims(FILE), protocol="small")
    assert write(page) == (results / "readings" / "small-readings.md").read_text(encoding="utf-8")


def test_the_readings_are_those_of_their_page() -> None:
    page = (ROOT / "results" / "readings" / "small-readings.md").read_text(encoding="utf-8")
    curve, effects, claims, *_ = (rows(part)[1:] for part in page.split("\n## ")[1:])
    text = " ".join(section("Readings").split())
    found = [([float(cell.split()[0]) for cell in row[:4]], row[9], row[6]) for row in curve]
    assert len(found) == 16
    lost, kept = ([one for one in found if (min(one[0][1:3]) < -10) == bad] for bad in (True, False))
    means = [one[0][0] for one in kept]
    assert (
        f"{len(kept)} of them lie between {min(means):+.1f} and {max(means):+.1f} points Sα. The other {len(lost)} lost"
        in text
    )
    on_kvasir, on_cvc = ([one for one in lost if one[0][place] < -10] for place in (1, 2))
    low, high = sorted(-one[0][1] for one in on_kvasir)
    with_residual = sum(residual == "True" for _, residual, _ in kept)
    assert f"({low:.1f} and {high:.1f} points below; both have" in text
    assert f"as have {with_residual} that lost nothing" in text
    assert all(residual == "True" and numbers[2] > -6 for numbers, residual, _ in on_kvasir)
    ((numbers, _, cell),) = on_cvc
    assert cell == "none"
    assert f"({-numbers[2]:.1f} below; its cells have no normalisation)" in text
    assert f"is {numbers[1]:.1f} ahead on Kvasir-SEG" in text
    assert f"On CVC-612 {sum(one[0][2] < 0 for one in found)} of the sixteen" in text
    lora = [one for one in small() if (one.run.benchmark, one.run.method) == ("cvc612", "lora")]
    scores = {one.run.seed: f"{100 * one.scores['best']['test']['s_measure']:.1f}" for one in lora}
    assert f"({scores[0]}; its other two have {scores[1]} and {scores[2]})" in text
    ends = [[float(end) for end in row[2].partition("[")[2].strip("]").split(", ")] for row in effects]
    assert all(low < 0 < high for low, high in ends)
    assert f"the narrowest is ±{min((high - low) / 2 for low, high in ends):.1f} points" in text
    assert claims == [["NAS-LoRA is better than LoRA on the benchmarks", "0 of 16", "0 of 16", "16 of 16"]]
    by_validation = sorted(found, key=lambda one: -one[0][3])
    ((default, *_),) = (one for one, row in zip(found, curve, strict=True) if set(row[4:]) == {"·"})
    (chosen,) = (one for one, row in zip(found, curve, strict=True) if "·" not in row)
    assert by_validation[0] == chosen
    assert f"({chosen[0][3]:.1f} points on the mean of both, the default {default[3]:.1f})" in text
    assert f"on test it is {-chosen[0][0]:.1f} points below LoRA and the default {default[0]:.1f} above" in text
    assert by_validation[2] == found[-1]
    assert f"best on test ({found[-1][0][0]:+.1f}) is third" in text


def test_the_best_reading_is_told_as_its_page_has_it() -> None:
    page = (ROOT / "results" / "tables" / "small-best-reading.md").read_text(encoding="utf-8")
    differences = page.partition("differences to LoRA, lr 1e-3")[2].partition("\n#")[0]
    told = rows(section("Readings"))[1:]
    found = [row[:4] for row in rows(differences)[1:]]
    assert told == [row for row in found if row[0] == "NAS-LoRA, best reading"]
    best = {row[1]: row[2:] for row in told}
    assert {name for name, (difference, _) in best.items() if difference.startswith("+")} == {"ISIC 2017 Jaccard"}
    assert len(best) == 5
    assert all(difference.endswith(" (3)") for difference, _ in best.values())
    apart = {
        name
        for name, (_, interval) in best.items()
        if interval != "–" and float(interval.strip("[]").split(", ")[1]) < 0
    }
    assert apart == {"Road IoU"}
    text = " ".join(section("Readings").split())
    assert f"on Road it is {-float(best['Road IoU'][0].split()[0]):.1f} points worse" in text
    (ahead,) = (
        row[2].split()[0]
        for row in rows(section("Differences"))
        if row[:2] == ["NAS-LoRA, scale 32/3, lr 1e-3", "Road IoU"]
    )
    assert f"default cells with that rate and scale are {float(ahead):.1f} ahead" in text
    records = {
        entry: load_rows("small-best-reading")[entry]
        for entry in ("LoRA, lr 1e-3", "NAS-LoRA, best reading", "NAS-LoRA, default reading")
    }
    scored, found_best = (
        {
            one.run.seed: 100 * one.scores["best"]["test"]["jaccard"]
            for one in records[entry]
            if one.run.benchmark == "isic2017" and not one.run.rules["warmup"]
        }
        for entry in ("LoRA, lr 1e-3", "NAS-LoRA, best reading")
    )
    behind = {seed: score - found_best[seed] for seed, score in scored.items()}
    assert f"it is {-sum(behind.values()) / 3:.1f} points ahead for the one reason" in text
    assert f"it scores {behind[0]:.1f} and {behind[2]:.1f} points less than LoRA" in text
    means = {(row[0].split(",")[1], row[1]): float(row[2].split()[0]) for row in found}
    assert {name for name in best if means[" best reading", name] > means[" default reading", name]} == {"Road IoU"}
    lora, chosen, default = ({round(passes_of(one) or 0, -1) for one in mine} for mine in records.values())
    assert (lora, chosen, default) == ({400}, {800}, {700})


def test_the_residual_alone_is_told_as_it_was() -> None:
    text = " ".join(section("Readings").split())
    scores = {
        name: {
            one.run.seed: f"{100 * one.scores['best']['test']['s_measure']:.1f}"
            for one in found
            if one.run.benchmark == "kvasir"
        }
        for name, found in load_rows("small-residual").items()
    }
    high, low = scores["residual, lr 3e-3"], scores["residual, lr 1e-3"]
    without = scores["without, lr 3e-3"]
    assert f"of the same seed ({high[0]} Sα; without it {without[0]}) and" in text
    assert (
        f"those of the other two ({high[1]} and {high[2]}); at 1e-3 of none ({low[0]}, {low[1]} and {low[2]})" in text
    )


def plain(cell: str) -> str:
    """A cell without its marks."""
    return re.sub(r"[*≈]|</?u>", "", cell).strip()


def unmarked(row: str) -> str:
    """A row's name alone."""
    return re.sub(r", tuned.*| ALPHA.*| †", "", row)


def scores_and_differences(study: str, baseline: str) -> list[list[str]]:
    """Row, score, difference and interval of a page with one benchmark."""
    page = (ROOT / "results" / "tables" / f"{study}.md").read_text(encoding="utf-8")
    table = {unmarked(row[0]): plain(row[1]) for row in rows(page.partition(": tuned")[0])[1:]}
    differences = rows(page.partition(f"differences to {baseline}")[2].partition("\n#")[0])[1:]
    apart = {unmarked(row[0]): [row[2].partition(" ")[0], row[3]] for row in differences}
    return [[row, score, *apart.get(row, ["–", "–"])] for row, score in table.items()]


def test_the_other_methods_are_told_as_their_page_has_them() -> None:
    page = (ROOT / "results" / "tables" / "small-methods.md").read_text(encoding="utf-8")
    (_, *numbers, _), *told = rows(section("The other methods"))
    head, *table = rows(page.partition(": tuned")[0])
    differences = rows(page.partition("differences to LoRA")[2].partition("\n#")[0])[1:]
    apart = {(unmarked(row[0]), row[1]): row[2:4] for row in differences}
    assert set(numbers) == {row[1] for row in differences}

    def cell(row: list[str], number: str) -> str:
        benchmark, metric = number.rsplit(" ", 1)
        if row[0].startswith("LoRA"):
            place = next(k for k, title in enumerate(head) if title.startswith(benchmark) and f" {metric} " in title)
            return plain(row[place])
        difference, interval = apart.get((unmarked(row[0]), number), ("–", "–"))
        return difference if interval == "–" else f"{difference.split()[0]} {interval}"

    assert told == [[unmarked(row[0]), *(cell(row, number) for number in numbers), row[-1]] for row in table]
    assert len(told) == 8


def test_what_the_text_says_of_the_other_methods_is_in_their_table() -> None:
    text = " ".join(section("The other methods").split())
    (_, *numbers, _), _, *found = rows(section("The other methods"))
    ends = {
        (row[0], number): [float(end) for end in cell.partition("[")[2].strip("]").split(", ")]
        for row in found
        for number, cell in zip(numbers, row[1:], strict=False)
        if "[" in cell
    }
    better = {place for place, (low, _) in ends.items() if low > 0}
    worse = {place for place, (_, high) in ends.items() if high < 0}
    ahead = ("Conv-LoRA (Switch gate)", "NAS-PC-LoRA", "AdaptFormer")
    assert better == {("full", "Kvasir-SEG Sα"), *((name, "Road IoU") for name in ahead)}
    told = ("Kvasir-SEG Sα", "CVC-612 Sα", "Road IoU")
    assert worse == {("NAS-LoRA", "Road IoU"), *(("decoder only", number) for number in told)}
    assert len(ends) == 7 * len(numbers)
    five = {row[0] for row in found} - {"full", "decoder only"}
    for number, said in zip(numbers, ("on Kvasir-SEG", "on CVC-612", "", "on Leaf", ""), strict=True):
        halves = [(high - low) / 2 for (name, whose), (low, high) in ends.items() if name in five and whose == number]
        assert not said or re.search(f"{min(halves):.1f} to {max(halves):.1f}[a-z ]* {said}", text)
    apart = {row[0]: float(row[5].split()[0]) for row in found}
    first, *_, last = sorted(apart[name] for name in ahead)
    assert f"told from LoRA and better, by {first:.1f} to {last:.1f} points" in text
    scores = {name: page_scores("small-methods", number) for number, name in (("ISIC 2017", "isic"), ("Road", "road"))}
    slower = dict(rows(section("Road")))["LoRA, lr 3e-4"].split()[0]
    reached = sorted(float(scores["road"][name]) for name in ahead)
    assert float(slower) > reached[-1]
    assert f"at 3e-4 it has {slower} (above), which none of the three reaches ({reached[0]} to {reached[-1]})" in text
    some = sorted(float(score) for name, score in scores["isic"].items() if name not in ("LoRA", "decoder only"))
    assert len(some) == 6
    lora = sorted(100 * one.scores["best"]["test"]["jaccard"] for one in _of("isic2017", "lora", lr=1e-3))
    assert (
        f"end at {some[0]} to {some[-1]} there, where LoRA's other two seeds have {lora[1]:.1f} and {lora[2]:.1f}"
        in text
    )
    assert f"and the decoder alone at {scores['isic']['decoder only']}" in text
    bitfit = {100 * one.scores["best"]["test"]["iou"]: one for one in _of("road", "bitfit", lr=1e-3)}
    lost, *learnt = sorted(bitfit)
    assert f"({lost:.1f}; its training loss ends at {bitfit[lost].history[-1]['loss']:.2f}), and has" in text
    assert f"{learnt[1]:.1f} and {learnt[0]:.1f} in the others" in text
    full = sorted(100 * one.scores["best"]["test"]["iou"] for one in _of("road", "full", encoder_lr=1e-5))
    assert f"full fine-tuning lies between {full[0]:.1f} and {full[2]:.1f}" in text


def page_scores(study: str, benchmark: str) -> dict[str, str]:
    """Row -> mean, of a benchmark's first metric on a page."""
    head, *table = rows(
        (ROOT / "results" / "tables" / f"{study}.md").read_text(encoding="utf-8").partition(": tuned")[0]
    )
    place = next(k for k, title in enumerate(head) if title.startswith(benchmark))
    return {unmarked(row[0]): plain(row[place]).split()[0] for row in table}


def _of(benchmark: str, method: str, **options: object) -> list[Record]:
    """The three seeds of a method on a benchmark, as the card has it but for ``options``."""
    kept = [one for one in small() if (one.run.benchmark, one.run.method) == (benchmark, method)]
    kept = [
        one for one in kept if one.run.changed.items() >= options.items() and set(one.run.changed) <= {*options, "lr"}
    ]
    assert sorted(one.run.seed for one in kept) == [0, 1, 2]
    return kept


def test_what_chose_the_other_rates_is_told_as_the_trials_have_it() -> None:
    text = " ".join(section("The other methods").split())
    page = (ROOT / "results" / "tables" / "small-methods.md").read_text(encoding="utf-8")
    trials = {
        row[0]: row[3:6] for row in rows(page.partition(": tuned")[2].partition("### ")[0])[1:] if "ISIC" in row[2]
    }
    assert len(trials) == 8
    low, *_, high = (float(one.rpartition(" ")[2]) for one in trials["full"][0].split("; "))
    assert f"ten times that rate costs it {low - high:.1f} points" in text
    at_edge = {name for name, (tried, chosen, edge) in trials.items() if edge != "–" and tried.startswith(f"{chosen}:")}
    assert at_edge == {"Conv-LoRA", "NAS-PC-LoRA", "decoder only", "full"}
    assert [trials[name][1] for name in ("Conv-LoRA", "NAS-PC-LoRA")] == ["lr=0.0003", "lr=0.001"]
    tried = {
        (one.run.method, one.run.benchmark, one.run.method_config["lr"]): one
        for one in small()
        if (one.run.method, one.run.seed) in (("convlora", 0), ("naspclora", 0))
    }
    val = {key: 100 * next(iter(one.scores["best"]["val"].values())) for key, one in tried.items()}
    losses = [f"{entry['loss']:.2f}" for entry in tried["convlora", "isic2017", 1e-3].history[:2]]
    kvasir, isic = ([val["convlora", name, rate] for rate in (1e-3, 3e-4)] for name in ("kvasir", "isic2017"))
    assert f"({kvasir[0]:.1f} on validation against {kvasir[1]:.1f})" in text
    assert (
        f"(training loss {losses[0]}, then {losses[1]}; {isic[0]:.1f} Jaccard on validation against {isic[1]:.1f} at"
        in text
    )
    assert val["naspclora", "kvasir", 3e-3] > val["naspclora", "kvasir", 1e-3]
    elsewhere = {path.stem for path in (ROOT / "results" / "forgetting").glob("*.json")}  # before the second benchmark
    assert {tried["convlora", "kvasir", 1e-3].key, tried["naspclora", "kvasir", 3e-3].key} < elsewhere


def test_when_the_search_starts_is_told_as_its_page_has_it() -> None:
    found = scores_and_differences("small-stagewise", "never")
    assert rows(section("When the search starts"))[1:] == found
    assert len(found) == 4
    bounds = [[float(end) for end in row[3].strip("[]").split(", ")] for row in found if row[3] != "–"]
    assert f"is ±{max((high - low) / 2 for low, high in bounds):.2f} points" in PAGE


def test_what_the_cell_may_choose_from_is_told_as_its_page_has_it() -> None:
    found = scores_and_differences("small-operations", "all eight, searched")
    text = section("What the cell may choose from")
    assert rows(text)[1:] == found
    assert len(found) == 6
    without = [one for one in RecordStore(ROOT / "results") if one.run.method_config.get("operations") == "no-pool"]
    lost, *others = sorted(100 * one.scores["best"]["test"]["s_measure"] for one in without)
    assert f"({lost:.1f}; its loss stays" in text
    assert f"other two score {others[0]:.1f} and {others[1]:.1f}" in text
    (history,) = (one.history for one in without if one.scores["best"]["test"]["s_measure"] < 0.5)
    assert {round(epoch["loss"], 2) for epoch in history[1:]} == {1.41}


def test_what_decoding_costs_is_told_as_its_page_has_it() -> None:
    page = (ROOT / "results" / "tables" / "small-decoded.md").read_text(encoding="utf-8")
    table = {row[0]: plain(row[1]) for row in rows(page)[1:] if len(row) == 5}
    text = section("The mixture, and its strongest operation")
    names = [name for name in table if "decoded" not in name]
    assert rows(text)[1:] == [[name, table[name], table[f"{name} (decoded)"]] for name in names]
    losses = {
        one.key: 100 * (one.scores["best"]["test"]["s_measure"] - one.scores["decoded"]["test"]["s_measure"])
        for name in names
        for one in load_rows("small-decoded")[name]
        if one.run.benchmark == "kvasir" and one.scores["best"]["test"]["s_measure"] > 0.5
    }
    assert len(losses) == 11
    assert f"between {min(losses.values()):.1f} and {max(losses.values()):.1f} points" in text


def load_rows(study: str) -> dict[str, list[Record]]:
    """Row of a study -> its runs under SAM's decoder, of the card's length."""
    found = load_study(study)
    kept = [one for one in RecordStore(ROOT / "results") if one.run.rules.get("decoder", "sam") == "sam"]
    kept = [one for one in kept if one.run.rules.get("epoch_images", 200) == 200]
    return {
        entry.label: [
            one
            for one in kept
            if one.run.method == entry.method and is_entry(one, entry.options) and one.run.protocol == "small"
        ]
        for entry in found.entries
    }


def test_the_seed_that_did_not_learn_and_its_warm_up_are_told_as_they_were() -> None:
    runs = {
        (record.run.seed, record.run.rules["warmup"]): record
        for record in (*small(), *small(warmup=40))
        if (record.run.benchmark, record.run.method) == ("isic2017", "lora") and record.run.method_config["lr"] == 1e-3
    }
    scores = {key: f"{100 * record.scores['best']['test']['jaccard']:.1f}" for key, record in runs.items()}
    losses = {seed: [f"{entry['loss']:.2f}" for entry in runs[seed, 0].history[:2]] for seed in (1, 2)}
    assert (
        f"(training loss {' and '.join(losses[1])} in its first two epochs, its seed 2 has {' and '.join(losses[2])})"
        in PAGE
    )
    assert f"{scores[1, 0]} Jaccard where the other two have {scores[0, 0]} and {scores[2, 0]}." in PAGE
    assert f"the same seed reaches {scores[1, 40]}." in PAGE
    assert runs[1, 0].run.rules | {"warmup": 40} == runs[1, 40].run.rules


def test_the_two_sets_with_a_warm_up_are_told_as_their_page_has_them() -> None:
    page = (ROOT / "results" / "tables" / "small-warmup.md").read_text(encoding="utf-8")
    (heading, *_), lora, ours = rows(page)[:3], *([plain(cell) for cell in row] for row in rows(page)[1:3])
    differences = {row[1]: row[2:4] for row in rows(page.partition(": differences")[2].partition("\n#")[0])[1:]}
    told = rows(PAGE.partition("every run with that warm-up")[2].partition("\n\nThen")[0])[1:]
    assert [row[0] for row in told] == list(differences)
    for name, first, second, *difference in told:
        place = next(index for index, title in enumerate(heading) if title.startswith(name))
        assert [first, second] == [lora[place], ours[place]]
        assert difference == differences[name]
        assert difference[0].startswith("-")
    assert f"learn: {differences['ISIC 2017 Jaccard'][0].split()[0]} points Jaccard, {told[0][-1]})" in PAGE


def test_the_seed_that_hardly_learnt_is_told_as_it_was() -> None:
    runs = {
        (record.run.method, record.run.seed): record
        for record in small()
        if record.run.benchmark == "cvc612" and record.run.method_config["lr"] in (1e-3, 3e-3)
    }
    (first, second), (third, fourth) = (
        [entry["loss"] for entry in runs["naslora", seed].history[:2]] for seed in (1, 0)
    )
    assert f"(training loss {first:.2f} and {second:.2f}, its first seed {third:.2f} and {fourth:.2f})" in PAGE
    behind = [100 * runs[name, 1].scores["best"]["test"]["s_measure"] for name in ("lora", "naslora")]
    assert f"ends\n{behind[0] - behind[1]:.1f} points below LoRA" in PAGE


def test_searching_against_not_searching_is_paired_as_tables_pair() -> None:
    mean, interval = difference("small-search", "kvasir", "NAS-LoRA", "NAS-LoRA, no search, lr 3e-3")
    assert f"as it was drawn, {mean:+.2f} points, 95 % {interval}" in PAGE


def test_the_costs_are_those_of_the_session() -> None:
    (session,) = [one for one in CostStore(ROOT / "results") if one.comparability.image_size == 196 and not one.shared]
    assert session.rounds == 9
    assert next(one.shares["weights-cached"] for one in session.methods if one.variant == "decoder") == 0.5
    assert "(nine interleaved rounds on a device of their own" in PAGE
    measured = {one.variant: one.ratios["lora"] for one in session.methods if one.ratios.get("lora")}
    told = {row[0]: row[1:] for row in rows(section("What a step costs"))[1:]}
    variants = {
        "NAS-LoRA": "naslora", "NAS-LoRA, one pass for w and α": "naslora[alternate=joint]", "Conv-LoRA": "convlora",
        "NAS-PC-LoRA": "naspclora", "decoder only": "decoder", "BitFit": "bitfit", "AdaptFormer": "adaptformer",
        "full": "full",
    }  # fmt: skip
    assert told.keys() == variants.keys()
    for label, (time, interval, memory) in told.items():
        ratios = measured[variants[label]]
        assert time == f"{ratios['time'].value:.2f}"
        assert interval == f"[{ratios['time'].low:.2f}, {ratios['time'].high:.2f}]"
        assert memory == f"{ratios['memory'].value:.2f}"
    assert f"{told['NAS-LoRA'][0]} times LoRA's training\nstep (95 % {told['NAS-LoRA'][1]}" in PAGE
    assert f"in one pass cost {told['NAS-LoRA, one pass for w and α'][0]}." in PAGE


def test_what_alpha_chose_is_in_the_histories() -> None:
    default = {"lr": 3e-3, "search_start_epoch": 1, "scale": 1.0}
    chosen = {
        (record.run.benchmark, record.run.seed): np.array([sites[name] for name in sorted(sites)])
        for record in small()
        if record.run.method == "naslora" and default.items() <= record.run.method_config.items()
        for sites in record.architecture[-1:]
    }
    text = section("What α chose")
    skip = OPERATIONS.index("skip_connect")
    said = {row[0]: row[1:] for row in rows(text)[1:]}
    for name, title in NAMES.items():
        seeds = [chosen[name, seed] for seed in range(3)]
        pairs = list(itertools.combinations(seeds, 2))
        correlations = ", ".join(f"{np.corrcoef(one.ravel(), other.ravel())[0, 1]:.2f}" for one, other in pairs)
        same = ", ".join(str(int((one.argmax(1) == other.argmax(1)).sum())) for one, other in pairs)
        skips = ", ".join(f"{shares[:, skip].mean():.2f}" for shares in seeds)
        assert said.pop(title) == [correlations, same, skips]
    assert not said
    assert f"in any run is {max(shares.max() for shares in chosen.values()):.2f}, on Road" in text
    apart = domains({
        name: {seed: {str(cell): list(map(float, row)) for cell, row in enumerate(chosen[name, seed])} for seed in range(3)}
        for name in NAMES
    })  # fmt: skip
    assert apart is not None
    assert apart.test.p is not None
    numbers = f"({apart.between:.4f} against {apart.within:.4f} in total variation, p = {apart.test.p:.3f} by"
    assert numbers in " ".join(text.split())
    (cap,) = {round(record.budget["share_cap"], 2) for record in small() if (record.run.benchmark, record.run.seed) in chosen
              and default.items() <= record.run.method_config.items()}  # fmt: skip
    assert f"allowed {cap:.2f}" in text


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
        header, *scores = rows("| method" + part.partition("\n| method")[2].partition("\n\n")[0])
        apart = {(row[0].split(",")[0], row[1]): row[2:4] for row in rows(part.partition(": differences to LoRA")[2])}
        for place, name in enumerate(header):
            if re.search(" (Sα|IoU) ", name):
                number = re.sub(r" \(.*?\)| ↑", "", name)
                delta, bounds = apart["NAS-LoRA", number]
                cells = [plain(row[place]) for row in scores]
                found.append([re.sub(r" \(3\)$", "", cell) for cell in (decoder, number, *cells, delta, bounds)])
    decoders = list(load_study("small-cross-model").decoders)
    found.sort(key=lambda row: decoders.index(row[0]))
    return found, rows(rankings.partition("\n\nK")[0])


def test_scores_and_rankings_under_each_decoder_are_told_as_the_page_has_them() -> None:
    text = (ROOT / "docs" / "decoders.md").read_text(encoding="utf-8").partition("**On small real images.**")[2]
    scores, rankings = under_decoders()
    told = rows(text)
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


def test_the_same_runs_on_another_processor_are_told_as_they_came_out() -> None:
    text = section("The same runs on another processor")
    first = {one.key: one for one in RecordStore(ROOT / "results")}
    again = {one.key: one for one in RecordStore(AGAIN / "avx512")}
    scores: dict[str, list[list[float]]] = {"LoRA": [], "NAS-LoRA": []}
    for key, one in sorted(again.items(), key=lambda item: item[1].run.seed):
        assert one.environment["device"] == "cpu AMD EPYC x2"
        assert "Intel" in first[key].environment["device"]
        pair = [100 * record.scores["best"]["test"]["s_measure"] for record in (first[key], one)]
        scores["LoRA" if one.run.method == "lora" else "NAS-LoRA"].append(pair)
    for row in rows(text)[1:]:
        cells = []
        for place in (0, 1):
            values = [pair[place] for pair in scores[row[0]]]
            spread = f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
            cells += [", ".join(f"{value:.1f}" for value in values), spread]
        assert row[1:] == cells
    moved = sorted(abs(after - before) for pairs in scores.values() for before, after in pairs)
    assert len(moved) == 6
    assert f"A seed moves by {moved[0]:.1f} to {moved[-1]:.1f} points, either way" in text
    assert f"A difference of one seed below {moved[-1]:.1f} points says nothing" in text
    ((old,), (without,)) = (list(RecordStore(AGAIN / name)) for name in ("avx512-056e6a2", "avx2"))
    same = again[old.key]
    assert [each["loss"] for each in old.history] == [each["loss"] for each in same.history]
    now, then = (one.scores["best"]["test"] for one in (same, old))
    assert {name for name in now if now[name] != then[name]} == {"weighted_f"}
    assert abs(now["weighted_f"] - then["weighted_f"]) < 1e-10
    assert old.environment["commit"] == first[old.key].environment["commit"] != same.environment["commit"]
    assert without.key == old.key
    assert f"a third number ({100 * without.scores['best']['test']['s_measure']:.1f}, `results/again/avx2`)" in text
    mean, interval = difference("small-methods", "kvasir", "NAS-LoRA", "LoRA", again=again)
    assert f"NAS-LoRA is {mean:+.2f} points from LoRA, 95 % {interval}: the answer stays" in text
    assert f"(the same runs on another processor: {mean:+.2f} {interval}, below)" in PAGE
    mean, interval = difference("small-methods", "kvasir", "full", "LoRA", again=again)
    assert f"Full fine-tuning is {mean:+.2f} {interval}: its lead on Kvasir-SEG\ndoes not outlast" in text
    elsewhere = {one.run.benchmark for one in small() if "Intel" in one.environment["device"]}
    assert elsewhere == {"kvasir", "cvc612", "isic2017"}
