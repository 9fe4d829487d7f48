"""A record is read only if its types, ranges, names, key and seal are right; a wrong one is one line in every verb."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.archive import schema
from harness.archive.files import sealed
from harness.archive.schema import Run
from harness.archive.store import RecordStore
from harness.cli import status, tables
from harness.cli.records import main as records
from harness.evaluation import conventions as names
from harness.evaluation.scorer import SplitScorer
from tests.harness.report.sample import record
from tests.values import there

Change = Callable[[dict[str, Any]], object]


def changed(tmp_path: Path, change: Change, *, forged: bool = True) -> Path:
    """A folder with a good record and one that was changed; ``forged``: its key and its seal fit, as a forger's would."""
    store = RecordStore(tmp_path)
    store.write(record(seed=1))
    path = store.write(record(seed=0))
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    if not forged:
        path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return path
    known = {name: value for name, value in content["run"].items() if name in Run.__dataclass_fields__}
    with contextlib.suppress(TypeError, AttributeError):  # a field is missing or no mapping
        content["key"] = Run(**known).key
    path.unlink()
    path = path.with_name(f"{content['key']}.json")
    path.write_bytes(sealed(content))
    return path


FORGED: dict[str, tuple[Change, str]] = {
    "a score over 1": (lambda c: c["scores"]["best"]["test"].update(s_measure=91.2), "not between 0 and 1"),
    "a score below 0": (lambda c: c["scores"]["best"]["test"].update(mae=-0.1), "not between 0 and 1"),
    "a score that is not a number": (lambda c: c["scores"]["best"]["test"].update(iou=float("nan")), "not between"),
    "an E-measure over its bound": (lambda c: c["scores"]["best"]["test"].update(e_max=1.2), "not between 0 and 1.1"),
    "a score in words": (lambda c: c["scores"]["best"]["test"].update(iou="0.9"), "scores.best.test.iou: must be"),
    "a split that is a number": (lambda c: c["scores"].update(best={"test": 0.5}), "scores.best.test"),
    "a failed run with scores": (lambda c: c.update(code="OOM"), "ended with OOM"),
    "an earlier schema": (lambda c: c.update(schema_version=1), "reads 2 to 3"),
    "a later schema": (lambda c: c.update(schema_version=99), "schema_version 99"),
    "an unknown code": (lambda c: c.update(code="GREAT"), "code: must be 'OK'"),
    "a protocol that is a path": (lambda c: c["run"].update(protocol="../../NOTES"), "'../../NOTES' is not a name"),
    "a benchmark that is a path": (lambda c: c["run"].update(benchmark="/etc/x"), "is not a name"),
    "a method with an escape": (lambda c: c["run"].update(method="lo\x1b[31mra"), "is not a name"),
    "a backbone with an escape": (lambda c: c["run"].update(backbone="vit\x1b[31m"), "cannot be printed"),
    "a split that is a path": (lambda c: c["scores"]["best"].update({"../x": {}}), "is not a name"),
    "a seed of 30 digits": (lambda c: c["run"].update(seed=10**30), "seed"),
    "a yes for a seed": (lambda c: c["run"].update(seed=True), "run.seed: must be a valid integer"),
    "a rule of another type": (lambda c: c["run"]["rules"].update(quirks=[1]), "run.rules.quirks: must be a mapping"),
    "a size of 0": (lambda c: c["run"]["rules"].update(image_size=0), "run.rules.image_size: must be greater"),
    "a field of the run that is unknown": (lambda c: c["run"].update(more=1), "run.more"),
    "a field that is missing": (lambda c: c["run"].pop("manifest"), "run.manifest: is missing"),
    "an epoch's updates in a list": (lambda c: c.update(history=[{"epoch": 1, "updates": []}]), "0.updates: must be"),
    "a choice without its trials": (lambda c: c["run"].update(tuning={"chosen": {"lr": 1}}), "edge, grid, hours"),
    "a trial without a score": (lambda c: c["run"].update(tuning={"trials": [{"options": {}}]}), "trials.0.score: is"),
    "an epoch without its number": (lambda c: c.update(history=[{"loss": 1.0}]), "history.0.epoch: is missing"),
    "a count of 400 digits": (lambda c: c["parameters"].update(encoder=10**400), "parameters.encoder"),
    "a cost beyond all range": (lambda c: c["cost"].update(wall_time_s=1e308), "cost.wall_time_s"),
    "a trial whose runs are a number": (
        lambda c: c["run"].update(tuning={"trials": [{"options": {}, "score": None, "keys": 5}]}),
        "trials.0.keys: must",
    ),
    "trials' seeds that are a number": (lambda c: c["run"].update(tuning={"seeds": 5}), "run.tuning.seeds: must be"),
    "a decoder that is a list": (lambda c: c["run"]["rules"].update(decoder=[]), "run.rules.decoder: must be"),
    "a negative count": (lambda c: c["counts"].update(test=-1), "counts"),
    "a cost without end": (lambda c: c["cost"].update(step_time_s=float("inf")), "cost"),
    "no attempt": (lambda c: c.update(attempts=0), "attempts: must be greater"),
    "parameters without the trainable": (lambda c: c["parameters"].pop("trainable"), "trainable is missing"),
}
EDITED: dict[str, tuple[Change, str]] = {
    "a score": (lambda c: c["scores"]["best"]["test"].update(s_measure=0.95), "seal"),
    "a protocol hash": (lambda c: c["run"].update(protocol_hash="bbbb0000bbbb0000"), "seal"),
    "a step time": (lambda c: c["cost"].update(step_time_s=0.1), "seal"),
    "a rule": (lambda c: c["run"]["rules"].update(image_size=1024), "hash of its run"),
}


