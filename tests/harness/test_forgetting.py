"""The verb: kept states are scored elsewhere as the runs there were, and the page holds the differences."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.archive.measured import ForgettingRecord, ForgettingStore
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli.forgetting import main
from harness.cli.records import main as records
from harness.cli.tables import main as tables
from harness.experiment.experiment import run_experiment
from harness.experiment.trained import of_results, scored_elsewhere
from harness.report.forgetting import AgainstFrozen, forgetting_page
from harness.report.formats import write
from tests.harness.planned import plan_of
from tests.harness.report.sample import table_rows as rows
from tests.values import RESULTS, there

METHODS, BENCHMARKS = ("lora", "decoder"), ("kvasir", "cvc612")


class Finished:
    """Two methods on two benchmarks of generated images, one epoch each, and what they score elsewhere."""

    def __init__(self, results: Path) -> None:
        self.results = results
        small: dict[str, Any] = {"epochs": 1, "image_size": 64, "train_limit": 8, "val_limit": 2}
        planned = plan_of(results, *METHODS, benchmarks=BENCHMARKS, **small)
        done = [run_experiment(job) for job in planned.jobs]
        self.keys = {(record.run.method, record.run.benchmark): record.key for record in done}
        assert main(["--results", str(results)]) == 0

    def own(self, method: str, benchmark: str) -> float:
        record = RecordStore(self.results).read(self.keys[method, benchmark])
        assert record is not None
        return record.scores["best"]["test"]["s_measure"]

    def elsewhere(self, method: str, trained: str, tested: str) -> float:
        record = ForgettingStore.load(ForgettingStore(self.results).path(self.keys[method, trained]))
        assert list(record.elsewhere) == [tested]
        return record.elsewhere[tested].scores["test"]["s_measure"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("results"))


def test_a_model_is_scored_as_its_own_run_scored_it(finished: Finished) -> None:
    key = finished.keys["lora", "kvasir"]
    trained = of_results(finished.results, key)
    scored = scored_elsewhere(
        trained.segmenter(None)[0], trained.run, data=finished.results / "sample-data" / "kvasir",
        results=finished.results, device=torch.device("cpu"),
    )  # fmt: skip
    record = RecordStore(finished.results).read(key)
    assert record is not None
    assert scored.scores["test"] == record.scores["best"]["test"]
    assert finished.elsewhere("lora", "kvasir", "cvc612") != finished.own("lora", "cvc612")


def test_the_page_holds_differences_to_the_frozen_encoder(finished: Finished, capsys) -> None:
    assert tables(["--results", str(finished.results), "--format", "csv"]) == 0
    page = (finished.results / "tables" / "forgetting.md").read_text()
    home = [finished.own("lora", name) - finished.own("decoder", name) for name in BENCHMARKS]
    pairs = {
        tested: finished.elsewhere("lora", trained, tested) - finished.elsewhere("decoder", trained, tested)
        for trained, tested in (BENCHMARKS, BENCHMARKS[::-1])
    }
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in page.splitlines() if line.startswith("| ")}
    cells = [cell.strip() for cell in rows["lora"]]
    for cell, values in ((cells[0], home), (cells[1], list(pairs.values()))):
        spread = torch.tensor(values, dtype=torch.float64).std().item()
        assert cell == f"{100 * sum(values) / 2:+.1f} ± {100 * spread:.1f} (2)"
    assert cells[2:] == [f"{100 * pairs[name]:+.1f} (1)" for name in BENCHMARKS]
    assert rows["decoder (frozen)"][2].strip() == f"{100 * finished.elsewhere('decoder', 'cvc612', 'kvasir'):.1f} (1)"


def test_again_nothing_is_measured_and_the_page_is_what_its_records_give(finished: Finished, capsys) -> None:
    before = {path.name: path.read_bytes() for path in ForgettingStore(finished.results).folder.iterdir()}
    capsys.readouterr()
    assert main(["--results", str(finished.results), "--json"]) == 0
    assert [row["method"] for row in json.loads(capsys.readouterr().out)["tables"][0]["rows"]][-1] == "lora"
    assert {path.name: path.read_bytes() for path in ForgettingStore(finished.results).folder.iterdir()} == before
    assert tables(["--results", str(finished.results)]) == 0
    assert tables(["--results", str(finished.results), "--check"]) == 0


def test_scores_of_an_older_state_are_measured_anew(finished: Finished, tmp_path: Path) -> None:
    root = tmp_path / "results"
    shutil.copytree(finished.results, root)
    store, key = ForgettingStore(root), finished.keys["lora", "kvasir"]
    measured = ForgettingStore.load(store.path(key))
    of_cvc612 = replace(measured.elsewhere["cvc612"], scores={"test": {"s_measure": 0.99}})
    store.write(replace(measured, state="0" * 16, elsewhere={"cvc612": of_cvc612}))
    assert main(["--results", str(root), "--run", key]) == 0
    again = ForgettingStore.load(store.path(key))
    assert again.state == measured.state
    assert again.elsewhere["cvc612"].scores == measured.elsewhere["cvc612"].scores


def test_scores_on_images_of_a_run_that_is_gone_are_measured_anew(finished: Finished, tmp_path: Path) -> None:
    """Else a difference would be one between two test splits."""
    results = tmp_path / "results"
    shutil.copytree(finished.results, results)
    store, key = ForgettingStore(results), finished.keys["lora", "kvasir"]
    known = there(store.find(key))
    (tested,) = known.elsewhere.values()
    store.write(replace(known, elsewhere={"cvc612": replace(tested, like="0" * len(tested.like))}))
    assert main(["--results", str(results)]) == 0
    assert there(store.find(key)).elsewhere["cvc612"] == tested


def test_an_edited_file_is_named_and_counts_for_nothing(finished: Finished, tmp_path, capsys) -> None:
    root = tmp_path / "results"
    for folder in ("records", "forgetting"):
        shutil.copytree(finished.results / folder, root / folder)
    assert records(["check", str(root)]) == 0
    path = ForgettingStore(root).path(finished.keys["lora", "kvasir"])
    content = json.loads(path.read_text())
    content["elsewhere"]["cvc612"]["scores"]["test"]["s_measure"] = 0.99
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert records(["check", str(root)]) == 1
    assert f"{path}: its seal does not fit" in capsys.readouterr().out


def test_without_another_benchmark_it_says_so_in_one_line(finished: Finished, tmp_path, capsys) -> None:
    root = tmp_path / "results"
    key = finished.keys["lora", "kvasir"]
    shutil.copytree(finished.results / "state" / key, root / "state" / key)
    (root / "records").mkdir()
    for path in (finished.results / "records").glob(f"{key}.*"):
        shutil.copy(path, root / "records")
    assert main(["--results", str(root)]) == 2
    error = capsys.readouterr().err
    assert "was finished on another benchmark" in error
    assert len(error.strip().splitlines()) == 1


def _run(like: Record, key: str, **labels: Any) -> tuple[Record, ForgettingRecord]:
    """Another run on the same benchmark with the same seed, and its scores elsewhere."""
    kept = there(ForgettingStore(RESULTS).find(like.key))
    return replace(like, key=key, run=replace(like.run, **labels)), replace(kept, key=key)


def _decoder() -> Record:
    names = ForgettingStore(RESULTS)
    return next(record for record in RecordStore(RESULTS) if record.run.method == "decoder" and names.find(record.key))


LAST = "zz"
"""A key behind all others: what comes last must not win for that."""


def test_two_configurations_of_one_name_are_two_rows() -> None:
    """Else one seed at two rates would be a mean of two."""
    decoder = _run(_decoder(), "1", variant="decoder", method_config={"lr": None})
    named = {"method": "lora", "variant": "LoRA", "tuning": {}}
    rates = [_run(_decoder(), str(rate), method_config={"lr": rate}, **named) for rate in (1e-3, 1e-2)]
    names = _named(decoder, *rates)
    assert names[0] == "decoder (frozen)"
    assert len(set(names[1:])) == 2
    assert all(name.startswith("LoRA #") for name in names[1:])


@pytest.mark.parametrize(("name", "sign"), [("ber", -1), ("iou", 1)])
def test_numbers_of_forgetting_are_scores_as_they_are_and_differences_that_are_positive_where_better(
    name, sign
) -> None:
    base = AgainstFrozen(trained_on="kvasir", tested_on="sbu", seed=0, metric=name, score=0.08, frozen=0.05)
    assert base.difference == pytest.approx(sign * 0.03)


def _named(*runs: tuple[Record, ForgettingRecord]) -> list[str]:
    """First cells of the page's rows, however the runs are ordered."""
    pages = [
        write(forgetting_page([record for record, _ in order], [record for _, record in order]), style="markdown")
        for order in (runs, runs[::-1])
    ]
    assert pages[0] == pages[1]
    return [row[0] for row in rows(pages[0])[1:]]


