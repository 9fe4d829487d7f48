"""Files of weights: identified by a hash of every byte; the published ones are named by one word, ``--checkpoint published``.

Those are downloaded once by timm's own downloader, with its progress bar, into the cache folders that timm and torch use anyway.
Also names on the Hugging Face Hub: of published SAMs, and of their tensors in transformers' ``SamModel`` and in PEFT's adapters of it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from harness.models.catalog import backbone, resolve_backbone
from harness.system.errors import UsageError
from harness.system.hashes import file_hashes
from harness.system.streams import say

PUBLISHED = "published"
"""The word that stands for the path of the published weights."""

_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"
_SAM2 = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_"
ADDRESSES = {
    "vit_b": f"{_SAM}sam_vit_b_01ec64.pth",
    "vit_l": f"{_SAM}sam_vit_l_0b3195.pth",
    "vit_h": f"{_SAM}sam_vit_h_4b8939.pth",
    "mobile_sam": "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
    **{f"sam2_hiera_{size}": f"{_SAM2}{size}.pt" for size in ("tiny", "small", "base_plus", "large")},
}
"""Weights of backbones that are not timm's, as their authors publish them."""

GATED = {"sam3": "https://huggingface.co/facebook/sam3"}
"""Backbones whose weights can only be downloaded with an account there."""


def fingerprint(path: Path) -> str:
    """``sha256-`` and 64 hex digits of the whole file, the same in every folder. The file is read once (`file_hashes`).

    Raises:
        UsageError: it cannot be read, is not a file, or changes while it is read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"checkpoint {path} is not a file; give the path of a .pth or .safetensors file")
        return "sha256-" + file_hashes([path], what=str(path))[path]
    except OSError as error:
        reason = error.strerror
        raise UsageError(f"checkpoint {path} cannot be read ({reason}); give the path of a readable file") from error


def is_word(path: Path) -> bool:
    """Whether a path is the word `PUBLISHED` and no file of that name exists."""
    return str(path) == PUBLISHED and not path.exists()


def checkpoint_paths(items: Iterable[str]) -> dict[str, Path]:
    """``["vit_h=FILE"]`` as ``{"vit_h": FILE}``; without a backbone the key is "", and a file that exists is never split at
    its ``=``. Raises UsageError: the part before ``=`` is not a backbone."""
    paths: dict[str, Path] = {}
    for item in items:
        name, equals, file = item.partition("=")
        if not equals or Path(item).exists():
            paths[""] = Path(item)
            continue
        try:
            paths[resolve_backbone(name)] = Path(file)
        except UsageError as error:
            raise UsageError(f"--checkpoint {item}: no such file, and {error}") from error
    return paths


def require_checkpoint_file(path: Path | None) -> None:
    """Refuse a path that is not a file, before torch is loaded to read it. Raises UsageError."""
    if path is not None and not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(
            f"checkpoint {path} {what}; give the path of a .pth or .safetensors file, or --checkpoint published for the authors' weights"
        )


def weights_file(path: Path, name: str) -> Path:
    """The file that a path or the word means for a backbone. Raises UsageError: there is none, or as `published_file` does."""
    if is_word(path):
        return published_file(name)
    require_checkpoint_file(path)
    return path


def published_file(name: str) -> Path:
    """The file of a backbone's published weights, downloaded if it is not cached yet. Raises UsageError: none are known, or they
    cannot be downloaded; the message names file and address."""
    entry = backbone(name)
    from timm.models import _hub, get_pretrained_cfg

    source = get_pretrained_cfg(entry.timm_model, allow_unregistered=True) if entry.timm_model else None
    hub = source.hf_hub_id if source is not None else ""
    address: Any = source.url if source is not None else ADDRESSES.get(name)
    file = (source and source.hf_hub_filename) or _hub.HF_SAFE_WEIGHTS_NAME
    where = f"{file} of https://huggingface.co/{hub}" if hub else str(address)
    if name in GATED:
        raise UsageError(
            f"the weights of {name} are only for those who accept their licence at {GATED[name]}; download model.safetensors there "
            "and give it with --checkpoint FILE"
        )
    if not hub and address is None:
        raise UsageError(f"there are no published weights for {name}; give a file with --checkpoint FILE")
    say(f"published weights of {name}: {where} (downloaded once)")
    try:
        if hub:
            return Path(_hub.download_from_hf(hub, file))
        return Path(_hub.download_cached_file(address, check_hash=False, progress=True))
    except Exception as error:  # every library underneath raises its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise UsageError(
            f"{where} cannot be downloaded ({reason}); download it where there is a network and give it with --checkpoint FILE"
        ) from error


MODELS = {
    "vit_b": "facebook/sam-vit-base",
    "vit_l": "facebook/sam-vit-large",
    "vit_h": "facebook/sam-vit-huge",
    "sam2_hiera_tiny": "facebook/sam2.1-hiera-tiny",
    "sam2_hiera_small": "facebook/sam2.1-hiera-small",
    "sam2_hiera_base_plus": "facebook/sam2.1-hiera-base-plus",
    "sam2_hiera_large": "facebook/sam2.1-hiera-large",
    "sam3": "facebook/sam3",
}
"""Backbone -> its repository on the Hub. MobileSAM has none by its authors, and a timm model has one per set of weights."""
LICENCES = dict.fromkeys((*MODELS, "mobile_sam"), "apache-2.0") | {"sam3": "other"}
"""Backbone -> licence of its published weights, by the Hub's name; those of timm differ by weights."""
Form = Literal["sam", "adapter", "peft", "onnx"]
"""The forms of an exported model: a whole SAM, the trained tensors, an adapter for PEFT, a graph."""
CARD = "README.md"


