"""Published weights by a word: where they come from, and one line where there is no network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file
from timm.models import _hub

from harness.archive.schema import Run
from harness.cli import cost, doctor, export, predict
from harness.models.timm_encoder import create_vit
from harness.planning.plan import pretrained
from harness.planning.request import Request
from harness.planning.understand import checkpoint_of
from harness.protocols.load import load_protocol
from harness.settings import Settings
from harness.system.errors import UsageError


def asked(word: str) -> Request:
    return Request(entries=(), benchmarks=(), protocol="demo", checkpoints={"": Path(word)})


def test_a_model_of_timm_is_downloaded_as_timm_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = create_vit("test_vit", 160)

    def download(model: str, file: str) -> str:
        assert (model, file) == ("timm/test_vit.r160_in1k", "model.safetensors")
        save_file(vit.state_dict(), tmp_path / file)
        return str(tmp_path / file)

    monkeypatch.setattr(_hub, "download_from_hf", download)
    checkpoint = pretrained(asked("timm"), "timm/test_vit", load_protocol("demo"))
    assert checkpoint.path == str(tmp_path / "model.safetensors")
    assert checkpoint.fingerprint.startswith("sha256-")


@pytest.mark.parametrize(("backbone", "word", "told"), [
    ("timm/test_vit", "timm", ("model.safetensors", "huggingface.co/timm/test_vit")),
    ("vit_b", "published", ("segment_anything/sam_vit_b_01ec64.pth",)),
    ("mobile_sam", "published", ("weights/mobile_sam.pt",)),
    ("sam2_hiera_base_plus", "published", ("segment_anything_2/092824/sam2.1_hiera_base_plus.pt",)),
    ("mobile_sam", "timm", ("published",)),
    ("tiny", "published", ("--checkpoint FILE",)),
])  # fmt: skip
def test_without_a_network_one_line_names_file_and_address(backbone, word, told, monkeypatch):
    def nothing(*_: object, **__: object) -> str:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(_hub, "download_from_hf", nothing)
    monkeypatch.setattr(_hub, "download_cached_file", nothing)
    with pytest.raises(UsageError) as caught:
        pretrained(asked(word), backbone, load_protocol("demo"))
    assert all(part in str(caught.value) for part in told)
    assert "\n" not in str(caught.value)


def test_the_words_name_the_same_file_for_every_verb_after_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "sam_vit_b_01ec64.pth"
    monkeypatch.setattr(_hub, "download_cached_file", lambda address, **_: str(weights))
    run = Run(
        method="lora", variant="lora", method_config={}, benchmark="kvasir", protocol="demo", protocol_hash="0", rules={},
        backbone="vit_b", checkpoint="sha256-0", seed=0, split_rule="", manifest="",
    )  # fmt: skip
    word, none = Settings(checkpoints={"vit_b": Path("published")}), Settings(checkpoints={"vit_b": Path("none")})
    assert checkpoint_of(run, word) == weights
    assert checkpoint_of(run, Settings(), given=Path("published")) == weights
    assert checkpoint_of(run, word, given=Path("mine.pth")) == Path("mine.pth")
    assert checkpoint_of(run, none) is None
    assert checkpoint_of(replace(run, checkpoint=""), word) is None
    with pytest.raises(UsageError, match="random"):  # nothing is downloaded for it
        checkpoint_of(replace(run, checkpoint=""), word, given=Path("published"))


@pytest.mark.parametrize("verb", [
    lambda: export.main(["--run", "zzz", "--out", "a.pth", "--checkpoint", "published"]),
    lambda: predict.main(["--run", "zzz", "--images", ".", "--out", "a", "--checkpoint", "published"]),
], ids=["export", "predict"])  # fmt: skip
def test_a_word_on_the_command_line_is_not_taken_for_a_missing_file(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert verb() == 2
    assert "zzz" in capsys.readouterr().err  # the run, which is looked up afterwards


@pytest.mark.parametrize("verb", [
    lambda: doctor.main(["--backbone", "vit_b", "--checkpoint", "published"]),
    lambda: cost.main(["--backbone", "vit_b", "--methods", "lora", "--shared", "--checkpoint", "published"]),
], ids=["doctor", "cost"])  # fmt: skip
def test_verbs_of_a_backbone_take_its_published_weights(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_hub, "download_cached_file", lambda address, **_: str(tmp_path / "downloaded.pth"))
    (tmp_path / "downloaded.pth").write_bytes(b"no weights")
    assert verb() == 2
    assert "downloaded.pth" in capsys.readouterr().err  # what came was read
