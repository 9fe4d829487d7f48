"""Readings: the design, the specification curve, effects that were put in come out, and claims under every reading."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.archive.archive import Archive
from harness.archive.schema import Record
from harness.cli.tables import main as tables
from harness.comparison.claims import FILE, read_claims
from harness.comparison.grids import build_grid, sheets
from harness.comparison.readings import lenth_margin, main_effects
from harness.report.figures import draw
from harness.report.figures.material import NothingToDrawError, materials
from harness.report.formats import write
from harness.report.readings import _general, choice, reading_page
from harness.studies import Study, load_study, study_from_dict
from harness.studies.design import aliases, label_of, options_of, parse_fields, points
from harness.system.errors import UsageError
from tests.harness.report.sample import CARD, MadeUp, record, store_of

CELLS = [{"style": style, "norm": norm} for style, norm in (("darts", "batch"), ("linear", "batch"), ("darts", "none"))]
FIELDS = {"scale": [1, 10], "alternate": ["both", "iteration", "joint"], "residual": [False, True], "cell": CELLS}
WORTH = {"scale": 4.0, "residual": -2.0}
CONFIG = {"scale": 1, "alternate": "both", "residual": False, "style": "darts", "norm": "batch", "lr": None}


def study(**changes: Any) -> Study:
    content: dict[str, Any] = {
        "title": "Readings", "protocol": "demo", "benchmarks": ["kvasir"], "seeds": 2,
        "entries": [{"label": "LoRA", "method": "lora"}],
        "readings": {"method": "naslora", "fields": FIELDS}, "table": {"baseline": "LoRA"},
    }  # fmt: skip
    return study_from_dict({**content, **changes}, name="mine")


READINGS: Any = study().readings


def of_reading(options: dict[str, Any], *, seed: int) -> Record:
    value = 0.80 + 0.01 * sum(WORTH[name] for name in WORTH if options[name] != CONFIG[name]) + 0.001 * seed
    changed = {name: value for name, value in options.items() if value != CONFIG[name]}
    return record(value, method="naslora", config={**CONFIG, **options}, changed=changed, seed=seed)


def everything(seeds: int = 2) -> list[Record]:
    grid = itertools.product(READINGS.entries(), range(seeds))
    made = [of_reading(dict(entry.options), seed=seed) for entry, seed in grid]
    return [*(record(0.81 + 0.001 * seed, seed=seed) for seed in range(seeds)), *made]


def page_of(records: list[Record], of: Study | None = None, *names: str) -> str:
    """The page of the readings, with the claims of these names."""
    claims = [claim for claim in read_claims(FILE) if claim.name in names]
    return write(reading_page(records, of or study(), MadeUp(), claims=claims, protocol="demo"))


def test_a_design_has_the_default_balanced_orthogonal_runs_and_further_values_alone() -> None:
    fields = parse_fields(FIELDS, where="here")
    design = points(fields)
    signs = np.array([point.levels for point in design if point.screening]) * 2 - 1
    assert design[0].levels == (0, 0, 0, 0)
    assert (signs.T @ signs == len(signs) * np.eye(4)).all()
    assert not signs.sum(axis=0).any()
    alone = [label_of(point, fields) for point in design if 2 in point.levels]
    assert alone == ["alternate=joint", "style=darts, norm=none"]
    assert len({point.levels for point in design}) == len(design)
    # the default's levels are named too, so that a row is found whatever the card says
    assert options_of(design[0], fields) == {name: CONFIG[name] for name in CONFIG if name != "lr"}


def test_aliases_are_what_an_interaction_adds_to_a_main_effect() -> None:
    fields = parse_fields({name: [0, 1] for name in "abcdefghi"}, where="here")
    signs = np.array([point.levels for point in points(fields) if point.screening]) * 2 - 1
    score = signs[:, 0] * signs[:, 1]  # an interaction of a and b alone
    carried = aliases(fields)
    assert ("a", "b") not in carried["a"]
    for place, name in enumerate("cdefghi", start=2):
        effect = (score * signs[:, place]).mean()
        assert carried[name]["a", "b"] == pytest.approx(effect)
        assert abs(effect) == pytest.approx(1 / 3)


def test_effects_that_were_put_in_come_out_with_intervals_over_replicates() -> None:
    ((sheet, members),) = sheets(everything()).items()
    effects = {e.field: e for e in main_effects(build_grid(sheet, members, MadeUp(), study=study()), study())}
    assert effects["scale"].estimate == pytest.approx(4.0)
    assert effects["residual"].estimate == pytest.approx(-2.0)
    assert effects["alternate"].estimate == pytest.approx(0.0, abs=1e-9)
    assert effects["scale"].replicates == 2
    assert effects["scale"].low == pytest.approx(4.0)


def test_effects_wait_for_every_run_of_a_seed() -> None:
    records = everything(seeds=1)
    ((sheet, members),) = sheets(records[:-4]).items()
    assert main_effects(build_grid(sheet, members, MadeUp(), study=study(seeds=1)), study(seeds=1)) == []
    assert "runs of the design are in" in page_of(records[:-4], study(seeds=1))


def test_lenths_margin_is_that_of_his_paper() -> None:
    # Box and Meyer's data as analysed by Lenth (1989), section 2: 15 effects, PSE 0.15, margin 0.386.
    effects = [0.13, -0.15, -0.15, 0.02, 0.03, 0.40, 0.38, 2.15, 3.10, 0.125, 0.05, -0.25, -0.1, 0.1, -0.05]
    first = 1.5 * float(np.median(np.abs(effects)))
    kept = [abs(value) for value in effects if abs(value) < 2.5 * first]
    assert lenth_margin(effects) == pytest.approx(1.5 * float(np.median(kept)) * 2.5706, rel=1e-4)


def test_the_curve_is_sorted_and_shows_differences_and_choices() -> None:
    page = page_of(everything())
    printed = page.split("## ")[1].splitlines()
    rows = [line.strip("| ").split(" | ") for line in printed if line.startswith("| ") and "mean" not in line]
    means = [float(row[0]) for row in rows]
    assert means == sorted(means)
    assert rows[-1][3] == "10"
    assert rows[-1][5] == "·"
    assert rows[-1][1].startswith("+3.0 [")
    assert "readings have a run" in page


def test_the_best_reading_is_chosen_on_validation_and_only_of_those_that_ran_everywhere() -> None:
    records = everything(seeds=1)
    options = READINGS.entries()[3].options
    scores = {"best": {"test": {"s_measure": 0.6}, "val": {"s_measure": 0.99}}}
    chosen = replace(of_reading(dict(options), seed=0), scores=scores)
    records = [chosen if r.key == chosen.key else r for r in records]
    page = page_of(records, study(seeds=1))
    negative = (line for line in page.splitlines() if line.startswith("| -"))
    lost = min(negative, key=lambda line: float(line.split("|")[1]))
    assert f"Best on validation of {len(READINGS.points)} with a run on each benchmark: " in page
    assert f"{label_of(READINGS.points[3], READINGS.fields)} (99.0 points" in page
    assert lost.split(" | ")[2] == "99.0"
    both = study(seeds=1, benchmarks=["kvasir", "leaf"])
    elsewhere = [record(0.8, benchmark="leaf"), record(0.9, method="naslora", config=CONFIG, benchmark="leaf")]
    page = page_of([*records, *elsewhere], both)
    assert "Best on validation of 1 with a run on each benchmark: default" in page


def test_a_run_of_the_default_under_other_rules_is_no_reading_of_this_study(monkeypatch: pytest.MonkeyPatch) -> None:
    records = everything(seeds=1)
    card = records[0].run.rules
    longer = [
        replace(record, run=replace(record.run, protocol_hash="bbbb", rules={**record.run.rules, "epochs": 99}))
        for record in records[:2]
    ]
    monkeypatch.setattr("harness.comparison.rules.card_rules", lambda *_: {**CARD, **card})
    page = page_of([*records, *longer], study(seeds=1))
    assert page.count("every reading against LoRA") == 1
    assert "hash aaaa0000" in page
    assert "bbbb" not in page
    assert "No record of these readings" in write(reading_page([], study(), MadeUp(), protocol="demo"))


def test_a_claim_is_counted_over_the_readings() -> None:
    page = page_of(everything()[:-2], None, "naslora-over-lora", "stagewise-over-joint")  # no run of the last reading
    row = next(line for line in page.splitlines() if line.startswith("| NAS-LoRA is better than LoRA"))
    options = [entry.options for entry in READINGS.entries()][:-1]
    gains = [sum(WORTH[name] for name in WORTH if reading[name] != CONFIG[name]) - 1 for reading in options]
    up, down = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    assert f"{up} of {len(gains)} | {down} of {len(gains)} | 0 of" in row
    assert "stage-wise" not in page


def test_a_claim_is_judged_where_another_study_tuned_the_baseline() -> None:
    chosen = {"grid": {"lr": [1e-3, 3e-3]}, "chosen": {"lr": 1e-3}, "trials": []}
    fixed = study(entries=[{"label": "LoRA", "method": "lora", "options": {"lr": 1e-3}}])
    records = [
        record(0.81 + 0.001 * r.run.seed, seed=r.run.seed, config={"lr": 1e-3}, changed={"lr": 1e-3}, tuning=chosen)
        if r.run.method == "lora"
        else r
        for r in everything()
    ]
    page = page_of(records, fixed, "naslora-over-lora")
    row = next(line for line in page.splitlines() if line.startswith("| NAS-LoRA is better than LoRA"))
    assert f"0 of {len(READINGS.points)} |" in row


def test_the_verb_writes_the_page_and_shows_the_plan_without_records(tmp_path: Path, says) -> None:
    plan = says(tables, "--readings", "design")
    assert "alternate: alternate=both (default) | alternate=iteration | alone: alternate=joint" in plan
    assert "carries up to 0.33 of each of 28 interactions" in plan
    assert "has no readings" in says(tables, "--readings", "--study", "rank", code=2)
    assert "run the readings first" in says(tables, "--readings", "--results", tmp_path, code=2)
    store_of(tmp_path, (replace(r, run=replace(r.run, protocol="nas-lora")) for r in everything()))
    (broken := tmp_path / "records" / "broken.json").write_text("{")
    assert "broken.json" in says(tables, "--readings", "--results", tmp_path)
    broken.unlink()
    assert (tmp_path / "readings" / "readings.md").is_file()
    says(tables, "--results", tmp_path)
    says(tables, "--check", "--results", tmp_path)  # it is no table that records alone would give


def test_the_curve_is_drawn_with_a_mark_for_every_choice_and_lost_readings_at_the_edge(tmp_path: Path) -> None:
    records = everything()
    lost = next(r for r in records if r.run.method == "naslora" and r.run.method_config["scale"] == 10)
    lost = replace(lost, scores={"best": {"test": {"s_measure": 0.1}}})
    store_of(tmp_path, [lost if r.key == lost.key else r for r in records])
    (material,) = materials(Archive(tmp_path), study=study())
    ((stem, drawing),) = draw("readings", material)
    top, bottom = drawing.figure.axes
    assert stem == f"mine-{material.grid.sheet.protocol_hash}-readings"
    marks = [line for line in bottom.get_lines() if line.get_marker() == "s"]
    assert len(marks) == len(READINGS.points) * len(READINGS.fields)
    at = [np.ravel(np.asarray(line.get_ydata(), dtype=float)) for line in top.get_lines() if line.get_marker() == "o"]
    dots = [float(point[0]) for point in at if len(point)]  # the first is the legend's
    assert dots == sorted(dots)
    assert dots[0] == top.get_ylim()[0] > -10
    (other,) = [r for r in records if r.run.seed == 1 and r.run.method_config == lost.run.method_config]
    gain = 100 * (other.scores["best"]["test"]["s_measure"] - 0.811)
    assert [text.get_text() for text in top.texts] == [f"{(10 - 81 + gain) / 2:.0f}"]
    with pytest.raises(NothingToDrawError, match="--study NAME"):
        list(draw("readings", materials(Archive(tmp_path))[0]))
    store_of(tmp_path / "alone", [r for r in everything(seeds=1) if r.run.method == "naslora"])
    with pytest.raises(NothingToDrawError, match="no reading has a seed in common with LoRA"):
        list(draw("readings", materials(Archive(tmp_path / "alone"), study=study())[0]))


def test_the_default_reading_is_the_cards_own_run_so_that_it_is_not_made_twice() -> None:
    from harness.planning.request import Variant as Row
    from harness.planning.rows import method_row
    from harness.protocols.load import load_protocol

    default = next(entry for entry in load_study("readings").entries if entry.label == "default")
    card = load_protocol("nas-lora")
    plain = method_row(Row(method="naslora"), card, {}, "vit_b").config
    read_row = method_row(Row(method="naslora", options=default.options), card, {}, "vit_b")
    assert read_row.config == plain
    assert read_row.changed == {}


def test_a_claim_with_options_of_its_own_is_not_judged_under_every_reading() -> None:
    claim = next(claim for claim in read_claims() if claim.name == "naslora-over-lora")
    of_a_rank = replace(claim, numerator=replace(claim.numerator, options={"rank": 6}))
    assert [_general(asked, "naslora", ["kvasir"]) for asked in (claim, of_a_rank)] == [True, False]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": [1, 2]}, "at least two fields"),
        ({"scale": [1], "rank": [1, 2]}, "at least two different values"),
        ({"scale": [1, 1], "rank": [1, 2]}, "at least two different values"),
        ({"a": [{"style": "x"}, {"style": "y"}], "style": ["x", "y"]}, "two fields set 'style'"),
    ],
)
def test_malformed_fields_are_refused_in_a_line(fields: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        study(readings={"method": "naslora", "fields": fields})


def test_a_choice_is_told_by_its_value_and_several_by_their_names() -> None:
    levels = [{"norm": "none", "scale": 1}, {"norm": "batch", "scale": 1}, {"norm": "batch", "scale": 2}]
    assert [choice(level, levels) for level in range(3)] == ["·", "batch", "norm=batch, scale=2"]
