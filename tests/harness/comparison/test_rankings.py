"""Rankings under several models: what is compared, what the page says, how the claim is judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.comparison import judging, rankings
from harness.comparison.claims import read_claims
from harness.comparison.grids import grids
from harness.comparison.judging import findings_text
from harness.studies import load_study, study_from_dict
from harness.system.errors import UsageError
from tests.harness.report.sample import CARD, MadeUp, record, render, table_rows
from tests.harness.report.sample import judged as judged_on
from tests.values import there

METHODS = ("decoder", "lora", "bitfit", "ssf")
HASHES = {"sam": "aaaa0000aaaa0000", "linear": "bbbb0000bbbb0000", "mask-transformer": "cccc0000cccc0000"}


def runs(
    decoder: str, values: dict[str, float], *, benchmarks: tuple[str, ...] = ("kvasir", "leaf"), **rules: Any
) -> list[Any]:
    """Three seeds a method and benchmark; ``values`` are their middle scores."""
    shared: dict[str, Any] = {"protocol_hash": HASHES[decoder], "rules": {**CARD, "decoder": decoder, **rules}}
    return [
        record(value + 0.001 * seed, method=method, benchmark=benchmark, seed=seed, **shared)
        for benchmark in benchmarks
        for method, value in values.items()
        for seed in range(3)
    ]


def models(**changes: Any) -> Any:
    content = {
        "title": "Models", "protocol": "demo", "decoders": list(HASHES), "benchmarks": ["kvasir", "leaf"],
        "entries": list(METHODS), **changes,
    }  # fmt: skip
    return study_from_dict(content, name="models")


UP = dict(zip(METHODS, (0.5, 0.6, 0.7, 0.8), strict=True))
DOWN = dict(zip(METHODS, (0.8, 0.7, 0.6, 0.5), strict=True))


def agreement_rows(page: str) -> dict[str, list[str]]:
    _, _, text = page.partition("do the methods rank alike?")
    return {row[0]: row[1:] for row in table_rows(text)}


def test_the_page_gives_tau_by_benchmark_its_mean_its_interval_and_chance() -> None:
    records = runs("sam", UP) + runs("linear", UP) + runs("mask-transformer", DOWN)
    rows = agreement_rows(render(records, study=models()))
    assert rows["models"][:3] == ["τ Kvasir-SEG Sα", "τ Leaf IoU", "mean τ"]
    assert rows["sam – linear"] == ["+1.00", "+1.00", "+1.00", "[+1.00, +1.00]", "1 of 24 orders"]
    assert rows["sam – mask-transformer"] == ["-1.00", "-1.00", "-1.00", "[-1.00, -1.00]", "24 of 24 orders"]
    assert rows["linear – mask-transformer"][2] == "-1.00"


def test_models_that_were_trained_otherwise_too_are_not_compared() -> None:
    assert "rank alike" not in render(runs("sam", UP) + runs("linear", UP, epochs=9), study=models())


def test_rows_that_are_not_complete_under_both_are_left_out() -> None:
    records = runs("sam", UP) + [r for r in runs("linear", UP) if (r.run.method, r.run.seed) != ("ssf", 2)]
    page = render(records, study=models())
    assert agreement_rows(page)["sam – linear"][-1] == "1 of 6 orders"
    assert "the same rows (decoder, lora, bitfit): 1 is" in page


def test_a_barely_begun_benchmark_is_left_out_instead_of_the_rows() -> None:
    records = [
        record
        for decoder in ("sam", "linear")
        for record in runs(decoder, UP)
        if record.run.benchmark == "kvasir" or record.run.method in METHODS[:2]
    ]
    page = render(records, study=models())
    assert agreement_rows(page)["sam – linear"] == ["+1.00", "+1.00", "[+1.00, +1.00]", "1 of 24 orders"]
    assert "sam – linear: too few rows are complete on Leaf IoU, which is left out." in page


def test_a_methods_own_budget_is_no_other_model() -> None:
    """Planning gives a method that spares no updates a budget of epochs under a card with one of updates."""

    def spared(record: Any) -> Any:
        return replace(record, run=replace(record.run, rules={**record.run.rules, "budget": "updates"}))

    for spares in METHODS:
        fewer = {method: score for method, score in UP.items() if method != spares}
        records = [spared(r) if r.run.method == spares else r for r in runs("sam", UP) + runs("linear", fewer)]
        assert "sam – linear" in agreement_rows(render(records, study=models()))


def test_a_study_without_decoders_shows_sams_tables_alone() -> None:
    records = runs("sam", UP) + runs("linear", UP)
    assert "linear" not in render(records, study=models(decoders=[]))
    assert "linear" in render(records, study=models(decoders=["linear"]))


def test_a_decoder_with_a_rate_of_its_own_is_the_same_model_and_without_it_another_page() -> None:
    records = runs("sam", UP) + runs("linear", UP, decoder_lr=1e-4)
    own = models(decoders={"sam": {}, "linear": {"decoder_lr": 1e-4}})
    assert agreement_rows(render(records, study=own))["sam – linear"][-1] == "1 of 24 orders"
    assert "linear" not in render(records, study=models())


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The finding of a claim on the rankings under `models`."""

    def call(records: list[Any], study: Any = None) -> Any:
        monkeypatch.setattr(judging, "load_study", lambda name: study or models())
        content = {
            "name": "alike", "text": "t", "source": "ours", "mark": "?", "quantity": "rank agreement", "unit": "tau",
            "studies": ["cross-model"], "expected": {"greater": 0},
        }  # fmt: skip
        path = tmp_path / "claims.yaml"
        path.write_text(yaml.safe_dump([content]))
        return judged_on(read_claims(path), MadeUp(records))[0]

    return call


