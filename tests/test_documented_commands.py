"""Every command that README and docs show runs as it stands, in a folder that has what its page speaks of.

Words in capitals are what a reader fills in; `FILLED` does that. What takes minutes (training, measuring, the contract,
drawing a network's masks and the report's figures) ends where the work would begin: ``run`` plans, the others meet a
stand-in.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from harness.__main__ import main
from harness.archive.measured import CostStore
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli.verbs import VERBS
from harness.contract.matrix import Capability
from harness.datasets import samples
from harness.models.published import fingerprint
from harness.registry import SEGMENTED, method_config
from tests.datasets import test_polyp
from tests.datasets.test_labels import write_folders
from tests.documented import commands
from tests.harness.planning.tiles import write_tiles
from tests.harness.report.sample import record
from tests.values import REPOSITORY, RESULTS

pytestmark = pytest.mark.slow

FILLED = {
    "NAME": "kvasir",
    "ARCHIVE": "kvasir-seg.zip",
    "FILE": "WEIGHTS",
    "RESULTS": "runs",
    "HASH": "47defd50",
    "ROOT": "results",
    "tiles": "kvasir",
}
FILES = (
    *("WEIGHTS", "lora.safetensors", "mobile_sam.pt", "mobile_sam.safetensors"),
    *("vit_small_patch14_dinov2.safetensors", "sam_vit_h_4b8939.pth", "sam_vit_b_01ec64.pth"),
)
NAMES = (["cost"], ["data"], ["export"], ["metrics"], ["run"], ["VERB"])
"""Not commands but the names of verbs, in a sentence."""
KEPT = ("0208a83a876e42cc", "61bc2f28c31c933a", "cfe326e608c27f75", "6f15b917aa00291f")  # the last of the leaderboard
"""Records of this repository that commands on ``results`` find; `.ci/run` checks the pages of all of them."""
COMMANDS = [*{tuple(words): (where, words) for where, words in commands() if words not in NAMES}.values()]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of: data, weights, archives, predictions, and the records of finished runs."""
    root = tmp_path_factory.mktemp("workspace")
    for name in FILES:
        (root / name).write_text(name)
    for name in SEGMENTED:
        samples.write_samples(name, root / "DATA", images=24, size=32)
    samples.write_samples("kvasir", root / "runs" / "sample-data", images=24, size=32)
    shutil.make_archive(str(root / "kvasir-seg"), "zip", root / "DATA", "Kvasir-SEG")
    for folder in ("DIR", "P", "G", "MASKS", "photos", "truth", "peft_adapter", "results/mymodel", "Kvasir-SEG/masks"):
        (root / folder).mkdir(parents=True)
        level = {"DIR": 255, "P": 2, "results/mymodel": 255}.get(folder, 1)  # predictions: labels, and masks
        Image.fromarray(np.eye(8, dtype=np.uint8) * level).save(root / folder / "a.png")
    for kind in ("images", "masks"):
        for split in ("train", "val", "test"):
            (root / "DIR" / "pets" / split / kind).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(np.eye(8, dtype=np.uint8) * 2 + 1).save(
                    root / "DIR" / "pets" / split / kind / f"{number}.png"
                )
    for name in ("a.jpg", "b.png"):
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(root / name)
    leave_out = shutil.ignore_patterns("records", "tables")
    shutil.copytree(RESULTS, root / "results", ignore=leave_out, dirs_exist_ok=True)
    (root / "results" / "records").mkdir()
    for path in (RESULTS / "records").iterdir():
        if path.name.partition(".")[0] in KEPT:
            shutil.copy(path, root / "results" / "records")
    shutil.copytree(RESULTS / "cost", root / "runs" / "cost")
    for folder in ("runs", "A", "B", "mine"):
        for made in finished(root / "WEIGHTS"):
            RecordStore(root / folder).write(made)
    write_tiles(root / "tiles")
    write_folders(root / "flowers")
    test_polyp.original(root / "POLYPS")
    shutil.copytree(REPOSITORY / "docs" / "examples", root / "docs" / "examples")
    shutil.copy(REPOSITORY / "docs" / "methods.md", root / "docs")
    page = (REPOSITORY / "docs" / "plugins.md").read_text(encoding="utf-8")
    (root / "mine.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    (root / "settings.toml").write_text(
        'data = "DATA"\n[checkpoints]\nvit_h = "sam_vit_h_4b8939.pth"\nvit_b = "sam_vit_b_01ec64.pth"\n'
    )
    return root


