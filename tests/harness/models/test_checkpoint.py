"""Loading backbones: strict, safe, at other sizes, by the word of published weights; one line for every kind of bad file. A checkpoint is
known by every byte, and read once."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from timm.models import _hub

from harness.models.build import build_segmenter, seeded
from harness.models.original_sam import plain_sam, sam_state_dict
from harness.models.published import fingerprint
from harness.models.sam_encoder import resize_positions
from harness.models.timm_encoder import create_vit
from harness.planning.plan import pretrained
from harness.planning.request import Request
from harness.planning.understand import checkpoint_of
from harness.protocols.load import load_protocol
from harness.settings import Settings
from harness.system import hashes
from harness.system.errors import UsageError
from tests.harness.report.sample import record


@pytest.fixture(scope="module")
def sam_state() -> dict[str, torch.Tensor]:
    with seeded(11):
        sam = plain_sam("tiny")
        for name, parameter in sam.named_parameters():
            if "pos" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    return sam.state_dict()


@pytest.fixture
def sam_file(tmp_path: Path, sam_state: dict[str, torch.Tensor]) -> Path:
    path = tmp_path / "sam_vit_t.pth"
    torch.save(sam_state, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_sam_checkpoint_loads_strictly_and_saves_back(tmp_path: Path, sam_state: dict, suffix: str) -> None:
    path = tmp_path / f"sam{suffix}"
    if suffix == ".pth":
        torch.save(sam_state, path)
    else:
        save_file(sam_state, path)
    first = build_segmenter("tiny", task="binary", checkpoint=path, head_seed=1)
    second = build_segmenter("tiny", task="binary", checkpoint=path, head_seed=2)
    exported = sam_state_dict(first)
    assert exported.keys() == sam_state.keys()
    assert all(torch.equal(exported[key], sam_state[key]) for key in sam_state)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    plain_sam("tiny").load_state_dict(exported, strict=True)


def test_an_export_of_vit_b_loads_into_the_registry() -> None:
    with torch.device("meta"):
        state = sam_state_dict(build_segmenter("vit_b", task="binary"))
        sam_model_registry["vit_b"]().load_state_dict(state, strict=True, assign=True)


def test_another_image_size_refits_the_position_tables_only(sam_file: Path, sam_state: dict) -> None:
    segmenter = build_segmenter("tiny", task="binary", checkpoint=sam_file, image_size=192)
    state = sam_state_dict(segmenter)
    changed = {key for key in sam_state if sam_state[key].shape != state[key].shape}
    assert changed == {"image_encoder.pos_embed"} | {
        f"image_encoder.blocks.{index}.attn.rel_pos_{axis}" for index in (1, 3) for axis in "hw"
    }
    assert all(torch.equal(state[key], sam_state[key]) for key in sam_state.keys() - changed)
    # segment_anything interpolates relative positions on each call; refitting them once must give the same output.
    at_home = build_segmenter("tiny", task="binary", checkpoint=sam_file)
    images = torch.randn(1, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(segmenter(images).masks, at_home(images).masks, atol=1e-5, rtol=1e-4)


def test_a_smaller_table_of_positions_takes_from_every_position() -> None:
    table = torch.zeros(1, 32, 32, 1, requires_grad=True)
    resize_positions(table, 4, 4).sum().backward()
    assert table.grad is not None
    assert (table.grad > 0).all()


class _Code:
    def __reduce__(self) -> tuple:
        return (print, ("this must not run",))


def _cut(save: Callable[[Path, dict], object]) -> Callable[[Path, dict], object]:
    def write(path: Path, state: dict) -> None:
        save(path, state)
        os.truncate(path, path.stat().st_size - 5000)

    return write


def _pack(path: Path) -> None:
    """A packed archive of zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(64 << 20))


