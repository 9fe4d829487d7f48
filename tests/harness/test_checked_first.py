"""What `harness.run` checks before anything starts: checkpoints, earlier records, their data, and YAML files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore
from harness.comparison.papers import Papers
from harness.datasets.samples import write_samples
from harness.dispatch.target import load_profile
from harness.models.original_sam import plain_sam
from harness.protocols.load import load_protocol
from harness.run import main
from harness.studies import load_study
from harness.system.errors import UsageError
from harness.system.yaml_files import read_yaml
from tests.harness.planned import job_of
from tests.values import REPOSITORY, RESULTS

ROOT = ["--protocol", "demo", "--executor", "inline", "--methods", "lora", "--set", "epochs=1", "--datasets"]
GRID = [*ROOT, "kvasir"]


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


@pytest.mark.parametrize(("name", "change", "message"), UNFIT)
def test_bad_checkpoint_is_one_line_and_nothing_starts(name, change, message, state, tmp_path, says):
    _save(change(state), tmp_path / name)
    results = tmp_path / "runs"
    line = says(main, *GRID, "--checkpoint", tmp_path / name, "--results", results, code=2)
    assert line.startswith(f"error: checkpoint {tmp_path / name} ")
    assert message in line
    assert not (results / "records").exists()
    assert not (results / "state").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "old.pth", "lr=1e-4.pth"])
def test_good_checkpoint_plans_under_any_name(name: str, state: dict, samples: Path, tmp_path, says) -> None:
    path = tmp_path / name
    _save(state, path, _use_new_zipfile_serialization=name != "old.pth")
    # A protocol that reads files says so where no checkpoint is given, or one is dropped.
    root = samples / "sample-data" / "kvasir"
    grid = [*ROOT, f"kvasir={root}", "--set", "data=files", "--results", str(tmp_path), "--plan"]
    for word in (str(path), f"Tiny={path}"):
        assert "nothing is missing" in says(main, *grid, "--checkpoint", word)


def _planned(results: Path, *, root: Path | None = None) -> Run:
    return job_of(results, dataset_roots={"kvasir": root} if root else {}, epochs=1).run


def test_damaged_record_is_reported_kept_and_remade(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_changed_data_do_not_get_the_scores_of_the_old(tmp_path: Path, says: Callable[..., str]) -> None:
    first, second = (write_samples("kvasir", tmp_path / name) for name in ("a", "b"))
    image = sorted(second.rglob("images/*.jpg"))[0]
    image.write_bytes(image.read_bytes() + b"\0")
    results = tmp_path / "runs"
    run, other = _planned(results, root=first), _planned(results, root=second)
    assert (run.key, run.manifest) == (other.key, other.manifest)
    assert run.data_fingerprint != other.data_fingerprint
    path = RecordStore(results).write(Record(run=run, key=run.key, code="OK"))
    for words in ([], ["--plan"]):
        there = ["--results", str(results), *words, *ROOT]
        line = says(main, *there, f"kvasir={second}", code=2)
        assert line.startswith(f"error: kvasir: the files below {second} differ from those of finished records")
        assert str(path) in line
        assert "--results" in line
        assert main([*there, f"kvasir={first}"]) == 0


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + below] * 10)}]\n" for below, name in zip("abcdefg", "bcdefgh", strict=True)
)
HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "python tag": ("epochs: !!python/object/apply:os.system ['touch executed']\n", "line 1: the tag"),
    "harmless tag": ("epochs: !!int '3'\n", "line 1: the tag"),
    "alias bomb": (BOMB, "more than 20000 values, aliases expanded"),
    "endless alias": ("a: &a [*a]\n", "*a is part of itself"),
    "brackets": ("a: " + "[" * 50, "more than 20 levels of nesting"),
    "brackets without end": ("a: " + "[" * 50_000, "nesting"),
    "key twice": ("quirks:\n  lr: 2\n  lr: 3\n", "line 3: the key 'lr' occurs twice"),
    "template": ("backbone: '{{$ENV:SECRET:none}}'\n", "line 1: a template"),
    "bare template": ("epochs: {{$ENV:SECRET:3}}\n", "line 1: a key that is not text"),
    "longer number": (f"epochs: {'9' * 5000}\n", "beyond 64 bits"),
    "octal number": ("epochs: 010\n", "line 1: 010, which YAML reads as another number"),
    "number in base 60": ("epochs: 1:30\n", "line 1: 1:30, which YAML"),
    "broken number in base 60": ("epochs: -1:30.5\n", "line 1: -1:30.5, which YAML"),
    "longest number": (f"epochs: 0x{'f' * 5000}\n", "beyond 64 bits"),
    "not UTF-8": (b"epochs: 3 # caf\xe9\n", "is not UTF-8 text"),
    "not YAML": ("a: [1, 2\n", "expected ',' or ']'"),
    "escape character": ("a: \x1b[2J\n", "characters are not allowed"),
    "two documents": ("a: 1\n---\nb: 2\n", "expected a single document"),
    "huge": ("# " + "x" * 300_000, "more than 200000 bytes"),
}
READERS: dict[str, Callable[[Path], object]] = {
    "protocol": lambda path: load_protocol(str(path)),
    "study": lambda path: load_study(str(path)),
    "profile": lambda path: load_profile(str(path)),
    "claims": lambda path: Papers.read(claims=path),
}


@pytest.mark.parametrize(
    ("case", "reader"),
    [(case, reader) for case in HOSTILE for reader in READERS if not (reader == "profile" and "number" in case)],
)  # a profile's values are text, whatever they look like
def test_hostile_yaml_is_one_line(case: str, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[case]
    path = tmp_path / "mine.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError) as caught:
        READERS[reader](path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert os.listdir(tmp_path) == ["mine.yaml"]


@pytest.mark.parametrize(
    "path",
    sorted([*REPOSITORY.glob("harness/*/*.yaml"), *REPOSITORY.glob("slurm/profiles/*.yaml"), RESULTS / "claims.yaml"]),
    ids=str,
)
def test_committed_files_hold_what_plain_yaml_says(path: Path) -> None:
    as_text = "profiles" in path.parts
    plain = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader if as_text else yaml.SafeLoader)
    assert read_yaml(path, what="file", values_as_text=as_text) == plain