def finished(weights: Path) -> Iterator[Record]:
    """Records of the paper's protocol."""
    for method in ("lora", "naslora"):
        for seed in range(3):
            yield record(
                method=method, seed=seed, protocol="nas-lora", backbone="vit_h",
                config=vars(method_config(method, {})), checkpoint=fingerprint(weights),
                scores={"best": {"test": dict.fromkeys(("s_measure", "e_mean", "iou", "dice"), 0.9 + 0.01 * seed)}},
            )  # fmt: skip


def test_commands_are_found() -> None:
    verbs = {words[0] for _, words in COMMANDS if words}
    assert {"run", "status", "tables", "data", "export", "predict", "settings"} <= verbs
    assert verbs <= set(VERBS)


@pytest.mark.parametrize("words", [pytest.param(words, id=f"{where} {words[:2]}") for where, words in COMMANDS])
def test_a_documented_command_runs(
    words: list[str], workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("SAM_PEFT_SETTINGS", str(workspace / "settings.toml"))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    stand_in(monkeypatch)
    key = next(finished(workspace / "WEIGHTS")).key
    if not words:
        assert main([]) == 0
        return
    verb, *arguments = [{**FILLED, "KEY": key}.get(word, word.replace("=/data/", "=")) for word in words]
    if verb == "run" and not {"--plan", "list"} & set(arguments):
        arguments.append("--plan")
    before([verb, *arguments])
    code = import_module(VERBS[verb]).main(arguments)
    shown = capsys.readouterr()
    is_found_wanting = {"check", "--study"} <= set(words)  # ``mine`` has other runs
    assert code == (1 if is_found_wanting else 0), shown.err + shown.out


def before(words: list[str]) -> None:
    """Undo what an earlier command did, where a reader would give each once."""
    if "prepare" in words:
        shutil.rmtree(Path("data" if "--data" in words else "DATA", "Kvasir-SEG"), ignore_errors=True)
    if "--check" in words:
        made = [word for word in words[1:] if word != "--check"]
        import_module(VERBS[words[0]]).main(made)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what takes long or wants real weights; each answers as the real one does."""
    for module in (
        "accept",
        "experiment.adopting",
        "experiment.exporting",
        "experiment.trained",
        "training.checkpoint",
    ):
        import_module(f"harness.{module}")  # imported now, it keeps the real ones of what it names
    trained = SimpleNamespace(run=SimpleNamespace(key="k"), task="binary")
    prediction = SimpleNamespace(images=["a.png"], out=Path("masks"), trained=trained, run=lambda **_: 0)

    for name, stand in {
        "harness.models.build.require_checkpoint": lambda *_: None,
        **dict.fromkeys(
            (f"harness.{name}.published_file" for name in ("models.published", "planning.plan", "planning.understand")),
            lambda *_: Path("WEIGHTS"),
        ),
        "harness.models.checkpoint.read_tensors": lambda *_: None,
        "harness.costing.instruments.used_by_others": lambda *_: "",
        "harness.contract.matrix.examine": lambda name, backbone, **_: Capability(
            method=name, backbone=backbone, passed=True
        ),
        "harness.contract.gpu.require_gpu": lambda: torch.device("cpu"),
        "harness.accept.accept": lambda machine, out, **_: iter([(f"1. {out}: right", True)]),
        "harness.costing.measure.measure": lambda *_, **__: CostStore(RESULTS).sessions()[0][0],
        "harness.experiment.trained.of_results": lambda *_: None,
        "harness.experiment.exporting.export": lambda *_, **__: ("exported", None, None),
        "harness.cli.predict.prediction_of": lambda *_: prediction,
    }.items():
        monkeypatch.setattr(name, stand)
