"""Whether the SVG figures of a results folder are what its records give."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from harness.comparison.rules import CardOf, no_card
from harness.report.figures import FIGURES, draw
from harness.report.figures.material import Material, NothingToDrawError, materials
from harness.report.figures.style import encoded
from harness.studies import load_study, study_names

_CREATOR = re.compile(rb"Matplotlib v(\d+\.\d+(?:\.\d+)?)")


def figure_files(root: Path) -> list[Path]:
    """The figures that are held against the records."""
    return sorted((root / "figures").glob("*.svg"))


def wrong_figures(root: Path, *, card_of: CardOf = no_card) -> tuple[list[str], list[str]]:
    """(what is wrong, what could not be compared), a line each. A figure that was never drawn is not missing.

    Bytes are equal under one version of matplotlib only; files of another are not compared.
    """
    import matplotlib

    files = {path.stem: path for path in figure_files(root)}
    contents = {stem: path.read_bytes() for stem, path in files.items()}
    versions = {stem: _version(content) for stem, content in contents.items()}
    others = {stem for stem, version in versions.items() if version and version != matplotlib.__version__}
    wrong, unseen = [], set(files) - others
    for material in _materials(root, set(files), card_of):
        for name in FIGURES:
            wanted = [stem for stem in unseen if stem == f"{material.name}-{name}" or _is_part(stem, material, name)]
            if not wanted:
                continue
            try:
                drawn = dict(draw(name, material))
            except NothingToDrawError:
                continue
            for stem in wanted:
                if (drawing := drawn.get(stem)) is None:
                    continue
                unseen.discard(stem)
                data = encoded(drawing.figure, "svg", title=stem, caption=drawing.caption)
                if data != contents[stem]:
                    wrong.append(f"{files[stem]}: differs from the records")
    wrong += [f"{files[stem]}: no record gives this figure" for stem in sorted(unseen)]
    notes = [
        f"{files[stem]}: drawn by matplotlib {versions[stem]}, here is {matplotlib.__version__}: not compared"
        for stem in sorted(others)
    ]
    return wrong, notes


def _is_part(stem: str, material: Material, name: str) -> bool:
    """Whether a file can be one of several of a figure (a benchmark each)."""
    return stem.startswith(f"{material.name}-{name}-")


def _materials(root: Path, stems: set[str], card_of: CardOf) -> Iterator[Material]:
    yield from materials(root)
    for name in study_names():
        if any(stem.startswith(f"{name}-") for stem in stems):
            yield from materials(root, study=load_study(name), card_of=card_of)


def _version(content: bytes) -> str:
    found = _CREATOR.search(content)
    return found[1].decode() if found else ""