def _quantised() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.pth", lambda path, state: None, "does not exist"),
        ("a.pth", _cut(lambda path, state: torch.save(state, path)), "truncated or damaged"),
        ("a.safetensors", _cut(lambda path, state: save_file(state, path)), "truncated or damaged"),
        ("a.pth", lambda path, state: path.write_bytes(b""), "truncated or damaged"),
        ("a.pth", lambda path, state: path.write_text("sam_vit_h_4b8939"), "truncated or damaged"),
        ("a.pth", lambda path, state: path.write_text("<html>not found</html>"), "damaged"),
        ("a.onnx", lambda path, state: path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.1.0"), "damaged"),
        (
            "a.safetensors",
            lambda path, state: save_file({k: v.char() for k, v in state.items()}, path),
            "no floating-point",
        ),
        ("a.pth", lambda path, state: torch.save({**state, "extra": _Code()}, path), "may hold code"),
        ("a.pth", lambda path, state: path.write_bytes(pickle.dumps(_Code())), "may hold code"),
        ("a.pth", lambda path, state: torch.save([1, 2], path), "dictionary of plain tensors"),
        ("a.pth", lambda path, state: torch.save({}, path), "dictionary of plain tensors"),
        ("a.pth", lambda path, state: torch.save({**state, "q": _quantised()}, path), "not quantised"),
        ("a.pth", lambda path, state: torch.save({**state, "q": torch.eye(2).to_sparse()}, path), "plain tensors"),
        ("a.pth", lambda path, state: torch.save({**state, "q": torch.ones(2, device="meta")}, path), "plain tensors"),
        (
            "a.pth",
            lambda path, state: torch.save({**state, "q": torch.ones(1).expand(9**9, 9**6)}, path),
            "plain tensors",
        ),
        ("a.pth", lambda path, state: _pack(path), "unpacks to 64 MiB"),
        ("a.pth", lambda path, state: torch.save({0: torch.ones(2)}, path), "plain tensors"),
    ],
)
def test_bad_files_get_one_line(tmp_path, sam_state: dict, capsys, name: str, write, message: str) -> None:
    path = tmp_path / name
    write(path, sam_state)
    with pytest.raises(UsageError, match=message) as caught:
        build_segmenter("tiny", task="binary", checkpoint=path)
    assert "\n" not in str(caught.value)
    assert "this must not run" not in capsys.readouterr().out


def test_a_wrong_architecture_names_the_first_keys(tmp_path: Path, sam_file: Path, sam_state: dict) -> None:
    with pytest.raises(UsageError, match=r"not a vit_b: missing image_encoder\.blocks\.4\.\S+, .*shape .*pos_embed is"):
        build_segmenter("vit_b", task="binary", checkpoint=sam_file)
    with pytest.raises(UsageError, match="not a tiny_timm: missing cls_token"):
        build_segmenter("tiny_timm", task="binary", checkpoint=sam_file)
    broken = tmp_path / "broken.pth"
    torch.save(
        {key: value for key, value in sam_state.items() if "no_mask_embed" not in key} | {"new": torch.zeros(1)}, broken
    )
    with pytest.raises(UsageError, match=r"missing prompt_encoder\.no_mask_embed\.weight; unexpected new"):
        build_segmenter("tiny", task="binary", checkpoint=broken)


