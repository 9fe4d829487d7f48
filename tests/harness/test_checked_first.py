"""What `harness.run` looks at before anything starts: checkpoints, earlier records, and the data behind them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.archive.files import sealed
from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore
from harness.cli import data
from harness.cli.protocols import main as show_protocol
from harness.datasets.samples import write_samples
from harness.models.checkpoint import checkpoint_paths
from harness.models.original_sam import plain_sam
from harness.report.pages import of_runs
from harness.run import main
from tests.harness.planned import job_of

GRID = ["--protocol", "demo", "--executor", "inline", "--methods", "lora", "--datasets", "kvasir", "--set", "epochs=1"]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return plain_sam("tiny").state_dict()


def _save(state: dict[str, torch.Tensor], path: Path, **how: bool) -> None:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, **how)


TOKEN = "mask_decoder.iou_token.weight"
NO_FLOATS, NOT_FINITE = "holds no floating-point numbers", f"holds NaN or infinite numbers in {TOKEN}"
UNFIT: list[
    tuple[str, Callable[[dict], dict], str]
] = [  # what is no checkpoint at all: tests/harness/models/test_checkpoint.py
    ("a.pth", lambda state: torch.nn.Linear(3, 4).state_dict(), "is not a tiny: missing image_encoder.pos_embed"),
    ("a.safetensors", lambda state: {name: value.long() for name, value in state.items()}, f"pos_embed {NO_FLOATS}"),
    ("a.pth", lambda state: {**state, TOKEN: torch.ones(1, 64).long()}, f"is not a tiny: type {TOKEN} {NO_FLOATS}"),
    ("a.safetensors", lambda state: {**state, TOKEN: torch.eye(64)[:1].log()}, NOT_FINITE),
    ("a.pth", lambda state: {**state, TOKEN: torch.full((1, 64), torch.nan)}, NOT_FINITE),
    ("a.pth", lambda state: {**state, TOKEN: torch.zeros(2, 64)}, f"{TOKEN} is (2, 64), tiny needs (1, 64)"),
]


@pytest.mark.parametrize("words", [[], ["--plan"]], ids=["run", "plan"])
@pytest.mark.parametrize(("name", "change", "message"), UNFIT)
def test_bad_checkpoint_is_one_line_and_nothing_starts(name, change, message, words, state, tmp_path, capsys):
    _save(change(state), tmp_path / name)
    results = tmp_path / "runs"
    assert main([*GRID, "--checkpoint", str(tmp_path / name), "--results", str(results), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: checkpoint {tmp_path / name} ")
    assert message in line
    assert not (results / "records").exists()
    assert not (results / "state").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "old.pth", "lr=1e-4.pth"])
def test_good_checkpoint_plans_under_any_name(name: str, state: dict, samples: Path, tmp_path, capsys) -> None:
    path = tmp_path / name
    _save(state, path, _use_new_zipfile_serialization=name != "old.pth")
    # A card that reads files says so where no checkpoint is given, or one is dropped.
    root = samples / "sample-data" / "kvasir"
    grid = [*GRID, "--set", "data=files", "--dataset-root", f"kvasir={root}", "--results", str(tmp_path), "--plan"]
    for word in (str(path), f"Tiny={path}"):
        assert main([*grid, "--checkpoint", word]) == 0
        assert "nothing is missing" in capsys.readouterr().out


def test_checkpoints_name_backbones_as_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoint_paths(["vit-h=/a=b.pth", "/c.pth"]) == {"vit_h": Path("/a=b.pth"), "": Path("/c.pth")}
    assert main([*GRID, "--checkpoint", "vit_q=/x", "--results", str(tmp_path)]) == 2
    assert "unknown backbone 'vit_q' (did you mean " in capsys.readouterr().err


def _planned(results: Path, *, root: Path | None = None) -> Run:
    return job_of(results, dataset_roots={"kvasir": root} if root else {}, epochs=1).run


def test_damaged_record_is_reported_kept_and_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = RecordStore(tmp_path)
    run = _planned(tmp_path)
    path = store.write(Record(run=run, key=run.key, code="OK"))
    damaged = path.read_text()[:40]
    path.write_text(damaged)
    stranger = store.folder / "0000.json"
    stranger.write_text("{")
    assert main([*GRID, "--results", str(tmp_path), "--plan"]) == 0
    shown = capsys.readouterr()
    assert "1 run, 0 finished" in shown.out
    (line,) = shown.err.splitlines()
    assert line.startswith(f"{path} is not a readable record (truncated or not JSON")
    assert path.read_text() == damaged, "planning moves nothing"

    assert main([*GRID, "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert json.loads(path.read_text())["code"] == "OK"
    assert path.with_name(f"{path.name}.unreadable").read_text() == damaged
    assert f"skipped: {stranger}: truncated or not JSON" in shown.err


def test_second_damaged_record_of_a_run_overwrites_no_first(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    run = _planned(tmp_path)
    record = Record(run=run, key=run.key, code="OK")
    for text in ("first", "second"):
        store.path(run.key).parent.mkdir(exist_ok=True)
        store.path(run.key).write_text(text)
        store.write(record)
    assert sorted(path.read_text() for path in store.folder.glob("*.unreadable*")) == ["first", "second"]
    assert store.read(run.key) == record


def test_changed_data_do_not_get_the_scores_of_the_old(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (write_samples("kvasir", tmp_path / name) for name in ("a", "b"))
    image = sorted(second.rglob("images/*.jpg"))[0]
    image.write_bytes(image.read_bytes() + b"\0")
    results = tmp_path / "runs"
    run, other = _planned(results, root=first), _planned(results, root=second)
    assert (run.key, run.manifest) == (other.key, other.manifest)
    assert run.data_fingerprint != other.data_fingerprint
    path = RecordStore(results).write(Record(run=run, key=run.key, code="OK"))
    for words in ([], ["--plan"]):
        there = [*GRID, "--results", str(results), *words, "--dataset-root"]
        assert main([*there, f"kvasir={second}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(
            f"error: kvasir: its files below {second} differ from those behind the finished record {path}"
        )
        assert "--results" in line
        assert main([*there, f"kvasir={first}"]) == 0
        capsys.readouterr()


def test_records_from_before_the_fingerprint_are_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _planned(tmp_path)
    path = RecordStore(tmp_path).write(Record(run=run, key=run.key, code="OK"))
    content = json.loads(path.read_text())
    del content["run"]["data_fingerprint"]
    path.write_bytes(sealed(content))
    assert main([*GRID, "--results", str(tmp_path), "--plan"]) == 0
    assert "1 run, 1 finished" in capsys.readouterr().out


def test_a_table_says_of_the_data_what_the_record_says(tmp_path: Path) -> None:
    run = _planned(tmp_path)
    record = Record(run=replace(run, data_note="352 px copy", split_rule="official"), key=run.key, code="OK")
    (shown,) = of_runs([record], [replace(run, variant="mine", data_note="", split_rule="carved")])
    assert (shown.run.variant, shown.run.data_note, shown.run.split_rule) == ("mine", "352 px copy", "official")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no mapping of fields"),
        (b"- 1\n- 2\n", "is no mapping of fields"),
        (b"_base_: ./list.yaml\nepochs: 2\n", "is no mapping of fields"),
    ],
)
def test_unusable_protocol_card_is_one_line(content: bytes, message: str, tmp_path, capsys) -> None:
    card = tmp_path / "card.yaml"
    card.write_bytes(content)
    (tmp_path / "list.yaml").write_text("- 1\n")
    grid = ["--methods", "lora", "--datasets", "kvasir", "--results", str(tmp_path), "--plan"]
    for verb, words in ((show_protocol, ["show", str(card)]), (main, [*grid, "--protocol", str(card)])):
        assert verb(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        named = tmp_path / "list.yaml" if b"list" in content else card
        assert line.startswith(f"error: protocol {named}: ")
        assert message in line


NEAR_MISSES = [
    (["--datasets", "/data/tiles"], "tiles=/data/tiles"),
    (["--datasets", "kvasir", "--set", "rank=6"], "lora.rank=6"),
    (["--datasets", "kvasir", "--backbone", "dinov2"], "timm/vit_small_patch14_dinov2"),
    (["--datasets", "kvasir", "--protocol", "standard", "--backbone", "vit_b", "--checkpoint", "."], ". is a folder"),
    (["--datasets", "kvasir", "--protocol", "mini", "--checkpoint", "none", "--data", "a.txt"], "a.txt is a file"),
]


@pytest.mark.parametrize(("words", "said"), NEAR_MISSES, ids=[said for _, said in NEAR_MISSES])
def test_a_near_miss_is_told_what_to_write(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAM_PEFT_SETTINGS", "none")
    (tmp_path / "a.txt").write_text("")
    assert main(["--methods", "lora", "--plan", *words]) in (1, 2)
    shown = capsys.readouterr()
    assert said in shown.out + shown.err


@pytest.mark.parametrize("more", [[], ["--data", "."]])  # which holds benchmarks, not this one
def test_data_of_ones_own_is_checked_by_name_and_folder(more, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(write_samples("kvasir", tmp_path, images=12, size=48))
    assert data.main(["check", "human", *more]) == 2
    assert "human=DIR" in capsys.readouterr().err
