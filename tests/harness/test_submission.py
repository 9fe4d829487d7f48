"""What somebody sends for a row of a study: whole and right it is shown and taken, and each fault is one line.

The study is of a tiny SAM on generated images; two rates, two seeds. The row sent is of a method that the study does not list.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.archive.archive import Archive
from harness.archive.files import read_sidecar, sidecar
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli.records import main as records_verb
from harness.cli.tables import main as tables_verb
from harness.comparison import grids, leaderboards
from harness.experiment.number_code import _of_method
from harness.registry import METHODS
from harness.run import main as run
from harness.studies import Row, load_study
from harness.system.errors import UsageError
from tests.harness.report.sample import table_rows
from tests.values import REPOSITORY, there

STUDY = """
title: Two methods
protocol: demo
set: {epochs: 1, train_limit: 4, epoch_images: 4, val_limit: 2, test_limit: 4, image_size: 32, merge: []}
benchmarks: [kvasir]
seeds: [0, 1]
choose: {lr: [1.0e-3, 1.0e-2]}
entries: [{label: LoRA, method: lora}]
backbones: [tiny]
data: {kvasir: FILES}
weights: {tiny: ""}
table: {kind: leaderboard, baseline: LoRA, metrics: [iou], scores: [last], splits: {kvasir: [test]}}
"""
BREAKS = """
from harness.methods.bitfit import BitFit
from harness.methods.bitfit import BitFitConfig

class Loose(BitFit):
    name = "loose"
    config_class = BitFitConfig

    def parameter_groups(self):
        groups = super().parameter_groups()
        groups[0].named.popitem()
        return groups
"""
Edit = Callable[[Path], None]


def intake_script() -> Any:
    path = REPOSITORY / "results/analysis/leaderboard/intake.py"
    spec = there(importlib.util.spec_from_file_location("intake", path))
    script = importlib.util.module_from_spec(spec)
    there(spec.loader).exec_module(script)
    return script


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study's file, its committed records (``results``) and a right submission (``mine``)."""
    root = tmp_path_factory.mktemp("board")
    study = root / "two.yaml"
    study.write_text(STUDY.replace("FILES", '""'), encoding="utf-8")
    for method, results in (("lora", "results"), ("bitfit", "mine")):
        words = ["--study", str(study), "--methods", method, "--results", str(root / results), "--executor", "inline"]
        assert run(words) == 0
    fingerprint = Archive(root / "mine").records[0].run.data_fingerprint
    study.write_text(STUDY.replace("FILES", fingerprint.rpartition("-")[0]), encoding="utf-8")
    return root


@pytest.fixture
def mine(board: Path, tmp_path: Path) -> Path:
    """The submission, to edit."""
    return Path(shutil.copytree(board / "mine" / "records", tmp_path / "mine" / "records")).parent


@pytest.fixture(autouse=True)
def _demo_protocol() -> None:
    """These records are held against the protocol demo as it is."""


def edit(
    mine: Path, change: Callable[[Record], Record], *, images: Callable[[str], str] = str, also: bool = False
) -> None:
    """Write every record changed, whole and sealed, as somebody would who knows how; ``also``: beside the record itself."""
    store = RecordStore(mine)
    texts = {old.key: read_sidecar(store.images_path(old.key), expected="").decode() for old in store}
    made = [(change(old), images(texts[old.key])) for old in store]
    for path in [] if also else [*store.folder.iterdir()]:
        path.unlink()
    for new, text in made:
        store.write(replace(new, key=new.run.key, sidecars={}), text)


def of_run(*, also: bool = False, **fields: Any) -> Edit:
    return lambda mine: edit(mine, lambda record: replace(record, run=replace(record.run, **fields)), also=also)


def without_column(name: str) -> Callable[[str], str]:
    def without(text: str) -> str:
        lines = [line.split(",") for line in text.splitlines()]
        at = lines[0].index(name)
        return "".join(",".join(cells[:at] + cells[at + 1 :]) + "\n" for cells in lines)

    return without


