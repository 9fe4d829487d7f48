"""Figures from records alone, one a module; matplotlib is imported where one is drawn, not before.

A module's ``draw(material)`` gives its drawings, or raises `NothingToDrawError` with what the records lack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module

from harness.report.figures.material import Drawing, Material
from harness.report.figures.style import styled, written_in
from harness.system.errors import UsageError, did_you_mean

FIGURES: Mapping[str, str] = {
    "curves": "validation score and training loss by epoch, T_B marked",
    "lengths": "score against updates of the weights and passes, where runs of several lengths are there",
    "pareto": "score against trained parameters, step time and memory, with the Pareto front",
    "forest": "paired differences to a baseline by benchmark and overall",
    "readings": "specification curve of a study with readings: every difference, sorted, above its choices",
    "ranks": "critical-difference diagram over benchmarks",
    "stability": "how often each method takes each place when seeds are redrawn",
    "alpha": "softmax(α) by operation over epochs, with the uniform level and what the rate allows",
    "alpha-blocks": "softmax(α) at the end, blocks by operations",
    "alpha-entropy": "entropy of softmax(α) over epochs",
    "alpha-benchmarks": "softmax(α) at the end by benchmark, and whether benchmarks differ",
    "merging": "deviation and score of merged models",
    "merging-blocks": "where merged models deviate, block by block",
    "attention-distance": "how far attention reaches by block, against the frozen backbone",
    "frequency": "frequencies of the features by depth, against the frozen backbone",
    "cka": "how alike features are, to the frozen backbone and between rows",
    "update": "size of the update, blocks by sites",
    "masks": "masks that runs kept, side by side, errors coloured",
}
"""Name -> what it shows."""


def figure_named(name: str) -> str:
    """Raises UsageError for an unknown figure, with the nearest name."""
    if name not in FIGURES:
        raise UsageError(f"unknown figure {name!r}{did_you_mean(name, ['all', *FIGURES])}")
    return name


def draw(name: str, material: Material) -> Iterator[tuple[str, Drawing]]:
    """(stem of its files, drawing) of one figure.

    Raises:
        NothingToDrawError: the records do not hold what it shows.
    """
    module = import_module(f"harness.report.figures.{figure_named(name).replace('-', '_')}")
    with styled():
        drawings: list[Drawing] = module.draw(material)
    for drawing in drawings:
        caption = drawing.caption + material.spelt_out(written_in(drawing.figure))
        yield "-".join(part for part in (material.name, name, drawing.part) if part), replace(drawing, caption=caption)