def test_only_the_decoder_alone_is_the_baseline() -> None:
    decoder = _run(_decoder(), "1", variant="decoder", method_config={"lr": None})
    lora = _run(_decoder(), LAST, method="lora", variant="lora[sites=decoder]", method_config={"sites": "decoder"})
    assert _named(decoder, lora) == ["decoder (frozen)", "lora[sites=decoder]"]
    assert _named(lora) == []


@pytest.mark.parametrize(
    ("preferred", "others"),
    [
        ({"tuning": {}, "changed": {}}, {"tuning": {}, "changed": {"lr": 0.1}}),
        ({"tuning": {"chosen": {"lr": 0.1}}, "changed": {"lr": 0.1}}, {"tuning": {"grid": {}}, "changed": {"lr": 0.1}}),
        ({"tuning": {"chosen": {"lr": 0.1}}, "changed": {"lr": 0.1}}, {"tuning": {}, "changed": {}}),
    ],
)
def test_of_several_rates_of_the_decoder_one_is_the_baseline_and_the_others_are_rows(preferred, others) -> None:
    base = _run(_decoder(), "1", variant="x", method_config={"lr": 0.1}, **preferred)
    other = [
        _run(_decoder(), LAST + name, variant=f"decoder {name}", method_config={"lr": lr}, **others)
        for name, lr in (("a", 0.2), ("b", 0.3))
    ]
    assert _named(base, *other) == ["x (frozen)", "decoder a", "decoder b"]