def delete(which: Callable[[Record], bool]) -> Edit:
    def without(mine: Path) -> None:
        store = RecordStore(mine)
        for key in [record.key for record in store if which(record)]:
            for path in store.folder.glob(f"{key}.*"):
                path.unlink()

    return without


def of_seed(seed: int) -> Callable[[Record], bool]:
    return lambda record: record.run.seed == seed


def one_point_more(mine: Path) -> None:
    def more(text: str) -> str:
        header, first, *rest = text.splitlines(keepends=True)
        column = header.strip().split(",").index("iou")
        cells = first.strip().split(",")
        cells[column] = f"{float(cells[column]) + 0.01:.6g}"
        return "".join([header, ",".join(cells) + "\n", *rest])

    edit(mine, lambda record: record, images=more)


def one_byte_in_a_file(mine: Path) -> None:
    path = next(sidecar(RecordStore(mine).path(record.key), "images.csv") for record in RecordStore(mine))
    path.write_bytes(path.read_bytes()[:-1])


def seeds_of_names_swapped(mine: Path) -> None:
    for path in RecordStore(mine).files():
        path.write_text(path.read_text(encoding="utf-8").replace('"seed": 0', '"seed": 1'), encoding="utf-8")


WRONG: dict[str, tuple[Edit, str]] = {
    "changed rule": (
        lambda mine: edit(mine, lambda r: replace(r, run=replace(r.run, rules={**r.run.rules, "epochs": 2}))),
        "rules: epochs 2 instead of",
    ),
    "no records": (delete(lambda record: True), "rules: there are no records"),
    "another protocol": (of_run(protocol="mini"), "rules: protocol mini instead of demo"),
    "another backbone": (of_run(backbone="tiny_timm"), "rules: backbone tiny_timm instead of tiny"),
    "another benchmark": (of_run(benchmark="leaf", also=True), "data: leaf is not a benchmark of the study"),
    "a replicate more": (of_run(seed=7, also=True), "replicates: BitFit on kvasir: 7 not among"),
    "missing replicate": (delete(lambda record: record.run.seed == 1), "replicates: BitFit on kvasir lacks 1"),
    "score of an image": (one_point_more, "scores: "),
    "no scores by image": (lambda mine: edit(mine, lambda r: r, images=without_column("iou")), "no iou by image"),
    "sidecar file": (one_byte_in_a_file, "scores: "),
    "split that ranks": (
        lambda mine: edit(mine, lambda r: replace(r, scores={**r.scores, "last": {"val": r.scores["last"]["val"]}})),
        "scores: ",
    ),
    "swapped seeds": (seeds_of_names_swapped, "scores: "),
    "rate left out": (delete(lambda r: (r.run.method_config["lr"], r.run.seed) == (0.01, 1)), "seed 1, lacks lr=0.01"),
    "rate never run": (delete(lambda r: r.run.method_config["lr"] == 0.01), "rates: BitFit (lr=0.001) sets lr"),
    "other weights": (of_run(checkpoint="sha256-" + "0" * 64), "weights: sha256-000"),
    "other files": (of_run(data_fingerprint=f"content-{'0' * 16}-{'0' * 16}"), "data: Kvasir-SEG: content-000"),
    "code of nobody": (of_run(method="unknown"), "code: unknown comes from a plug-in"),
    "a failed run": (lambda mine: edit(mine, lambda r: replace(r, code="OOM", scores={})), "failed runs: OOM"),
}


def wrong_lines(text: str) -> list[str]:
    return [line.removeprefix("wrong").strip() for line in text.splitlines() if line.startswith("wrong")]


