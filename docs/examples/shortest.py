"""The two shortest ways: a method that is a low-rank update, a benchmark that is folders of files. See docs/plugins.md."""

from __future__ import annotations

from dataclasses import dataclass

from harness.datasets.readers.folder_benchmark import FolderBenchmark
from harness.datasets.readers.layouts import FolderLayout, Layout, Part
from harness.methods.linears import LowRankConfig
from harness.methods.lora import LowRankMethod


@dataclass(frozen=True, kw_only=True)
class GainLoRAConfig(LowRankConfig):
    """``rank``, ``sites``, ``blocks`` and ``lr`` come with the base, and so does the closed form of the count.

    Args:
        gain: factor of the update, whatever the rank.
    """

    gain: float = 8.0


class GainLoRA(LowRankMethod):
    """y = W x + b + gain · B A x."""

    name = "gainlora"
    config_class = GainLoRAConfig
    config: GainLoRAConfig

    def _scale(self) -> float:
        return self.config.gain


class Scans(FolderBenchmark):
    """Binary: lesion. Given test images, validation carved from train."""

    name = "scans"
    title = "Scans"
    class_names = ("background", "lesion")
    metrics = ("iou", "dice")
    selection_metric = "iou"
    terms = "ours"
    source = "our server"
    folders = ("scans",)

    def layouts(self) -> tuple[Layout, ...]:
        parts = {split: Part(images=f"{split}/images", masks=f"{split}/masks") for split in ("train", "test")}
        return (FolderLayout(name="original", parts=parts),)