@pytest.mark.parametrize(("case", "forged"), [*((case, True) for case in FORGED), *((case, False) for case in EDITED)])
def test_a_bad_record_is_refused_with_the_reason(tmp_path: Path, case: str, forged: bool) -> None:
    change, reason = (FORGED if forged else EDITED)[case]
    path = changed(tmp_path, change, forged=forged)
    (problem,) = RecordStore(tmp_path).summaries()[1].items()
    assert problem[0] == path
    assert reason in problem[1]
    assert problem[1].isprintable()
    assert [read.run.seed for read in RecordStore(tmp_path)] == [1]


@pytest.mark.parametrize(
    ("case", "forged"), [("a score over 1", True), ("a method with an escape", True), ("a score", False)]
)
def test_a_bad_record_is_one_line_in_every_verb_and_no_number(tmp_path, says, case: str, forged: bool) -> None:
    change, reason = (FORGED if forged else EDITED)[case]
    path, root = changed(tmp_path, change, forged=forged), tmp_path
    for verb, words, code in (
        (tables.main, ["--results", root], 0),
        (status.main, ["--results", root], 0),
        (status.main, ["--results", root, "--failed"], 0),
        (status.main, ["--results", root, "--json"], 0),
        (records, ["check", root], 1),
        (records, ["merge", root, tmp_path.with_name("merged")], 1),
    ):
        shown = says(verb, *words, "--debug", code=code)
        (line,) = (line for line in shown.splitlines() if path.name in line)
        assert reason in line
        assert "\x1b" not in shown
    assert "1 run: 1 finished" in says(status.main, "--results", root)
    assert [read.run.seed for read in RecordStore(tmp_path.with_name("merged"))] == [1]
    table = (tmp_path / "tables" / "demo.md").read_text(encoding="utf-8")
    assert "91.2" not in table
    assert "90.0" in table  # the good record's


def test_a_fifo_a_folder_a_device_and_a_huge_file_are_named_and_not_waited_for(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.write(record())
    os.mkfifo(store.folder / "a.json")
    (store.folder / "b.json").mkdir()
    (store.folder / "c.json").symlink_to("/dev/zero")
    (store.folder / "d.json").symlink_to("nowhere")
    with (store.folder / "e.json").open("wb") as file:
        file.truncate(65 << 20)
    records, problems = store.summaries()
    assert len(records) == 1
    assert {path.name: reason for path, reason in problems.items()} == {
        **dict.fromkeys(("a.json", "b.json"), "not a regular file"),
        **dict.fromkeys(("c.json", "d.json"), "a link, which is not followed"),
        "e.json": "larger than 64 MiB",
    }


def test_what_a_terminal_would_obey_is_spelt_out_where_it_is_read(tmp_path: Path) -> None:
    evil = "\x1b]0;title\x07 \x9b31m \u202e \r\n x"
    good = record(split_rule=evil, data_note=evil, label=f"lora{evil}", environment={"host": evil, "commit": "0"})
    failed = record(code="ERROR", message=evil, seed=1, changed={"blocks": evil})
    store = RecordStore(tmp_path)
    for each in (good, failed):
        store.write(each)
    for each in store:
        texts = [each.message, each.run.label, each.run.data_note, each.run.split_rule, *each.environment.values()]
        assert all(text.isprintable() for text in (*texts, *map(str, each.run.changed.values())))
    assert there(store.read(good.key)).run.label == r"lora\x1b]0;title\x07 \x9b31m \u202e \x0d\n x"
    records = RecordStore(tmp_path).summaries()[0]
    assert {each.key for each in records} == {good.key, failed.key}
    ascii_alone = record(label="lora\x1b", seed=2)
    store.write(ascii_alone)
    assert there(store.read(ascii_alone.key)).run.label == r"lora\x1b"


def test_a_perfect_score_is_in_the_range_of_its_metric() -> None:
    image = np.zeros((4, 4))
    image[:2] = 1
    scorer = SplitScorer(names.E_MEASURES)
    scorer.insert("a", scorer.measure(image, image.astype(np.uint8)))
    assert scorer.summary()["e_max"] == pytest.approx(16 / 15)
    assert schema.largest("e_max") > 16 / 15
