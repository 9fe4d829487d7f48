"""Images of finished runs, for pages that show masks: from the data folder, or from the generated samples of a demo."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from harness.archive.schema import Record
from harness.datasets.base import Benchmark, DatasetError, Pair
from harness.planning.data import data_options
from harness.protocols.load import from_rules
from harness.registry import BENCHMARKS
from harness.settings.read import load_settings
from harness.system.errors import UsageError


def network_images(results: Path, *, data: Path | None) -> Callable[[Record, str, str], Any]:
    """Images of a run's test split as the network sees them: from ``data``, from where they are set to lie, or from the
    generated samples; none where they are not at hand, unless ``data`` was given.

    Raises:
        DatasetError: ``data`` holds no such benchmark.
    """
    import numpy as np
    from PIL import Image

    settings = load_settings()

    @cache
    def pairs(name: str, rules: str) -> tuple[Benchmark, dict[tuple[str, str], Pair]] | None:
        run_rules = json.loads(rules)
        samples = results / "sample-data" / name
        generated = run_rules.get("data") == "sample"
        folder = (samples if samples.is_dir() else None) if generated else data or settings.data
        if folder is None:
            return None
        try:
            benchmark: Benchmark = BENCHMARKS.get(name)(data_options(from_rules(run_rules), name))
            splits = benchmark.splits(benchmark.locate(folder))
        except (DatasetError, UsageError):  # of a plug-in that is not here, or a card that this code does not know
            if data is not None:
                raise
            return None
        return benchmark, {(split, pair.stem): pair for split, mine in splits.test.items() for pair in mine}

    @cache
    def picture(name: str, rules: str, split: str, stem: str, side: int) -> Any:
        opened = pairs(name, rules)
        if opened is None or (pair := opened[1].get((split, stem))) is None:
            return None
        image = Image.fromarray(opened[0].read(pair).image)
        return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))

    def picture_of(record: Record, split: str, stem: str) -> Any:
        rules = record.run.rules
        return picture(record.run.benchmark, json.dumps(rules, sort_keys=True), split, stem, int(rules["image_size"]))

    return picture_of
