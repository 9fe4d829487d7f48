"""Figures from records alone; matplotlib is imported where one is drawn, not before.

A module's function of a figure's name takes the material and gives its drawings, or raises `NothingToDrawError` with what the
records lack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from harness.archive.archive import Archive
from harness.report.figures.material import Drawing, Material, NothingToDrawError, materials
from harness.report.figures.style import encoded, styled
from harness.studies import load_study, study_names
from harness.system.errors import UsageError, did_you_mean

_OF_MODULES = {
    "curves": {
        "curves": "validation score and training loss by epoch, T_B marked",
        "lengths": "score against updates of the weights and passes, where runs of several lengths are there",
    },
    "pareto": {"pareto": "score against trained parameters, step time and memory, with the Pareto front"},
    "differences": {
        "forest": "paired differences to a baseline by benchmark and overall",
        "readings": "specification curve of a study with readings: every difference, sorted, above its choices",
    },
    "ranks": {
        "ranks": "critical-difference diagram over benchmarks",
        "stability": "how often each method takes each place when seeds are redrawn",
    },
    "mixtures": {
        "alpha": "softmax(α) by operation over epochs, with the uniform level and what the rate allows",
        "alpha-blocks": "softmax(α) at the end, blocks by operations",
        "alpha-entropy": "entropy of softmax(α) over epochs",
        "alpha-benchmarks": "softmax(α) at the end by benchmark, and whether benchmarks differ",
    },
    "insides": {
        "merging": "deviation and score of merged models",
        "merging-blocks": "where merged models deviate, block by block",
        "attention-distance": "how far attention reaches by block, against the frozen backbone",
        "frequency": "frequencies of the features by depth, against the frozen backbone",
        "cka": "how alike features are, to the frozen backbone and between rows",
        "update": "size of the update, blocks by sites",
    },
    "masks": {
        "masks": "masks that runs kept, side by side, errors coloured",
        "strip": "one photograph, its truth, and what each method marks on it",
    },
}
FIGURES: Mapping[str, str] = {name: what for figures in _OF_MODULES.values() for name, what in figures.items()}
"""Name -> what it shows."""
_CREATOR = re.compile(rb"Matplotlib v(\d+\.\d+(?:\.\d+)?)")


def figure_named(name: str) -> str:
    """Raises UsageError for an unknown figure, with the nearest name."""
    if name not in FIGURES:
        raise UsageError(f"unknown figure {name!r}{did_you_mean(name, ['all', *FIGURES])}")
    return name


def draw(name: str, material: Material) -> Iterator[tuple[str, Drawing]]:
    """(stem of its files, drawing) of one figure. Raises NothingToDrawError: the records do not hold what it shows."""
    place = next(module for module, names in _OF_MODULES.items() if figure_named(name) in names)
    module = import_module(f"harness.report.figures.{place}")
    material.numbered.clear()
    with styled():
        drawings: list[Drawing] = getattr(module, name.replace("-", "_"))(material)
    for drawing in drawings:
        stem = "-".join(part for part in (material.name, name, drawing.part) if part)
        yield stem, replace(drawing, caption=drawing.caption + material.spelt_out())


def figure_files(root: Path) -> list[Path]:
    """The SVG figures of a results folder, which are held against the records."""
    return sorted((root / "figures").glob("*.svg"))


def drawn_by_another(svg: bytes) -> str:
    """The version of matplotlib that drew a file, where it is not the one here: its bytes say nothing then."""
    import matplotlib

    creator = _CREATOR.search(svg)
    return creator[1].decode() if creator and creator[1].decode() != matplotlib.__version__ else ""


def wrong_figures(root: Path) -> tuple[list[str], list[str]]:
    """(what is wrong, what could not be compared), a line each. A figure that was never drawn is not missing.

    Bytes are equal under one version of matplotlib only; files of another are not compared.
    """
    import matplotlib

    files = {path.stem: path for path in figure_files(root)}
    contents = {stem: path.read_bytes() for stem, path in files.items()}
    others = {stem: version for stem, content in contents.items() if (version := drawn_by_another(content))}
    wrong, unseen = [], files.keys() - others.keys()
    for material in _materials(Archive(root), set(files)):
        for name in FIGURES:
            stem_of_all = f"{material.name}-{name}"
            possible = [stem for stem in unseen if stem == stem_of_all or stem.startswith(f"{stem_of_all}-")]
            if not possible:
                continue
            try:
                drawn = dict(draw(name, material))
            except NothingToDrawError:
                continue
            for stem in (stem for stem in possible if stem in drawn):
                unseen.discard(stem)
                data = encoded(drawn[stem].figure, "svg", title=stem, caption=drawn[stem].caption)
                if data != contents[stem]:
                    wrong.append(f"{files[stem]}: differs from the records")
    wrong += [f"{files[stem]}: no record gives this figure" for stem in sorted(unseen)]
    notes = [
        f"{files[stem]}: drawn by matplotlib {others[stem]}, here is {matplotlib.__version__}: not compared"
        for stem in sorted(others)
    ]
    return wrong, notes


def _materials(archive: Archive, stems: set[str]) -> Iterator[Material]:
    yield from materials(archive)
    for name in study_names():
        if any(stem.startswith(f"{name}-") for stem in stems):
            yield from materials(archive, study=load_study(name))