def card_of(out: Path) -> Path:
    """The path of a file's model card: ``sam.README.md`` for ``sam.pth``; a folder's is ``README.md``."""
    return out.with_suffix(f".{CARD}")


_PARTS = (
    ("image_encoder.", "vision_encoder."),
    (".patch_embed.proj.", ".patch_embed.projection."),
    (".blocks.", ".layers."),
    (".neck.0.", ".neck.conv1."),
    (".neck.1.", ".neck.layer_norm1."),
    (".neck.2.", ".neck.conv2."),
    (".neck.3.", ".neck.layer_norm2."),
    (".output_upscaling.0.", ".upscale_conv1."),
    (".output_upscaling.1.", ".upscale_layer_norm."),
    (".output_upscaling.3.", ".upscale_conv2."),
    (".mask_downscaling.0.", ".mask_embed.conv1."),
    (".mask_downscaling.1.", ".mask_embed.layer_norm1."),
    (".mask_downscaling.3.", ".mask_embed.conv2."),
    (".mask_downscaling.4.", ".mask_embed.layer_norm2."),
    (".mask_downscaling.6.", ".mask_embed.conv3."),
    (".point_embeddings.", ".point_embed."),
    (".pe_layer.positional_encoding_gaussian_matrix", ".shared_embedding.positional_embedding"),
    (".norm", ".layer_norm"),
)
_MLP = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}
"""The layers of segment_anything's MLPs of depth 3: hypernetworks and IoU head."""


def hf_name(name: str) -> str:
    """``image_encoder.blocks.0.norm1.weight`` as ``vision_encoder.layers.0.layer_norm1.weight``.

    Args:
        name: name of a tensor or a module in segment_anything's ``Sam``.
    """
    head, separator, rest = name.partition(".layers.")
    heads = "iou_prediction_head", "pred_obj_score_head"
    if separator and ("output_hypernetworks_mlps." in head or head.endswith(heads)):
        index, _, leaf = rest.partition(".")
        return f"{head}.{_MLP[index]}.{leaf}"
    for old, new in _PARTS:
        name = name.replace(old, new)
    return name
