"""A trained model scored on the test images of a benchmark that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import torch

from harness.archive.measured import Elsewhere
from harness.archive.schema import Run
from harness.experiment.data import open_data
from harness.experiment.scoring import Scoring
from harness.experiment.stages import Stages
from harness.models.segmenter import Segmenter
from harness.planning.data import data_options
from harness.protocols.load import from_rules
from harness.registry import BENCHMARKS, add_own_of


def fits(run: Run, other: Run) -> bool:
    """Whether the model of ``run`` can be scored on the data of ``other``: the same rules and backbone, another benchmark
    with the same task and classes."""
    for either in (run, other):
        add_own_of(either.benchmark, either.rules)
    one, two = BENCHMARKS.get(run.benchmark), BENCHMARKS.get(other.benchmark)
    same = (run.protocol_hash, run.backbone, run.checkpoint) == (other.protocol_hash, other.backbone, other.checkpoint)
    sizes = run.rules.get("image_size") == other.rules.get("image_size")
    classes = (one.task, one.num_classes) == (two.task, two.num_classes)
    return same and sizes and classes and run.benchmark != other.benchmark


def scored_elsewhere(segmenter: Segmenter, other: Run, *, data: Path, results: Path, device: torch.device) -> Elsewhere:
    """Scores as the run ``other`` was scored: its test images, its limits, its conventions.

    Args:
        segmenter: with the method attached and its state loaded.
        other: a finished run on the other benchmark.
        data: the folder that holds the benchmark.
        results: whose caches may be used.

    Raises:
        DatasetError: the files are not those of ``other``.
    """
    rules = from_rules(other.rules)
    root = BENCHMARKS.get(other.benchmark)(data_options(rules, other.benchmark)).locate(data)
    opened = open_data(other, root, cache=results / "cache" / "images")
    scoring = Scoring(opened, rules, device=device, stages=Stages(), tell=lambda progress: None, seed=other.seed)
    return Elsewhere(like=other.key, scores=scoring.test(segmenter.to(device), stage="elsewhere")[0])