def test_a_right_submission_is_ready(board: Path, mine: Path, says) -> None:
    lines = says(records_verb, "check", mine, "--study", board / "two.yaml").splitlines()
    whats = ["rules", "data", "weights", "replicates", "rates", "scores", "code", "failed runs"]
    assert [line.partition(":")[0] for line in lines[:-1]] == [f"right  {what}" for what in whats]
    assert lines[6].endswith("code: built in")
    assert "ready" in lines[-1]
    named = (board / "two.yaml").read_text(encoding="utf-8").splitlines()
    bare = mine.with_name("bare.yaml")
    bare.write_text("\n".join(line for line in named if not line.startswith(("data:", "weights:"))), encoding="utf-8")
    assert says(records_verb, "check", mine, "--study", bare).count("the study names none") == 2


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_submission_is_refused_with_one_line(fault: str, board: Path, mine: Path, says) -> None:
    spoil, line = WRONG[fault]
    spoil(mine)
    lines = wrong_lines(says(records_verb, "check", mine, "--study", board / "two.yaml", code=1))
    (wrong,) = [said for said in lines if not said.startswith("rates") or "rate" in fault]
    assert line in wrong


def test_a_row_stands_among_the_committed_ones_with_its_state_and_nothing_is_written(
    board: Path, mine: Path, tmp_path: Path, says
) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(board / "results" / "records", theirs / "records")
    (theirs / "submitted.csv").write_text("key,state\n", encoding="utf-8")
    before = sorted(theirs.rglob("*"))
    page = says(tables_verb, "--study", board / "two.yaml", "--results", mine, "--with", theirs)
    rows = {line[0]: line for line in table_rows(page)}
    assert {name: row[-1] for name, row in rows.items()} == {
        "method": "state", "BitFit (yours)": "submitted", "LoRA": "rerun by maintainers",
    }  # fmt: skip
    assert any("[" in cell for cell in rows["BitFit (yours)"])  # the difference to the baseline, with its interval
    assert "baseline" in rows["LoRA"]
    assert sorted(theirs.rglob("*")) == before
    assert [path.name for path in mine.iterdir()] == ["records"]


def test_a_committed_row_with_runs_of_yours_says_so(board: Path, tmp_path: Path, says) -> None:
    for name, seed in (("mine", 0), ("results", 1)):
        shutil.copytree(board / "results" / "records", tmp_path / name / "records")
        delete(of_seed(seed))(tmp_path / name)
    words = ["--study", board / "two.yaml", "--results", tmp_path / "mine", "--with", tmp_path / "results"]
    assert "| LoRA (partly yours) |" in says(tables_verb, *words)
    config = Archive(tmp_path / "mine").records[0].run.method_config
    of_run(method_config=dict(config) | {"lr": 0.5})(tmp_path / "mine")  # the study does not choose this rate
    assert "| LoRA |" in says(tables_verb, *words)


def test_the_state_of_a_row_is_that_of_its_least_confirmed_run(board: Path, mine: Path, tmp_path: Path) -> None:
    both = Path(shutil.copytree(board / "results" / "records", tmp_path / "both" / "records")).parent
    shutil.copytree(mine / "records", both / "records", dirs_exist_ok=True)
    study = load_study(str(board / "two.yaml"))
    study = replace(study, entries=(*study.entries, Row(label="BitFit", method="bitfit")))

    def found(archive: Archive) -> dict[str, str]:
        (made,) = leaderboards(grids(archive, study=study), study)
        return {row: made.state(row) for row in made.rows}

    assert {*found(Archive(both)).values()} == {""}, "a folder that takes no submissions"
    sent = Archive(mine).records
    for lines, state in (
        ([], "rerun by maintainers"),
        ([f"{r.key},rerun by CI" for r in sent], "rerun by CI"),
        ([f"{r.key},{'submitted' if r.run.seed else 'rerun by CI'}" for r in sent], "submitted"),
    ):
        (both / "submitted.csv").write_text("\n".join(["key,state", *lines, ""]), encoding="utf-8")
        assert found(Archive(both)) == {"LoRA": "rerun by maintainers", "BitFit": state}
    for damaged in (b"key,state\nx,confirmed\n", b"", b"\xff", b"key,state\nx\n"):
        (both / "submitted.csv").write_bytes(damaged)
        with pytest.raises(UsageError, match=r"submitted\.csv"):
            found(Archive(both))
    (both / "submitted.csv").unlink()
    (both / "submitted.csv").mkdir()
    with pytest.raises(UsageError, match=r"submitted\.csv"):
        found(Archive(both))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data_fingerprint": "content-0000000000000000-0000000000000000"}, "other files of Kvasir-SEG"),
        ({"checkpoint": "sha256-" + "0" * 64}, "other weights"),
    ],
)
def test_rows_of_other_inputs_stand_in_a_table_of_their_own(fields, words: str, board: Path, mine: Path, says) -> None:
    of_run(**fields)(mine)
    joined = ("--study", board / "two.yaml", "--results", mine, "--with", board / "results")
    tables = says(tables_verb, *joined).split("\n## ")[1:]
    (own,) = (table for table in tables if "| BitFit" in table)
    assert words in own.splitlines()[0]
    assert [words in table for table in tables if "| LoRA |" in table] == [False]


