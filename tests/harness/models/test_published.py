"""Published weights by a word: where they come from, and one line where there is no network."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file
from timm.models import _hub

from harness.models.timm_encoder import create_vit
from harness.planning.plan import pretrained
from harness.planning.request import Request
from harness.protocols.load import load_protocol
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
    found = pretrained(asked("timm"), "timm/test_vit", load_protocol("demo"))
    assert found.path == str(tmp_path / "model.safetensors")
    assert found.fingerprint.startswith("sha256-")


@pytest.mark.parametrize(("backbone", "word", "told"), [
    ("timm/test_vit", "timm", ("model.safetensors", "huggingface.co/timm/test_vit")),
    ("vit_b", "published", ("segment_anything/sam_vit_b_01ec64.pth",)),
    ("mobile_sam", "published", ("weights/mobile_sam.pt",)),
    ("sam2_hiera_base_plus", "published", ("segment_anything_2/092824/sam2.1_hiera_base_plus.pt",)),
    ("mobile_sam", "timm", ("published",)),
    ("tiny", "published", ("--checkpoint FILE",)),
])  # fmt: skip
def test_without_a_network_one_line_names_file_and_address(
    backbone: str, word: str, told: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: object, **__: object) -> str:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(_hub, "download_from_hf", nothing)
    monkeypatch.setattr(_hub, "download_cached_file", nothing)
    with pytest.raises(UsageError) as caught:
        pretrained(asked(word), backbone, load_protocol("demo"))
    assert all(part in str(caught.value) for part in told)
    assert "\n" not in str(caught.value)