def test_timm_weights_load_at_another_size_and_leave_the_head_to_its_seed(tmp_path: Path) -> None:
    vit = create_vit("test_vit", 160)
    path = tmp_path / "vit.safetensors"
    save_file({**vit.state_dict(), "head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}, path)
    segmenter = build_segmenter("tiny_timm", task="binary", checkpoint=path, image_size=96, head_seed=4)
    state = segmenter.encoder.state_dict()
    assert state["pos_embed"].shape == (1, 37, 64)
    assert torch.equal(state["blocks.5.mlp.fc2.weight"], vit.state_dict()["blocks.5.mlp.fc2.weight"])
    for key, value in build_segmenter("tiny_timm", task="binary", image_size=96, head_seed=4).state_dict().items():
        if key.startswith(("mask_decoder", "prompt_encoder", "neck")):
            assert torch.equal(value, segmenter.state_dict()[key]), key


def request_for(word: str) -> Request:
    return Request(rows=(), benchmarks=(), protocol=load_protocol("demo"), checkpoints={"": Path(word)})


def test_a_model_of_timm_is_downloaded_as_timm_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = create_vit("test_vit", 160)

    def download(model: str, file: str) -> str:
        assert (model, file) == ("timm/test_vit.r160_in1k", "model.safetensors")
        save_file(vit.state_dict(), tmp_path / file)
        return str(tmp_path / file)

    monkeypatch.setattr(_hub, "download_from_hf", download)
    checkpoint = pretrained(request_for("published"), "timm/test_vit")
    assert checkpoint.path == str(tmp_path / "model.safetensors")
    assert checkpoint.fingerprint.startswith("sha256-")


@pytest.mark.parametrize(("backbone", "word", "reported"), [
    ("timm/test_vit", "published", ("model.safetensors", "huggingface.co/timm/test_vit")),
    ("vit_b", "published", ("segment_anything/sam_vit_b_01ec64.pth",)),
    ("mobile_sam", "published", ("weights/mobile_sam.pt",)),
    ("sam2_hiera_base_plus", "published", ("segment_anything_2/092824/sam2.1_hiera_base_plus.pt",)),
    ("tiny", "published", ("--checkpoint FILE",)),
])  # fmt: skip
def test_without_a_network_a_plan_says_in_one_line_which_file_of_which_address_is_missing(
    backbone, word, reported, monkeypatch
):
    def nothing(*_: object, **__: object) -> str:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(_hub, "download_from_hf", nothing)
    monkeypatch.setattr(_hub, "download_cached_file", nothing)
    missing = pretrained(request_for(word), backbone).missing
    assert all(part in missing for part in reported)
    assert "\n" not in missing


def test_the_words_name_the_same_file_for_every_verb_after_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "sam_vit_b_01ec64.pth"
    monkeypatch.setattr(_hub, "download_cached_file", lambda address, **_: str(weights))
    run = replace(record(backbone="vit_b").run, checkpoint="sha256-0")
    word = Settings(checkpoints={"vit_b": Path("published")})
    assert checkpoint_of(run, word) == weights
    assert checkpoint_of(run, Settings(), given=Path("published")) == weights
    assert checkpoint_of(replace(run, checkpoint=""), word) is None


SIZE = 3 << 20


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the files that were read as a whole; the cache is empty, and what changed a moment ago is settled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_SETTLED_S", -3600.0)
    read: list[str] = []
    digest = hashlib.file_digest

    def counted(file, name):
        read.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return read


def write(path: Path, *, changed: int | None = None, size: int = SIZE) -> Path:
    content = bytearray(size)
    if changed is not None:
        content[changed] = 1
    path.write_bytes(content)
    return path


def test_every_byte_counts_for_the_fingerprint(reads: list[str], tmp_path: Path) -> None:
    files = [write(tmp_path / f"{position}", changed=position) for position in (None, 0, SIZE // 2, SIZE - 1)]
    files.append(write(tmp_path / "longer", size=SIZE + 1))
    assert len({fingerprint(path) for path in files}) == 5
    assert fingerprint(files[0]) == "sha256-" + hashlib.sha256(bytes(SIZE)).hexdigest()


def test_a_file_is_read_once_until_it_changes(reads: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "file")
    first = fingerprint(path)
    assert [fingerprint(path), *reads] == [first, "file"]
    status = path.stat()
    with path.open("r+b") as file:  # same inode and size, and the time of change set back
        file.seek(SIZE // 2)
        file.write(b"\1")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert fingerprint(path) != first
    os.replace(write(tmp_path / "other"), path)
    assert fingerprint(path) == first
    assert reads == ["file"] * 3