@pytest.mark.parametrize("words", [["--study", "cost"], [], ["--study", "leaderboard", "--check"]])
def test_joining_what_cannot_be_joined_is_an_error(words: list[str], board: Path, mine: Path) -> None:
    assert tables_verb([*words, "--results", str(mine), "--with", str(board / "results")]) == 2


def take(board: Path, mine: Path, out: Path) -> int:
    words = ["--study", str(board / "two.yaml"), "--results", str(board / "results"), "--out", str(out)]
    return int(intake_script().main([str(mine), *words, "--run=--executor inline"]))


def test_the_intake_takes_a_right_submission_after_a_rerun(
    board: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], unexamined: None
) -> None:
    assert take(board, mine, tmp_path / "out") == 0
    assert "accepted" in capsys.readouterr().out
    assert "BitFit (yours)" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    lines = (tmp_path / "out" / "submitted.csv").read_text(encoding="utf-8").splitlines()
    assert sorted(lines) == [f"{record.key},rerun by CI" for record in Archive(mine).records]
    (again,) = (tmp_path / "out").glob("rerun-*")
    assert {(r.run.method, r.run.seed) for r in Archive(again).records} in (
        {("lora", s), ("bitfit", s)} for s in (0, 1)
    )


@pytest.fixture
def loose(mine: Path) -> Iterator[Path]:
    """A submission of a plug-in that breaks the contract, with records that name its code."""
    path = mine / "loose.py"
    path.write_text(BREAKS, encoding="utf-8")
    spec = there(importlib.util.spec_from_file_location("loose_method", path))
    module = sys.modules["loose_method"] = importlib.util.module_from_spec(spec)
    there(spec.loader).exec_module(module)
    code = {"numbers_method": _of_method(module.Loose, module.Loose.config_class)}
    of_run(method="loose", label="loose")(mine)
    edit(mine, lambda record: replace(record, environment={**record.environment, **code}))
    yield path
    METHODS._loaded.pop("loose", None)
    del sys.modules["loose_method"]


@pytest.mark.slow
def test_the_intake_refuses_a_method_that_breaks_the_contract(
    loose: Path, board: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert take(board, mine, tmp_path / "out") == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("refused: contract: loose")


def test_the_code_that_was_given_must_be_what_ran(loose: Path, board: Path, mine: Path, says) -> None:
    check = ["check", mine, "--study", board / "two.yaml", "--plugin", loose]
    says(records_verb, *check)
    edit(mine, lambda record: replace(record, environment={**record.environment, "numbers_method": "0" * 12}))
    assert "not the code that ran" in wrong_lines(says(records_verb, *check, code=1))[-1]
    edit(mine, lambda record: replace(record, environment={}))
    assert "does not say which code ran" in wrong_lines(says(records_verb, *check, code=1))[-1]


def test_a_rerun_finds_swapped_seeds_and_other_scores(board: Path, mine: Path, tmp_path: Path) -> None:
    script, study = intake_script(), load_study(str(board / "two.yaml"))
    again = tmp_path / "again"
    shutil.copytree(mine / "records", again / "records")
    delete(lambda record: record.run.seed == 1)(again)
    script.compare(Archive(mine), Archive(again), study)
    edit(mine, lambda record: replace(record, run=replace(record.run, seed=1 - record.run.seed)))
    with pytest.raises(script.Refused, match="seeds were swapped"):
        script.compare(Archive(mine), Archive(again), study)