def test_the_claim_is_judged_by_every_pair_of_models(judged) -> None:
    alike = judged(runs("sam", UP) + runs("linear", UP) + runs("mask-transformer", UP))
    assert alike.verdict == "reproduced"
    text = findings_text([alike])
    assert "sam – linear, mean τ over 2 benchmarks of 4 rows: +1.00 [+1.00, +1.00] tau, n = 3: reproduced" in text
    reverse = judged(runs("sam", UP) + runs("linear", UP) + runs("mask-transformer", DOWN))
    assert [reading.verdict for reading in reverse.readings] == ["reproduced", "not reproduced", "not reproduced"]
    assert reverse.verdict == "not reproduced"


def test_three_rows_cannot_show_it(judged) -> None:
    three = {name: UP[name] for name in METHODS[:3]}
    finding = judged(runs("sam", three) + runs("linear", three))
    assert finding.verdict == "inconclusive"
    few = "3 rows agree so well by chance in 1 of 6 orders; at least 4 rows are needed"
    assert finding.readings[0].settle == f"not all rows; {few}"


def test_two_rows_do_not_refute_it_and_four_of_five_do_not_show_it(judged, monkeypatch) -> None:
    two = [{name: values[name] for name in METHODS[:2]} for values in (UP, DOWN)]
    reverse = judged(runs("sam", two[0]) + runs("linear", two[1]))
    assert [reading.verdict for reading in reverse.readings] == ["inconclusive", "no data"]
    five = models(entries=[*METHODS, "vpt"])
    monkeypatch.setattr(judging, "ALPHA", 1 / 24)
    every = [record for decoder in HASHES for record in runs(decoder, UP)]
    assert judged(every).verdict == "reproduced"
    finding = judged(every, study=five)
    assert (finding.verdict, finding.readings[0].settle) == ("inconclusive", "not all rows")


def test_pairs_of_models_name_their_own_rows() -> None:
    less = {name: UP[name] for name in METHODS[:3]}
    page = render(runs("sam", UP) + runs("linear", UP) + runs("mask-transformer", less), study=models())
    assert "(sam – linear: decoder, lora, bitfit, ssf; sam – mask-transformer: decoder, lora, bitfit;" in page


def test_some_models_or_some_benchmarks_do_not_show_it_and_without_runs_there_is_no_data(judged) -> None:
    two = judged(runs("sam", UP) + runs("linear", UP))
    assert two.verdict == "inconclusive"
    assert "1 of 3 pairs of models have two complete rows in common" in findings_text([two])
    every = [record for decoder in HASHES for record in runs(decoder, UP)]
    finding = judged([record for record in every if record.run.benchmark == "kvasir"])
    assert finding.verdict == "inconclusive"
    assert {reading.settle for reading in finding.readings} == {"not all benchmarks"}
    finding = judged(runs("sam", UP))
    assert finding.verdict == "no data"
    assert "no two models with two rows in common" in findings_text([finding])


def test_a_claim_on_rankings_names_real_studies() -> None:
    claims = {claim.name: claim for claim in read_claims()}
    assert claims["architecture-independence"].studies == ("cross-model", "small-cross-model")
    assert judged_on([], MadeUp()) == []


def beside_elsewhere(values: dict[str, float], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page of a study whose rows another project ranked decoder, lora, bitfit, ssf, from the worst to the best."""
    (folder / "there.csv").write_text(
        "label,correct,trials,source,commit\n"
        + "".join(f"{name},{200 * place},1000,a/b c.json,{'ab' * 20}\n" for place, name in enumerate(METHODS, start=1))
    )
    monkeypatch.setattr(rankings, "FOLDER", folder)
    study = models(decoders=[], table={"ranking": "there"})
    return render(runs("sam", values) if values else [], study=study)


@pytest.mark.parametrize(
    ("values", "tau", "chance"), [(UP, "+1.00", "1 of 24 orders"), (DOWN, "-1.00", "24 of 24 orders")]
)
def test_an_order_from_elsewhere_is_compared_with_ours(tmp_path, monkeypatch, values, tau, chance):
    page = beside_elsewhere(values, tmp_path, monkeypatch)
    row = next(line for line in page.splitlines() if "– there" in line)
    assert [cell.strip() for cell in row.strip("| ").split(" | ")][1:] == [tau, tau, tau, f"[{tau}, {tau}]", chance]
    assert "ssf 80.0 %, bitfit 60.0 %, lora 40.0 %, decoder 20.0 %" in page


def test_the_lowest_error_is_the_best_beside_an_order_from_elsewhere() -> None:
    (grid,) = grids(runs("sam", DOWN, benchmarks=("sbu",)), MadeUp())
    counts = {name: place for place, name in enumerate(METHODS)}
    pair = there(rankings.pair_with(rankings.Elsewhere(name="there", correct=counts, trials=10, commit=""), grid))
    assert pair.agreement.by_benchmark == (1.0,)


def test_where_nothing_ran_beside_an_order_from_elsewhere_the_page_says_no_data(tmp_path, monkeypatch) -> None:
    page = beside_elsewhere({}, tmp_path, monkeypatch)
    assert "No data" in page
    assert "– there" not in page


def test_the_order_of_pefts_comparison_is_of_the_rows_of_its_study_and_names_its_source() -> None:
    study = load_study("peft-ranking")
    elsewhere = rankings.read_elsewhere(study.table.ranking)
    assert [entry.label for entry in study.entries] == [*elsewhere.correct]
    assert elsewhere.in_words().startswith("rsLoRA, twice the rank 51.3 %, HiRA 51.3 %, SHiRA 51.0 %")
    assert len(elsewhere.commit) == 40
    with pytest.raises(UsageError, match="peft-metamathqa"):
        rankings.read_elsewhere("peft-metamath")
