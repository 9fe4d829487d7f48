"""A worked plug-in: one method and one benchmark that live outside the project. See docs/plugins.md.

(IA)³ (2205.05638): learnt vectors rescale the keys, the values and the hidden activations of the MLP. All of it is
linear per token, so it merges exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from harness.datasets.base import Benchmark, DatasetError, Pair, Sample, Splits
from harness.methods.base import MergeMode, Method, PlacedConfig
from harness.methods.parts.merging import MergeReport
from harness.methods.parts.placement import BackboneShape
from harness.methods.parts.sites import Adaptable, block_sites


@dataclass(frozen=True, kw_only=True)
class IA3Config(PlacedConfig):
    """What a user may set: ``blocks`` comes from `PlacedConfig`, ``lr`` from its base.

    Args:
        mlp: also rescale the hidden activations of the MLP.
    """

    mlp: bool = True

    def encoder_parameters(self, shape: BackboneShape) -> int:
        """The closed form that the contract holds against the attached model."""
        return sum(2 * block.dim + (block.mlp_dim if self.mlp else 0) for block in self.placed(shape))


class RescaledOutput(nn.Module):
    """base(x) with the outputs ``rows`` rescaled: of a fused qkv, keys and values."""

    rows: Tensor

    def __init__(self, base: nn.Linear, scale: Tensor, rows: Tensor) -> None:
        super().__init__()
        self.base = base
        self.scale = nn.Parameter(scale)
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        plain = self.base(tokens)
        factors = torch.ones(self.base.out_features, device=plain.device).index_copy(0, self.rows, self.scale)
        return plain * factors.to(plain.dtype)  # which is bf16 under bf16

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        self.base.weight[self.rows] *= self.scale[:, None]
        self.base.bias[self.rows] *= self.scale
        return self.base


class RescaledInput(nn.Module):
    """base(x ⊙ scale)."""

    def __init__(self, base: nn.Linear, scale: Tensor) -> None:
        super().__init__()
        self.base = base
        self.scale = nn.Parameter(scale)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.base(tokens * self.scale)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        self.base.weight *= self.scale
        return self.base


class IA3(Method):
    """(IA)³; see the module."""

    name = "ia3"
    config_class = IA3Config
    config: IA3Config
    merge_modes = ("exact",)

    def _insert(self, segmenter: Adaptable) -> None:
        for site in block_sites(segmenter.encoder, self.config.blocks):
            qkv, mlp_out = site.get("qkv"), site.get("mlp_out")
            assert isinstance(qkv, nn.Linear)
            assert isinstance(mlp_out, nn.Linear)
            device = qkv.weight.device
            rows = torch.cat([site.outputs("k"), site.outputs("v")])
            site.replace("qkv", RescaledOutput(qkv, torch.ones(len(rows)), rows).to(device))
            if self.config.mlp:
                site.replace("mlp_out", RescaledInput(mlp_out, torch.ones(mlp_out.in_features, device=device)))

    def _fold(self, mode: MergeMode, calibration: Sequence[Tensor]) -> MergeReport:
        folded = []
        for name, module in list(self.segmenter.named_modules()):
            if isinstance(module, RescaledOutput | RescaledInput):
                parent, _, leaf = name.rpartition(".")
                self.segmenter.get_submodule(parent).register_module(leaf, module.folded())
                folded.append(name)
        return MergeReport(folded=folded)


class Pets(Benchmark):
    """A folder of one's own: ``pets/{train,val,test}/{images,masks}/<stem>.png``, masks white on black."""

    name = "pets"
    title = "Pets"
    metrics = ("iou", "dice")
    selection_metric = "iou"
    terms = "yours"
    source = "Put your own images into pets/{train,val,test}/{images,masks}."

    def locate(self, data_root: Path) -> Path:
        for folder in (data_root, data_root / "pets"):
            if (folder / "train" / "images").is_dir():
                return folder
        raise DatasetError(f"pets: no train/images in {data_root} or {data_root / 'pets'}. {self.source}")

    def splits(self, root: Path) -> Splits:
        train, val, test = (self._pairs(root / split) for split in ("train", "val", "test"))
        return Splits(train=train, val=val, test={"test": test}, layout="folders", rule="by folder")

    def _pairs(self, folder: Path) -> tuple[Pair, ...]:
        images = sorted((folder / "images").glob("*.png"))
        pairs = [Pair(stem=path.stem, image=path, mask=folder / "masks" / path.name) for path in images]
        for pair in pairs:
            if not pair.mask.is_file():
                raise DatasetError(f"pets: {pair.image} has no mask {pair.mask}")
        if not pairs:
            raise DatasetError(f"pets: no image in {folder / 'images'}")
        return tuple(pairs)

    def read(self, pair: Pair) -> Sample:
        image = np.asarray(Image.open(pair.image).convert("RGB"))
        mask = (np.asarray(Image.open(pair.mask).convert("L")) > 127).astype(np.uint8)
        return Sample(image=image, mask=mask)
