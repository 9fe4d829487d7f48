"""Small tiles of one's own, and a plan on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from harness import run
from harness.planning.plan import Plan
from harness.planning.understand import understand
from harness.settings import Settings
from tests.harness.planned import found_and_planned

GROUP = r"benchmarks.tiles.group=(.+)_r\d+c\d+"


def write_tiles(root: Path, *, classes: int = 2) -> Path:
    rng = np.random.default_rng(0)
    for index in range(12):
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        mask = np.zeros((40, 50), dtype=np.uint8)
        for label in range(1, classes):
            top, left = rng.integers(0, 25, 2)
            mask[top : top + 12, left : left + 15] = label
        pixels = np.clip(rng.normal(90, 15, (40, 50, 3)) + 100 * mask[..., None] / classes, 0, 255)
        name = f"site{index // 2}_r{index % 2}c0.png"
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / name)
        Image.fromarray(mask if classes > 2 else mask * np.uint8(255)).save(root / "masks" / name)
    if classes > 2:
        (root / "classes.txt").write_text("\n".join(["ground", "tree", "house", "water"][:classes]))
    return root


def planned_of(tmp_path: Path, *words: str, settings: Settings | None = None) -> Plan:
    base = ["--methods", "lora", "--protocol", "demo", "--results", str(tmp_path / "runs"), *words]
    return found_and_planned(understand(run.parser().parse_args(base), settings or Settings())[0])
