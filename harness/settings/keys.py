"""What may be set: every key with its kind and its explanation, from which files, variables and the printed list are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "path", "seeds", "paths", "table"]

PREFIX = "SAM_PEFT_"
SWITCHES = (f"{PREFIX}RECORD_CACHE", f"{PREFIX}BF16")
"""Variables that change how something is done and never what comes out: ``off`` does it the plain way."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One setting.

    Args:
        name: in a file.
        kind: ``text``; a ``path``; ``seeds``, a number or a list; ``paths``, a list; or a ``table`` of names to paths.
        help: one line on what it is for.
        example: as a file would say it.
        option: of the command line, which beats it.
    """

    name: str
    kind: Kind
    help: str
    example: str
    option: str

    @property
    def variable(self) -> str:
        """The environment variable that beats the files."""
        return PREFIX + self.name.upper()


KEYS = (
    Key(
        name="protocol",
        kind="text",
        help="the card of rules (default: nas-lora where data is set, demo where nothing is)",
        example='protocol = "nas-lora"',
        option="--protocol",
    ),
    Key(
        name="data",
        kind="path",
        help="the folder that holds the benchmarks' folders",
        example='data = "/data/segmentation"',
        option="--data",
    ),
    Key(
        name="results",
        kind="path",
        help="where records, tables and checkpoints go (default: runs)",
        example='results = "runs"',
        option="--results",
    ),
    Key(
        name="cluster",
        kind="text",
        help="the SLURM profile that runs are submitted with (default: none, they run here)",
        example='cluster = "gpu"',
        option="--cluster",
    ),
    Key(
        name="seeds",
        kind="seeds",
        help="a number of seeds, or a list of them (default: 1)",
        example="seeds = 3",
        option="--seeds",
    ),
    Key(
        name="plugins",
        kind="paths",
        help="files that define more methods or benchmarks; they are code",
        example='plugins = ["my_method.py"]',
        option="--plugin",
    ),
    Key(
        name="datasets",
        kind="table",
        help="folders of single benchmarks that lie elsewhere, and of data of your own by any name",
        example='kvasir = "/data/Kvasir-SEG"',
        option="--dataset-root",
    ),
    Key(
        name="checkpoints",
        kind="table",
        help='pretrained weights, one a backbone ("none": random)',
        example='vit_h = "/data/sam_vit_h_4b8939.pth"',
        option="--checkpoint",
    ),
)
